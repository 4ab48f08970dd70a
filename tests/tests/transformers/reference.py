"""Hugging Face Transformers and PEFT on the very weights and tokens of a test: gradients, or a training.

    python3 reference.py REQUEST.json

The request names a model's config and weights, adapters and their settings (or null), a token store, the documents of every step, a
number format and what to do; the answer is a safetensors file. Documents are rows of a padded batch, each by itself: what packing must
come to. Labels are the next token of the same document where that is to be learned.
"""

import json
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

IGNORE = -100


def build(request, dtype):
    config = AutoConfig.from_pretrained(request["config"])
    config._attn_implementation = "sdpa"
    with torch.device(request["device"]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing = model.load_state_dict(load_file(request["weights"], device=request["device"]), strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert set(missing.missing_keys) <= tied and not missing.unexpected_keys, missing
    model.tie_weights()
    model = model.to(request["device"], dtype)
    if request["lora"] is None:
        return model
    import peft

    lora = request["lora"]
    settings = peft.LoraConfig(
        r=lora["r"],
        lora_alpha=lora["lora_alpha"],
        target_modules=lora["target_modules"],
        use_rslora=lora["use_rslora"],
        lora_dropout=0.0,
        bias="none",
    )
    model = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    adapters = {
        name.replace(".weight", ".default.weight"): values for name, values in load_file(request["adapters"]).items()
    }
    missing = model.load_state_dict(adapters, strict=False)
    assert not missing.unexpected_keys, missing.unexpected_keys
    assert not any("lora_" in name for name in missing.missing_keys), missing.missing_keys
    return model


def batch(request, tokens, documents):
    """Ids and labels, documents by the longest of them."""
    at = tokens["offsets"].tolist()
    spans = [(at[d], at[d + 1]) for d in documents]
    longest = max(end - begin for begin, end in spans)
    ids = torch.zeros(len(spans), longest, dtype=torch.long)
    labels = torch.full((len(spans), longest), IGNORE, dtype=torch.long)
    for row, (begin, end) in enumerate(spans):
        n = end - begin
        document = tokens["input_ids"][begin:end].long()
        learned = tokens["loss_mask"][begin + 1 : end] != 0
        ids[row, :n] = document
        labels[row, : n - 1] = torch.where(learned, document[1:], torch.tensor(IGNORE))
    return ids.to(request["device"]), labels.to(request["device"])


def loss_of(model, ids, labels, autocast):
    # Padding is behind every document, where causal attention keeps it from being seen.
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids, use_cache=False).logits
    count = (labels != IGNORE).sum()
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / count


def name_of(parameter):
    return parameter.replace(".default.weight", ".weight")


def gradients(request, tokens):
    model = build(request, getattr(torch, request["dtype"]))
    ids, labels = batch(request, tokens, request["steps"][0])
    loss = loss_of(model, ids, labels, autocast=False)
    loss.backward()
    answer = {name_of(n): p.grad.float().cpu().contiguous() for n, p in model.named_parameters() if p.grad is not None}
    answer["loss"] = loss.detach().double().cpu().reshape(1)
    return answer


def train(request, tokens):
    """AdamW as the trainer has it: masters and moments in f32 beneath bf16 arithmetic, or everything in bf16."""
    masters = request["states"] == "f32"
    model = build(request, torch.float32 if masters else torch.bfloat16)
    args, ratio = request["train"], (request["lora"] or {}).get("loraplus_lr_ratio", 1.0)
    groups = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            key = (ratio if "lora_B" in name else 1.0, args["weight_decay"] if p.dim() > 1 else 0.0)
            groups.setdefault(key, []).append(p)
    optimizer = torch.optim.AdamW(
        [{"params": ps, "weight_decay": decay, "ratio": r} for (r, decay), ps in groups.items()],
        betas=(args["adam_beta1"], args["adam_beta2"]),
        eps=args["adam_epsilon"],
        fused=request["device"] != "cpu",
    )
    trained = [p for ps in groups.values() for p in ps]
    losses, norms = [], []
    for documents, lr in zip(request["steps"], request["lr"], strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr * group["ratio"]
        loss = loss_of(model, *batch(request, tokens, documents), autocast=masters)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, args["max_grad_norm"] or float("inf")).detach().float())
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses).double().cpu(), "norms": torch.stack(norms).double().cpu()}


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    tokens = load_file(request["tokens"])
    answer = {"gradients": gradients, "train": train}[request["task"]](request, tokens)
    save_file(answer, request["answer"])


main()
