"""Hugging Face Transformers and PEFT on the processor."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "common"))
import chronibench as cb  # noqa: E402


def run(trial):
    import huggingface as hf
    import loops
    import torch
    import transformers

    options = trial.options
    hf.check_train(trial)
    trial.load()
    setting = hf.Setting(trial)
    model = hf.trained_model(trial, setting)
    settings = trial.settings(torch=torch.__version__, **options)
    trial.hello(transformers.__version__, setting.name, torch.get_num_threads(), setting.precision(model), settings)
    hf.tell_ready(trial, model)
    adamw = hf.optimizer(trial, setting, model, options["optim"])
    loops.plain(trial, setting, torch.compile(model) if options["torch_compile"] else model, adamw)
    hf.tell_done(trial, setting, model)


if __name__ == "__main__":
    cb.main(__file__, run)
