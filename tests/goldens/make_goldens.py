#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "transformers==5.23.0", "peft==0.21.2", "safetensors==0.8.0", "numpy==2.4.6"]
# ///
"""Goldens: what Hugging Face Transformers, PEFT and torch.optim.AdamW compute for three tiny models.

    python make_goldens.py [--out DIR]

Every quantity is computed in float64 (see `InDouble`) from parameters that are exact in float32, so a golden is the
true value up to its own rounding; the script then repeats everything in plain float32 and prints how far that lands
from the golden, which is the yardstick for a float32 trainer's tolerances. README.md lists the tensors.
"""

import argparse
import contextlib
import json
import re
from pathlib import Path

import peft
import safetensors
import torch
import torch.nn.functional as F
import transformers
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, get_linear_schedule_with_warmup

IGNORE = -100
EMBED = "model.embed_tokens.weight"

# The middle document is one token long: it has no target, and in a packed row its label must not become the target of
# the document before it. Ids repeat within and across documents so that embedding gradients collide.
DOCUMENTS = [
    ([5, 17, 17, 0, 95, 42, 5], 3, []),
    ([42], 0, []),
    ([7, 17, 88, 3, 3, 61, 0, 29, 95, 7, 17, 50], 5, [8]),
]  # (input ids, length of the masked prompt, further masked positions)

COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "initializer_range": 0.02,
}
# The rotary settings come in the three spellings found in the wild; no value equals a library default, so a reader that
# skips one is caught. Llama's first frequency is kept, the second blended and the last two divided by the factor.
CONFIGS = {
    "qwen2": COMMON
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000.0,
        "tie_word_embeddings": True,
    },
    "llama": COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
        "tie_word_embeddings": False,
    },
    "qwen3": COMMON
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 2000.0},
        "tie_word_embeddings": True,
    },
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none"}

SMOOTHING, Z_LOSS = 0.1, 1e-3
STEPS, LR, WEIGHT_DECAY, MAX_NORM, LORAPLUS_RATIO = 10, 1e-2, 0.1, 1.0, 16.0
ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "foreach": False}
# Final weights that are kept: a decayed embedding and matrix, and every kind of vector, which must not decay.
FINALS = [
    EMBED,
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.self_attn.q_norm.weight",
    "model.layers.1.mlp.down_proj.weight",
]
LORA_FINALS = [f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB"]


class InDouble(TorchFunctionMode):
    """Turns every up-cast to float32 into one to float64.

    Transformers fixes float32 inside RMSNorm, softmax, the rotary tables and the loss whatever the model's dtype, which
    would leave float32 rounding in a float64 model. Its code runs unmodified here; only the named dtype changes.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def widen(x):
            return torch.float64 if x is torch.float32 else x

        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(widen, args), **{k: widen(v) for k, v in (kwargs or {}).items()})


@contextlib.contextmanager
def precision(dtype):
    """Builds and runs models in `dtype` throughout."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with InDouble() if dtype == torch.float64 else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


def documents():
    """(input_ids, labels) of each document, shape [T], unshifted as Transformers takes them."""
    out = []
    for ids, prompt, masked in DOCUMENTS:
        labels = list(ids)
        for i in [*range(prompt), *masked]:
            labels[i] = IGNORE
        out.append((torch.tensor(ids), torch.tensor(labels)))
    return out


VALID = sum(int((labels[1:] != IGNORE).sum()) for _, labels in documents())


def draw(name, shape, generator):
    """A float32 parameter, far enough from its usual start that no term of the model can be left out unnoticed."""
    if name.endswith("norm.weight"):
        return torch.rand(shape, generator=generator) + 0.5
    scale = 0.5 if name == EMBED or name.endswith(".bias") else 0.25
    return torch.randn(shape, generator=generator) * scale


def draw_files(out, family, seed):
    """Writes config.json, model.safetensors and adapter.safetensors."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(CONFIGS[family], indent=2) + "\n")
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out))
    weights = {name: draw(name, p.shape, generator) for name, p in model.named_parameters()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    adapter = peft.get_peft_model_state_dict(with_adapter(model))
    adapter = {n: torch.randn(p.shape, generator=generator) * 0.2 for n, p in sorted(adapter.items())}
    save_file(adapter, out / "adapter.safetensors", metadata={"format": "pt"})


class Files:
    """What `draw_files` wrote, read back."""

    def __init__(self, folder):
        self.config = AutoConfig.from_pretrained(folder)
        self.weights = load_file(folder / "model.safetensors")
        self.adapter = load_file(folder / "adapter.safetensors")


def with_adapter(model):
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, **LORA))


def load(files, dtype, adapter=False):
    """The model in `files`; with `adapter`, its adapter on a frozen base."""
    model = AutoModelForCausalLM.from_config(files.config, dtype=dtype, attn_implementation="eager")
    missing = model.load_state_dict(files.weights, strict=False)
    tied = ["lm_head.weight"] if model.config.tie_word_embeddings else []
    assert (missing.missing_keys, missing.unexpected_keys) == (tied, []), missing
    if adapter:
        model = with_adapter(model).to(dtype)
        missing = peft.set_peft_model_state_dict(model, files.adapter)
        assert not missing.unexpected_keys, missing
    assert all(p.dtype == dtype for p in model.parameters())
    return model.train()


def hf_loss(model):
    """Mean of -log p over the shifted targets of all documents, each run on its own, by Transformers' own loss."""
    return sum(
        model(input_ids=ids[None], labels=labels[None], num_items_in_batch=VALID).loss for ids, labels in documents()
    )


def variant_loss(model, label_smoothing=0.0, z_loss=0.0):
    """The same mean, of `F.cross_entropy(label_smoothing)` + z_loss · logsumexp(logits)²."""
    total = 0.0
    for ids, labels in documents():
        logits, targets = model(input_ids=ids[None]).logits[0, :-1], labels[1:]
        if not (targets != IGNORE).any():
            continue
        total = total + F.cross_entropy(
            logits, targets, label_smoothing=label_smoothing, reduction="sum", ignore_index=IGNORE
        )
        total = total + z_loss * logits.logsumexp(-1)[targets != IGNORE].square().sum()
    return total / VALID


def gradients(model, loss):
    """The trained parameters' gradients by name; adapters under the names PEFT gives them in a file."""
    model.zero_grad()
    loss.backward()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return {n.replace(".default.", "."): p.grad.clone() for n, p in named}


def norm(grads):
    return torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()


def padded():
    """All documents as one right-padded batch: input_ids, attention_mask, labels, each [3, 12]."""

    def pad(rows, value):
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids, labels = zip(*documents())
    return {
        "input_ids": pad(ids, 0),
        "attention_mask": pad([torch.ones_like(i) for i in ids], 0),
        "labels": pad(labels, IGNORE),
    }


def packed():
    """All documents in one row; positions restart at each, and the first label of each is masked (nothing predicts it)."""
    ids, labels = zip(*documents())
    return {
        "input_ids": torch.cat(ids)[None],
        "position_ids": torch.cat([torch.arange(len(i)) for i in ids])[None],
        "labels": torch.cat([F.pad(x[1:], (1, 0), value=IGNORE) for x in labels])[None],
    }


def train(model, optimizer):
    """Losses and pre-clip gradient norms of STEPS steps on the fixed batch; the model is left at its final weights."""
    schedule = get_linear_schedule_with_warmup(optimizer, 0, STEPS)
    trained = [p for p in model.parameters() if p.requires_grad]
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = hf_loss(model)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, MAX_NORM, foreach=False).detach())
        losses.append(loss.detach())
        optimizer.step()
        schedule.step()
    return {"losses": torch.stack(losses).double(), "grad_norms": torch.stack(norms).double()}


def full_goldens(files, dtype):
    """Everything about the model without adapters."""
    model, out = load(files, dtype), {}
    for i, (ids, _) in enumerate(documents()):
        out[f"doc{i}.logits"] = model(input_ids=ids[None]).logits[0].detach()
    loss = hf_loss(model)
    grads = gradients(model, loss)
    out |= {"loss": loss.detach().double(), "grad_norm": norm(grads).double()}
    out |= {f"grad.{n}": g for n, g in grads.items()}
    for batch in [padded(), packed()]:  # the layout of a batch must not change a thing
        # Transformers sees document borders in position_ids only when it is told not to fill a cache.
        other = model(**batch, num_items_in_batch=VALID, use_cache=False).loss
        other_grads = gradients(model, other)
        close = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-5}
        torch.testing.assert_close(other, loss, **close)
        torch.testing.assert_close(other_grads, grads, **close)
    for key, options in [
        ("smooth", {"label_smoothing": SMOOTHING}),
        ("z", {"z_loss": Z_LOSS}),
    ]:
        loss = variant_loss(model, **options)
        out[f"{key}.loss"] = loss.detach().double()
        out[f"{key}.grad.{EMBED}"] = gradients(model, loss)[EMBED]

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    curve = train(model, torch.optim.AdamW(groups, lr=LR, **ADAMW))
    final = dict(model.named_parameters())
    out |= {f"train.{k}": v for k, v in curve.items()}
    return out | {f"train.final.{n}": final[n].detach() for n in FINALS if n in final}


def lora_goldens(files, dtype):
    """Everything about the model with its adapter."""
    model, out = load(files, dtype, adapter=True), {}
    for i, (ids, _) in enumerate(documents()):
        out[f"lora.doc{i}.logits"] = model(input_ids=ids[None]).logits[0].detach()
    loss = hf_loss(model)
    grads = gradients(model, loss)
    assert grads.keys() == files.adapter.keys()
    out |= {"lora.loss": loss.detach().double(), "lora.grad_norm": norm(grads).double()}
    out |= {f"lora.grad.{n}": g for n, g in grads.items()}
    curve = train(
        model,
        create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=LORAPLUS_RATIO, weight_decay=0.0, **ADAMW
        ),
    )
    final = peft.get_peft_model_state_dict(model)
    out |= {f"lora.train.{k}": v for k, v in curve.items()}
    return out | {f"lora.train.final.{n}": final[n].detach() for n in LORA_FINALS}


def inputs():
    out = {"valid_tokens": torch.tensor(VALID)}
    for i, (ids, labels) in enumerate(documents()):
        out |= {f"doc{i}.input_ids": ids, f"doc{i}.labels": labels}
    return out | {f"padded.{k}": v for k, v in padded().items()}


def compute(files, dtype):
    with precision(dtype):
        return full_goldens(files, dtype) | lora_goldens(files, dtype)


def kind(name):
    """The line of the drift table that a tensor belongs to: `grad.<any parameter>`, `doc<any>.logits`, ..."""
    return re.sub(r"doc\d", "doc*", re.sub(r"((^|\.)(grad|final)\.).*", r"\1*", name))


def drift(family, golden, single):
    """Prints float32's distance from the golden: the largest error over the largest value, per kind of tensor."""
    worst = {}
    for name, want in golden.items():
        error = ((single[name].double() - want).abs().max() / want.abs().max()).item()
        worst[kind(name)] = max(worst.get(kind(name), 0.0), error)
    for name, error in worst.items():
        print(f"{family:6} {name:24} {error:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft, safetensors)}
    for seed, family in enumerate(CONFIGS):
        folder = out / family
        draw_files(folder, family, seed)
        files = Files(folder)
        golden = compute(files, torch.float64)
        drift(family, golden, compute(files, torch.float32))
        scalars = {k for k in golden if golden[k].ndim == 0 or k.endswith(("losses", "grad_norms"))}
        stored = {k: v if k in scalars else v.float().contiguous() for k, v in golden.items()}
        save_file(inputs() | stored, folder / "golden.safetensors", metadata={"versions": json.dumps(versions)})


if __name__ == "__main__":
    main()
