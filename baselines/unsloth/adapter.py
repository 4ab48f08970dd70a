"""Unsloth: its model, its adapters, its kernels, under Transformers' Trainer as it patches that one."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "common"))
import chronibench as cb  # noqa: E402

# Unsloth says its use to a server otherwise.
os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"


def in_force(trial):
    """The options as they are applied: adapters are never loaded with full_finetuning, whatever was asked."""
    return trial.options | {"full_finetuning": not trial.lora and trial.options["full_finetuning"]}


def load(trial, FastLanguageModel):
    """Unsloth's model with the harness's weights, and under LoRA its adapters."""
    import huggingface as hf
    import torch

    options, lora = in_force(trial), trial.lora
    folder = hf.model_folder(trial)
    hf.stand_in_tokenizer(trial).save_pretrained(folder)
    checkpointing = {"none": False, "unsloth": "unsloth", "hf": True}[options["gradient_checkpointing"]]
    longest = max(batch.slots for step in trial.batches for batch in step)
    model, _ = FastLanguageModel.from_pretrained(
        str(folder),
        max_seq_length=longest,
        dtype=torch.bfloat16,
        load_in_4bit=False,
        full_finetuning=options["full_finetuning"],
        use_gradient_checkpointing=checkpointing,
    )
    if lora:
        names = hf.lora_settings(lora)
        model = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=checkpointing, random_state=0, **names)
        hf.start_adapters(trial, model)
    elif not options["full_finetuning"]:
        model.requires_grad_(True)
    return model


def run(trial):
    # Before transformers, which it patches.
    from unsloth import FastLanguageModel

    import huggingface as hf
    import loops
    import torch
    import transformers
    from transformers import Trainer, TrainingArguments

    options = in_force(trial)
    hf.check_train(trial)
    trial.load()
    setting = hf.Setting(trial)
    model = load(trial, FastLanguageModel)
    moments = "8bit" if options["optim"] == "adamw_8bit" else None
    settings = trial.settings(torch=torch.__version__, transformers=transformers.__version__, **options)
    trial.hello(version("unsloth"), setting.name, torch.get_num_threads(), setting.precision(model, moments), settings)
    hf.tell_ready(trial, model)
    adamw = hf.optimizer(trial, setting, model, options["optim"])
    arguments = loops.arguments(trial, setting, gradient_checkpointing=options["gradient_checkpointing"] != "none", bf16=True)
    loops.trainer(trial, setting, Trainer, model, TrainingArguments(**arguments), adamw, make=packed)
    hf.tell_done(trial, setting, model)


def packed(batch):
    """Rows of several samples as Unsloth's padding-free path takes them: one row, and the lengths of its samples."""
    import huggingface as hf
    import torch

    if all(len(lengths) == 1 for lengths in batch.lengths):
        return hf.tensors(batch)
    lengths = [n for row in batch.lengths for n in row + [batch.slots - sum(row)] if n]
    return hf.tensors(batch, flatten=True) | {"packed_seq_lengths": torch.tensor(lengths, dtype=torch.int32)}


if __name__ == "__main__":
    cb.main(__file__, run)
