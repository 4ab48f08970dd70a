#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "transformers==5.24.0", "peft==0.21.2", "safetensors==0.8.0", "numpy==2.4.6"]
# ///
"""Goldens of LoRA's variants: what PEFT computes for the tiny `qwen3` model of make_goldens.py.

    python make_lora.py [--out DIR]

Each variant has a folder: `adapter_config.json` and `adapter_model.safetensors` as PEFT writes them, and `golden.safetensors` with
logits, loss and gradients under that adapter, and ten steps of LoRA+ from it, in float64 as there. README.md lists the tensors.
"""

import argparse
import json
from pathlib import Path

import peft
import safetensors
import torch
import transformers
from make_goldens import (
    ADAMW,
    LORAPLUS_RATIO,
    LR,
    TARGETS,
    Files,
    documents,
    gradients,
    hf_loss,
    inputs,
    kind,
    load,
    norm,
    precision,
    train,
)
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file

FAMILY = "qwen3"
# The first key that matches counts, and PEFT sorts keys when it saves them.
PATTERNS = {
    "rank_pattern": {"k_proj": 2, "layers.1.self_attn.q_proj": 8, r"model\.layers\.0\.mlp\.(gate|down)_proj": 6},
    "alpha_pattern": {r"layers\.1\..*_proj": 2.0, "q_proj": 1.0, "v_proj": 3.0},
}
VARIANTS = {
    "patterns": PATTERNS,
    "dora": {"use_dora": True},
    "dora_patterns": PATTERNS | {"use_dora": True, "use_rslora": True, "target_modules": ["q_proj", "k_proj", "down_proj"]},
}
PISSA = {"init_lora_weights": "pissa"}


def settings(variant):
    plain = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "target_modules": TARGETS}
    return peft.LoraConfig(task_type="CAUSAL_LM", **(plain | variant))


def draw(folder, files, variant, seed):
    """An adapter of that variant, drawn: no term of it can be left out unnoticed."""
    folder.mkdir(parents=True, exist_ok=True)
    model = peft.get_peft_model(load(files, torch.float32), settings(variant))
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, p in sorted(peft.get_peft_model_state_dict(model).items()):
        about = torch.rand if name.endswith("magnitude_vector") else torch.randn
        value = about(p.shape, generator=generator)
        drawn[name] = value + 0.5 if name.endswith("magnitude_vector") else value * 0.2
    config = model.peft_config["default"]
    config.base_model_name_or_path = "model"
    config.target_modules = sorted(config.target_modules)
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(drawn, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def adapted(adapter, files, variant, dtype):
    model = peft.get_peft_model(load(files, dtype), settings(variant)).to(dtype)
    missing = peft.set_peft_model_state_dict(model, adapter)
    assert not missing.unexpected_keys, missing
    assert all(p.dtype == dtype for p in model.parameters())
    return model.train()


def logits(model):
    return {f"doc{i}.logits": model(input_ids=ids[None]).logits[0].detach() for i, (ids, _) in enumerate(documents())}


def ten_steps(model):
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=LORAPLUS_RATIO, weight_decay=0.0, **ADAMW
    )
    return {f"train.{k}": v for k, v in train(model, optimizer).items()}


def in_file(name):
    """PEFT's name of a parameter in a file: a magnitude is no module there."""
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def golden(folder, files, variant, dtype):
    adapter = load_file(folder / "adapter_model.safetensors")
    with precision(dtype):
        model = adapted(adapter, files, variant, dtype)
        out = logits(model)
        loss = hf_loss(model)
        grads = {in_file(n): g for n, g in gradients(model, loss).items()}
        assert grads.keys() == adapter.keys()
        out |= {"loss": loss.detach().double(), "grad_norm": norm(grads).double()}
        out |= {f"grad.{n}": g for n, g in grads.items()}
        return prefixed("lora", out | ten_steps(model))


def prefixed(prefix, values):
    return {f"{prefix}.{name}": value for name, value in values.items()}


def pissa(files, dtype):
    """Updates that begin as the largest part of each weight, found in float32, and ten steps from there."""
    found = peft.get_peft_model(load(files, torch.float32), settings(PISSA))
    with precision(dtype):
        model = found.to(dtype).train()
        state = peft.get_peft_model_state_dict(model)
        out = {}
        for name, a in state.items():
            if ".layers.0." in name and name.endswith("lora_A.weight"):
                b = state[name.replace("lora_A", "lora_B")]
                out["update." + name.removesuffix(".lora_A.weight")] = 2.0 * b @ a
        out |= prefixed("lora", {"loss": hf_loss(model).detach().double()} | ten_steps(model))
        return out | prefixed("final", logits(model))


def store(values, path):
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft, safetensors)}
    scalars = {k for k in values if values[k].ndim == 0 or k.endswith(("losses", "grad_norms"))}
    kept = {k: v if k in scalars else v.float().contiguous() for k, v in values.items()}
    save_file(inputs() | kept, path, metadata={"versions": json.dumps(versions)})


def drift(variant, golden, single):
    """Prints float32's distance from the golden: the largest error over the largest value, per kind of tensor."""
    worst = {}
    for name, want in golden.items():
        error = ((single[name].double() - want).abs().max() / want.abs().max()).item()
        worst[kind(name)] = max(worst.get(kind(name), 0.0), error)
    for name, error in worst.items():
        print(f"{variant:14} {name:18} {error:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here / "lora")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    files = Files(here / FAMILY)
    for seed, (name, variant) in enumerate(VARIANTS.items()):
        folder = out / name
        draw(folder, files, variant, 100 + seed)
        exact = golden(folder, files, variant, torch.float64)
        drift(name, exact, golden(folder, files, variant, torch.float32))
        store(exact, folder / "golden.safetensors")
    (out / "pissa").mkdir(parents=True, exist_ok=True)
    exact = pissa(files, torch.float64)
    drift("pissa", exact, pissa(files, torch.float32))
    store(exact, out / "pissa" / "golden.safetensors")


if __name__ == "__main__":
    main()
