#!/usr/bin/env python3
"""Trains an adapter of every kind for a few steps and has PEFT load it: variants.py CHRONICALS FOLDER, behind run.sh.

Prints the log-probability of the tokens of a text by Chronicals and by Transformers with PEFT, and fails where one differs by more than
rounding, or where the adapter changes nothing.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from check import TEXTS, TOKEN_TOLERANCE, ours, theirs

# A rank of 8 is enough to see a factor that is wrong.
DATA = Path(__file__).resolve().parents[2] / "data/chat-instruct/train.jsonl"
VARIANTS = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "ranks and alphas of their own": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"down_proj": 8}},
    "two projections": {"target_modules": ["q_proj", "v_proj"]},
}


def config(base, out, variant):
    return {
        "model": {"path": base},
        "data": {"path": str(DATA), "max_length": 128, "template": "chat"},
        "method": {"type": "lora", "r": 8, "lora_alpha": 16, **variant},
        "batch": {"packing": "none", "per_device_train_batch_size": 2},
        "train": {"learning_rate": 2e-3},
        "max_steps": 4,
        "output_dir": out,
    }


def main():
    chronicals, folder = sys.argv[1:]
    base, failed = str(Path(folder).resolve() / "model"), False
    plain, ids = ours(chronicals, ["--model", base], TEXTS[0])
    print("| adapter | largest difference to PEFT | largest change of a token by the adapter |\n|---|---:|---:|")
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as out:
            with open(f"{out}/train.yaml", "w", encoding="utf-8") as file:
                # JSON is YAML.
                json.dump(config(base, f"{out}/adapter", variant), file)
            train = [chronicals, "train", "--config", f"{out}/train.yaml"]
            subprocess.run(train, stdout=subprocess.DEVNULL, check=True)
            here, _ = ours(chronicals, ["--model", base, "--adapter", f"{out}/adapter"], TEXTS[0])
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            model = PeftModel.from_pretrained(model, f"{out}/adapter").eval()
        there = theirs(model, torch.tensor([ids]))
        apart, moved = (here - there).abs().max().item(), (here - plain).abs().max().item()
        failed |= apart > TOKEN_TOLERANCE or moved < 10 * TOKEN_TOLERANCE
        print(f"| {name} | {apart:.1e} | {moved:.2f} |", flush=True)
    if failed:
        sys.exit("they do not agree, or an adapter changes nothing")


if __name__ == "__main__":
    main()
