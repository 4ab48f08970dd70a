"""Hugging Face Transformers and PEFT by TRL's SFTTrainer, by Transformers' Trainer, or by a plain loop."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "common"))
import chronibench as cb  # noqa: E402


def batches(trial):
    """A micro-batch as rows, or as one row of all."""
    import huggingface as hf

    return lambda batch: hf.tensors(batch, trial.options["padding_free"])


def sft(trial, setting, model, adamw, shared):
    """TRL's trainer. Its own data preparation is left out, as the plan's batches are ready."""
    import huggingface as hf
    import loops
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, **loops.arguments(trial, setting, **shared))
    tokenizer = hf.stand_in_tokenizer(trial)
    more = {"processing_class": tokenizer, "dataset": loops.as_dataset}
    loops.trainer(trial, setting, SFTTrainer, model, args, adamw, batches(trial), **more)


def transformers_trainer(trial, setting, model, adamw, shared):
    import loops
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(**loops.arguments(trial, setting, **shared))
    loops.trainer(trial, setting, Trainer, model, args, adamw, batches(trial))


def run(trial):
    import huggingface as hf
    import loops
    import torch
    import transformers
    import trl

    options = trial.options
    hf.check_train(trial)
    trial.load()
    setting = hf.Setting(trial)
    if options["loop"] == "sft" and setting.device.type == "cpu":
        raise cb.Failure("SFTTrainer's loss is a Triton kernel, which needs a GPU", "options.loop", "loop: trainer, or device: cuda")
    model = hf.trained_model(trial, setting, by_trainer=options["loop"] != "plain")
    moments = "8bit" if options["optim"] == "adamw_8bit" else None
    settings = trial.settings(torch=torch.__version__, transformers=transformers.__version__, **options)
    trial.hello(trl.__version__, setting.name, torch.get_num_threads(), setting.precision(model, moments), settings)
    hf.tell_ready(trial, model)
    adamw = hf.optimizer(trial, setting, model, options["optim"])
    if options["loop"] == "plain":
        compiled = torch.compile(model) if options["torch_compile"] else model
        loops.plain(trial, setting, compiled, adamw, options["padding_free"])
    else:
        way = sft if options["loop"] == "sft" else transformers_trainer
        shared = {"gradient_checkpointing": options["gradient_checkpointing"], "torch_compile": options["torch_compile"]}
        way(trial, setting, model, adamw, shared)
    hf.tell_done(trial, setting, model)


if __name__ == "__main__":
    cb.main(__file__, run)
