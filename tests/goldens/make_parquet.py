#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["pyarrow==26.0.1"]
# ///
"""Small Parquet files as Hugging Face's `datasets` writes them: conversations, in the compressions that are met.

    python make_parquet.py [--out DIR]
"""

import argparse
import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TURN = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])
SCHEMA = pa.schema(
    [
        ("messages", pa.list_(TURN)),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("score", pa.float64()),
        ("when", pa.timestamp("us")),
        ("picture", pa.binary()),
        ("tags", pa.list_(pa.large_string())),
    ]
)


def row(i):
    turns = [("user", f"Count to {i}: ä 🧀", None), ("assistant", " ".join(map(str, range(1, i + 1))), "counter")]
    return {
        "messages": [dict(zip(("role", "content", "name"), turn)) for turn in turns[: 1 + (i > 0)]],
        "source": ["web", "book"][i % 2],
        "score": None if i % 3 == 0 else i / 4,
        "when": datetime.datetime(2024, 7, 26, 12, 0, i),
        "picture": bytes([0xFF, 0xD8, i]),
        "tags": [] if i % 4 == 0 else None if i % 4 == 1 else ["a", None, "b"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "parquet")
    out = parser.parse_args().out
    table = pa.Table.from_pylist([row(i) for i in range(10)], SCHEMA)
    for compression in ("none", "snappy", "zstd", "gzip", "brotli"):
        pq.write_table(table, out / f"{compression}.parquet", compression=compression, row_group_size=4)


if __name__ == "__main__":
    main()
