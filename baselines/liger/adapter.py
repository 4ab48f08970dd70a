"""Hugging Face Transformers and PEFT with Liger's kernels in the model."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "common"))
import chronibench as cb  # noqa: E402


def patch(trial):
    """Liger's kernels in place of the model's own; before the model is made."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as kinds

    kind = json.loads(Path(trial.spec["model"]["config"]).read_text())["model_type"]
    if kind not in kinds:
        raise cb.Failure(f"Liger has no kernels for model_type '{kind}'", "model.config", f"one of {', '.join(sorted(kinds))}")
    fused = trial.options["fused_linear_cross_entropy"]
    kinds[kind](rope=True, rms_norm=True, swiglu=True, cross_entropy=not fused, fused_linear_cross_entropy=fused)


def run(trial):
    import huggingface as hf
    import loops
    import torch
    import transformers
    from transformers import Trainer, TrainingArguments

    options = trial.options
    hf.check_train(trial)
    trial.load()
    setting = hf.Setting(trial)
    patch(trial)
    model = hf.trained_model(trial, setting, by_trainer=options["loop"] != "plain")
    moments = "8bit" if options["optim"] == "adamw_8bit" else None
    settings = trial.settings(torch=torch.__version__, transformers=transformers.__version__, **options)
    trial.hello(version("liger-kernel"), setting.name, torch.get_num_threads(), setting.precision(model, moments), settings)
    hf.tell_ready(trial, model)
    adamw = hf.optimizer(trial, setting, model, options["optim"])
    flatten = options["padding_free"]
    if options["loop"] == "plain":
        loops.plain(trial, setting, torch.compile(model) if options["torch_compile"] else model, adamw, flatten)
    else:
        more = {"gradient_checkpointing": options["gradient_checkpointing"], "torch_compile": options["torch_compile"]}
        args = TrainingArguments(**loops.arguments(trial, setting, **more))
        loops.trainer(trial, setting, Trainer, model, args, adamw, lambda batch: hf.tensors(batch, flatten))
    hf.tell_done(trial, setting, model)


if __name__ == "__main__":
    cb.main(__file__, run)
