#!/usr/bin/env python3
"""Holds a fine-tuned model against Transformers and PEFT: check.py CHRONICALS FOLDER, as run.sh calls it.

Losses and the log-probability of every token by Chronicals and by Transformers on the same texts, the merged weights against those that
PEFT merges, and an answer before and after. Fails where they differ by more than rounding.
"""

import json
import subprocess
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

# Both compute in f32, and sum in another order. A log-probability depends on every logit of its place.
LOSS_TOLERANCE = 2e-5
TOKEN_TOLERANCE = 2e-4
# Share of merged weights that may be rounded to the other neighbour in bf16: W + s·B·A is summed in another order.
ROUNDED_OTHERWISE = 1e-3

TEXTS = [
    "The capital of France is Paris. The capital of Germany is Berlin.",
    "Water boils at 100 degrees Celsius at sea level, and freezes at 0 degrees.",
    "def add(a, b):\n    return a + b\n",
    "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat.",
    "Ich weiß nicht, was soll es bedeuten, dass ich so traurig bin.",
]
QUESTIONS = ["What is the capital of France?", "Give me three tips to sleep better."]


def ours(chronicals, arguments, text):
    """Log-probabilities of the tokens behind the first, and the ids of all."""
    command = [chronicals, "evaluate", *arguments, "--text", text, "--per-token"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    tokens = [json.loads(line) for line in run.stdout.splitlines()]
    return torch.tensor([t["log_probability"] for t in tokens[1:]], dtype=torch.float64), [t["id"] for t in tokens]


def theirs(model, ids):
    """The same by Transformers, of ids in a tensor of one row."""
    with torch.no_grad():
        logits = model(ids).logits[0]
    return logits[:-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def main():
    chronicals, folder = sys.argv[1:]
    base, adapter, merged = (f"{folder}/{name}" for name in ("model", "adapter", "exported"))
    tokenizer = AutoTokenizer.from_pretrained(base)

    def load(path):
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    models = {
        "model": (load(base), ["--model", base]),
        "model + adapter": (PeftModel.from_pretrained(load(base), adapter).eval(), ["--model", base, "--adapter", adapter]),
        "merged": (load(merged), ["--model", merged]),
    }
    worst = worst_token = 0.0
    print("| | text | loss, Chronicals | loss, Transformers | largest difference of a token's log-probability |\n|---|---|---:|---:|---:|")
    for name, (model, arguments) in models.items():
        for i, text in enumerate(TEXTS):
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            here, read = ours(chronicals, arguments, text)
            assert read == ids[0].tolist(), (read, ids)
            there = theirs(model, ids)
            apart = (here - there).abs().max().item()
            worst, worst_token = max(worst, (here.mean() - there.mean()).abs().item()), max(worst_token, apart)
            print(f"| {name} | {i + 1} | {-here.mean():.4f} | {-there.mean():.4f} | {apart:.1e} |")
    print(f"\nLargest difference of a loss: {worst:.1e}, of a token's log-probability: {worst_token:.1e}.")
    merged_by_peft = models["model + adapter"][0].merge_and_unload().to(torch.bfloat16).state_dict()
    stored = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16).state_dict()
    assert stored.keys() == merged_by_peft.keys(), stored.keys() ^ merged_by_peft.keys()
    # Neighbours in bf16 are neighbours as integers.
    steps = torch.cat([(stored[k].view(torch.int16).int() - merged_by_peft[k].view(torch.int16).int()).abs().flatten() for k in stored])
    otherwise = (steps > 0).float().mean().item()
    print(f"Of {steps.numel():,} merged weights in bf16, {1 - otherwise:.4%} are the very ones that PEFT's merge gives, and the "
          f"others are at most {steps.max().item()} step of rounding away.\n")
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        print(f"**{question}**\n")
        for name in ("model", "merged"):
            new = models[name][0].generate(**ids, max_new_tokens=60, do_sample=False)[0, ids["input_ids"].shape[1] :]
            print(f"- {name}: {' '.join(tokenizer.decode(new, skip_special_tokens=True).split())}")
        print()
    if worst > LOSS_TOLERANCE or worst_token > TOKEN_TOLERANCE or otherwise > ROUNDED_OTHERWISE or steps.max() > 1:
        sys.exit("they do not agree")


if __name__ == "__main__":
    main()
