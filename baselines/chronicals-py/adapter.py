"""The package chronicals of arXiv 2601.02609, as published: `ChronicalsTrainer` on a Transformers model, with PEFT's adapters under LoRA.

Its configuration keeps its defaults in all that the specification leaves open, but for

- `fp8`: it replaces the parameters of linear layers after the optimizer was given the old ones, so that they would never move;
- the compiler's warm-up: it runs five batches and makes one update before the first step. `rehearse` runs every shape without one;
- its schedules, which are other than the harness's: the trainer calls the one that it is given after every update;
- checkpoints and reports, which are the harness's.

One default says what is not so: by `ce_implementation` the loss is `cce`, but the trainer of 0.1.4 imports a name that the module of
that loss does not have, takes the loss for missing, and trains on the model's own, which is Liger's where that patches it.

What differs from other arms and is not told by an option is in `settings`.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "common"))
import chronibench as cb  # noqa: E402


def check(trial, setting):
    """Refuses what the trainer would train as something else, or on another device."""
    import torch

    options = trial.options
    if setting.device.type == "cpu":
        if torch.cuda.is_available():
            raise cb.Failure("its trainer takes a GPU where there is one", trial.spec["device"], "device: cuda, or CUDA_VISIBLE_DEVICES=")
        if options["liger"] != "off":
            raise cb.Failure("Liger's kernels need a GPU", "options.liger", "liger: off, or device: cuda")
    groups = trial.lora and trial.lora["loraplus_lr_ratio"] != 1.0
    if groups and trial.train["max_grad_norm"] and options["optimizer_type"] == "fused_adamw":
        hint = "optimizer_type: adamw, or max_grad_norm: 0"
        raise cb.Failure("FusedAdamW clips the groups of LoRA+ one by one, not by the global norm", "options.optimizer_type", hint)


def accumulation(trial):
    counts = {len(step) for step in trial.batches}
    if len(counts) != 1:
        raise cb.Failure("steps of unequal numbers of micro-batches", "data.plan", "prepare the run again")
    return counts.pop()


def configuration(trial, setting):
    """Its `TrainingConfig`: defaults, but for what is the specification's."""
    import torch
    from chronicals.config import TrainingConfig

    train, options = trial.train, trial.options
    return TrainingConfig(
        output_dir="trainer",
        num_train_epochs=1,
        max_steps=trial.steps,
        per_device_train_batch_size=trial.batches[0][0].rows,
        gradient_accumulation_steps=accumulation(trial),
        max_seq_length=max(batch.slots for step in trial.batches for batch in step),
        optimizer_type=options["optimizer_type"],
        learning_rate=train["learning_rate"],
        weight_decay=train["weight_decay"],
        adam_beta1=train["adam_beta1"],
        adam_beta2=train["adam_beta2"],
        adam_epsilon=train["adam_epsilon"],
        # 0 is no clipping to the harness, and to its optimizer gradients of 0.
        max_grad_norm=train["max_grad_norm"] or float("inf"),
        # A name that it does not know: it makes no schedule, which would change the rates.
        lr_scheduler_type="given",
        bf16=setting.dtype == torch.bfloat16,
        fp8=False,
        # It would drop the attention mask of padded rows.
        use_sequence_packing=False,
        use_gradient_checkpointing=options["gradient_checkpointing"],
        use_torch_compile=options["torch_compile"],
        torch_compile_warmup_steps=0,
        use_liger_kernel=options["liger"] != "off",
        logging_steps=trial.steps + 1,
        save_steps=0,
        visual_reporting=False,
    )


def liger_before(trial, config):
    """The trainer's own patching, of a model that is not yet made: norms and MLPs become Liger's too."""
    from chronicals.training import ChronicalsTrainer

    model_type = json.loads(Path(trial.spec["model"]["config"]).read_text())["model_type"]
    model = SimpleNamespace(config=SimpleNamespace(model_type=model_type))
    ChronicalsTrainer._setup_liger_kernel(SimpleNamespace(args=config, model=model))


def make_trainer(trial, config, model):
    """The trainer with the plan's batches; it takes no optimizer, so that LoRA+ is put in place behind it."""
    import huggingface as hf
    import loops
    import torch
    from chronicals.training import ChronicalsTrainer

    class Trainer(ChronicalsTrainer):
        def save_checkpoint(self, name):
            """Weights are saved where the harness says, and nowhere else."""

    # A micro-batch an item: order, rows and padding are the plan's.
    plan, pinned = loops.Plan(trial, hf.tensors), torch.cuda.is_available()
    loader = torch.utils.data.DataLoader(plan, batch_size=None, shuffle=False, pin_memory=pinned)
    trainer = Trainer(model, config, loader)
    if trial.lora and trial.lora["loraplus_lr_ratio"] != 1.0:
        trainer.optimizer = lora_plus(trial, trainer)
    return trainer


def lora_plus(trial, trainer):
    """The trainer's kind of optimizer on the package's groups; by its default they would not decay."""
    from chronicals.optimizers.lora_plus_optimizer import LoRAPlusParameterGroups

    old, train = trainer.optimizer, trial.train
    decay = {"weight_decay": train["weight_decay"], "weight_decay_lora": train["weight_decay"]}
    groups = LoRAPlusParameterGroups(trainer.model).get_param_groups(train["learning_rate"], trial.lora["loraplus_lr_ratio"], **decay)
    # Whatever else the trainer gave its own optimizer.
    shared = {name: old.defaults[name] for name in ("lr", "betas", "eps", "max_grad_norm", "fused") if name in old.defaults}
    return type(old)(groups, **shared)


class Norm:
    """The norm that the trainer computes where it clips: in `FusedAdamW`, group by group, or by PyTorch's function."""

    def __init__(self, trainer):
        import torch

        self.found = []
        if trainer.use_external_grad_clip:
            torch.nn.utils.clip_grad_norm_ = self.keeping(torch.nn.utils.clip_grad_norm_)
        else:
            trainer.optimizer._compute_grad_norm_gpu = self.keeping(trainer.optimizer._compute_grad_norm_gpu)

    def keeping(self, compute):
        def kept(*args, **kwargs):
            norm = compute(*args, **kwargs)
            self.found.append(norm.detach())
            return norm

        return kept

    def step(self):
        """Of all groups of the step."""
        import torch

        found, self.found = self.found, []
        return torch.linalg.vector_norm(torch.stack([norm.float() for norm in found]))


class Edges:
    """The harness's schedule. The trainer calls it last in every step, so that here the step is told."""

    def __init__(self, trial, setting, trainer, model):
        import huggingface as hf

        self.trial, self.trainer, self.model = trial, trainer, model
        self.rates = hf.schedule(trial, trainer.optimizer)
        self.taken, self.norm, self.losses = hf.Taken(trainer.model), Norm(trainer), []
        self.log = cb.StepLog(trial, setting.clock)
        trainer.model.register_forward_hook(lambda module, args, output: self.losses.append(output.loss.detach()))

    def start(self):
        """The forward and backward pass of its loop, once for every shape; then the first step begins."""
        import huggingface as hf
        import torch

        trainer = self.trainer

        def backward(micro):
            micro = {name: tensor.to(trainer.device) for name, tensor in micro.items()}
            with torch.autocast(trainer.device.type, enabled=trainer._use_autocast, dtype=trainer._autocast_dtype):
                loss = trainer.model(**micro).loss
            loss.backward()

        hf.rehearse(trainer.train_dataloader.dataset.items, backward, trainer.model, self.taken)
        self.losses = []
        self.log.start()

    def lr(self):
        rates = [group["lr"] for group in self.trainer.optimizer.param_groups]
        return {"lora_A": rates[0], "lora_B": rates[-1]} if self.trial.lora else {"all": rates[0]}

    def step(self):
        import huggingface as hf

        step, lr = self.log.step, self.lr()
        self.rates.step()
        count = len(self.trial.batches[step])
        # A step's loss is to the trainer the mean over its micro-batches.
        losses, self.losses = [loss / count for loss in self.losses], []
        hf.save_weights(self.trial.first_weights(step), self.model)
        self.log.end(hf.reporter(self.trial, step, self.taken.step(count), losses, self.norm.step(), lr))


def has_liger(model):
    """The trainer says that it has Liger for models whose code its patch does not touch, too."""
    return any(type(module).forward.__module__.startswith("liger_kernel") for module in model.modules())


def settings(trial, trainer):
    """What is in force: some of what is asked for, the trainer leaves out without more than a line on standard output."""
    import torch
    import transformers

    said = {"torch": torch.__version__, "transformers": transformers.__version__, **trial.options}
    said["torch_compile"] = trainer.is_compiled
    said["liger"] = trial.options["liger"] if has_liger(trainer.model) else "off"
    said["optimizer_class"] = type(trainer.optimizer).__name__
    said["cut_cross_entropy"] = trainer.use_cce
    # The mean of each micro-batch, and the mean of these.
    said["loss_normalization"] = "step_loss_tokens" if trainer.args.gradient_accumulation_steps == 1 else "micro_batch_mean"
    if not trial.lora and trial.train["weight_decay"]:
        # Norms and biases too, where others decay matrices alone.
        said["weight_decay_of"] = "all"
    return trial.settings(**said)


def run(trial):
    import huggingface as hf
    import torch

    hf.check_train(trial)
    trial.load()
    setting = hf.Setting(trial)
    check(trial, setting)
    config = configuration(trial, setting)
    if trial.options["liger"] == "before_load":
        liger_before(trial, config)
    model = hf.trained_model(trial, setting, by_trainer=True)
    trainer = make_trainer(trial, config, model)
    edges = trainer.scheduler = Edges(trial, setting, trainer, model)
    trial.hello(version("chronicals"), setting.name, torch.get_num_threads(), setting.precision(model), settings(trial, trainer))
    hf.tell_ready(trial, model)
    edges.start()
    trainer.train()
    hf.tell_done(trial, setting, model)


if __name__ == "__main__":
    cb.main(__file__, run)
