"""Writes generate.json: what `generate` of Transformers continues the tiny models with, see README.md."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
PROMPT = [5, 17, 42, 8, 91, 3, 3, 60]
NEW = 40
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def continued(model, **settings):
    ids = torch.tensor([PROMPT])
    mask = torch.ones_like(ids)
    out = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0, **settings
    )
    return out[0, len(PROMPT):].tolist()


def main():
    golden = {"prompt": PROMPT}
    for name in ["qwen2", "llama", "qwen3"]:
        model = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32).eval()
        entry = {"greedy": continued(model), "penalised": continued(model, repetition_penalty=1.3)}
        config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        stored = load_file(HERE / name / "adapter.safetensors")
        stored = {k.replace(".weight", ".default.weight"): v for k, v in stored.items()}
        missing = adapted.load_state_dict(stored, strict=False)
        assert not missing.unexpected_keys, missing.unexpected_keys
        entry["adapted"] = continued(adapted.eval())
        golden[name] = entry
    (HERE / "generate.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
