#!/usr/bin/env bash
# Real false alarms and a real planted loss, for the record: N comparisons of the program with itself, then one gate against
# a program that is slower by 3 %. Wants a machine on which nothing else runs; takes about N × 4 minutes on two cores.
#
#   tests/real/aa.sh [N, 20 by default] [scenario, scenarios/gate-cpu.yaml by default]
#
# Leaves reports/<day>-aa-<machine>.json. Exit code 0: no false alarm, and the planted loss was found; 1: not so.
set -euo pipefail
cd "$(dirname "$0")/../.."
comparisons=${1:-20}
scenario=${2:-scenarios/gate-cpu.yaml}
program=$PWD/target/release/chronibench
[ -x "$program" ] || { echo "first: cargo build --release --workspace --locked" >&2; exit 5; }
command -v python3 >/dev/null || { echo "python3 writes the record: install it" >&2; exit 5; }

out=$(mktemp -d "${TMPDIR:-/tmp}/aa.XXXXXX")
trap 'rm -rf "$out"' EXIT
began=$(date -u +%Y-%m-%dT%H:%M:%SZ)

code=0
"$program" noise "$scenario" --comparisons "$comparisons" --out "$out/noise" | tee "$out/noise.txt" || code=$?
case $code in 0 | 4) ;; *) exit "$code" ;; esac
echo "$code" >"$out/noise.code"

printf '#!/bin/sh\nCHRONIBENCH_PLANTED_DELAY=0.03 exec %q "$@"\n' "$program" >"$out/slower"
chmod +x "$out/slower"
code=0
"$program" gate "$scenario" --baseline "$program" --candidate "$out/slower" --enforce always \
  --out "$out/planted" | tee "$out/planted.txt" || code=$?
case $code in 0 | 1 | 4) ;; *) exit "$code" ;; esac
echo "$code" >"$out/planted.code"

python3 - "$out" "$comparisons" "$scenario" "$began" <<'PYTHON'
import json, os, pathlib, re, sys

out, comparisons, scenario, began = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
read = lambda name: json.loads((out / name).read_text())
code = lambda name: int((out / f"{name}.code").read_text())
environment = read("noise/environment.json")
certificate = read("noise/certificate.json")
gate = read("planted/gate.json")
for side in ("baseline", "candidate"):
    gate[side]["name"] = pathlib.Path(gate[side]["name"]).name
record = {
    "schema": "chronibench.aa/1",
    "scenario": scenario,
    "began": began,
    "machine": environment["machine"],
    "program": {k: environment["program"][k] for k in ("version", "binary_sha256", "rustc", "git")},
    "comparisons": comparisons,
    "certified": code("noise") == 0,
    "certificate": certificate,
    "planted": {"loss": 0.03, "exit": code("planted"), "gate": gate},
}
machine = re.sub(r"[^a-z0-9]+", "-", (environment["machine"]["cpu"] or "machine").lower()).strip("-")
path = pathlib.Path("reports") / f"{began[:10]}-aa-{machine}.json"
if path.exists():
    sys.exit(f"{path} is there already: move it away to make another record")
path.write_text(json.dumps(record, indent=2) + "\n")
print(f"record: {path}")
print(f"{comparisons} comparisons with itself: {'certified' if record['certified'] else 'NOT certified'}; planted loss of 3 %: {gate['verdict']}")
os._exit(0 if record["certified"] and code("planted") == 1 else 1)
PYTHON
