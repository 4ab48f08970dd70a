"""Two ways to run the plan's batches: Transformers' `Trainer`, or a class of it, and a plain loop of PyTorch."""

import contextlib

import chronibench as cb
import huggingface as hf
import torch


def plain(trial, setting, model, adamw, flatten=False):
    """Forward, backward, clip, update; nothing else."""
    taken, log = hf.Taken(model), cb.StepLog(trial, setting.clock)
    rates = hf.schedule(trial, adamw)
    trained = [p for p in model.parameters() if p.requires_grad]
    limit = trial.train["max_grad_norm"] or float("inf")
    autocast = lambda: torch.autocast(setting.device.type, torch.bfloat16) if setting.autocast else contextlib.nullcontext()  # noqa: E731
    host = [[hf.tensors(batch, flatten) for batch in step] for step in trial.batches]

    def backward(micro, targets):
        inputs = {name: tensor.to(setting.device, non_blocking=True) for name, tensor in micro.items()}
        with autocast():
            loss = model(**inputs, num_items_in_batch=targets, use_cache=False).loss
        loss.backward()
        return loss.detach()

    hf.rehearse([micro for micros in host for micro in micros], lambda micro: backward(micro, trial.counts(0)["loss"]), model, taken)
    log.start()
    for step, micros in enumerate(host):
        targets, lr = trial.counts(step)["loss"], hf.rates(adamw)
        losses = [backward(micro, targets) for micro in micros]
        norm = torch.nn.utils.clip_grad_norm_(trained, limit)
        adamw.step()
        rates.step()
        adamw.zero_grad(set_to_none=True)
        hf.save_weights(trial.first_weights(step), model)
        log.end(hf.reporter(trial, step, taken.step(len(micros)), losses, norm, lr))


class Plan(torch.utils.data.Dataset):
    """The micro-batches of the plan, one an item: batching, order and padding are done."""

    def __init__(self, trial, make):
        self.items = [make(batch) for step in trial.batches for batch in step]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def following(base):
    """A class of Transformers' `Trainer` that takes the plan's batches in the plan's order and says what its steps did."""

    class Following(base):
        def __init__(self, *args, trial, setting, plan, **kwargs):
            self.plan, self.trial, self.losses, self.norm, self.step_lr = plan, trial, [], None, {}
            self.step_log = cb.StepLog(trial, setting.clock)
            super().__init__(*args, **kwargs)

        def get_train_dataloader(self):
            pinned = self.args.device.type == "cuda"
            return torch.utils.data.DataLoader(self.plan, batch_size=None, shuffle=False, pin_memory=pinned)

        def rehearse(self, taken):
            def backward(micro):
                targets = (micro["labels"] != cb.IGNORED).sum().to(self.args.device)
                super(Following, self).training_step(self.model_wrapped, dict(micro), targets)

            hf.rehearse(self.plan.items, backward, self.model_wrapped, taken)

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            self.losses.append(loss.detach())
            return loss

        def _get_grad_norm(self, model, grad_norm=None):
            self.norm = super()._get_grad_norm(model, grad_norm=grad_norm)
            return self.norm

    return Following


def edges(trainer, taken):
    """The callback that tells the trainer's steps."""
    from transformers import TrainerCallback

    class Edges(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            trainer.rehearse(taken)
            trainer.step_log.start()

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            trainer.step_lr = hf.rates(trainer.optimizer)

        def on_step_end(self, args, state, control, **kwargs):
            step, trial = trainer.step_log.step, trainer.trial
            ids = taken.step(len(trial.batches[step]))
            losses, trainer.losses = trainer.losses, []
            hf.save_weights(trial.first_weights(step), trainer.model)
            trainer.step_log.end(hf.reporter(trial, step, ids, losses, trainer.norm, trainer.step_lr))

    return Edges()


def arguments(trial, setting, **more):
    """`TrainingArguments` of a trial, for any class of them."""
    micros = {len(step) for step in trial.batches}
    if len(micros) != 1:
        raise cb.Failure("steps of unequal numbers of micro-batches", "data.plan", "prepare the run again")
    return dict(
        output_dir="trainer",
        per_device_train_batch_size=trial.batches[0][0].rows,
        gradient_accumulation_steps=micros.pop(),
        max_steps=trial.steps,
        max_grad_norm=trial.train["max_grad_norm"],
        learning_rate=trial.train["learning_rate"],
        bf16=setting.dtype == torch.bfloat16 and (setting.autocast or bool(trial.lora)),
        use_cpu=setting.device.type == "cpu",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        remove_unused_columns=False,
        seed=0,
    ) | more


def as_dataset(plan):
    """The plan as a `datasets.Dataset`, for trainers that refuse any other; batches are still taken from the plan."""
    from datasets import Dataset

    return Dataset.from_list([{name: item[name].flatten().tolist() for name in ("input_ids", "labels")} for item in plan.items])


def trainer(trial, setting, base, model, args, adamw, make=hf.tensors, dataset=lambda plan: plan, **kwargs):
    """Builds the trainer and runs it through the plan: `make` is a micro-batch as the model takes it, `dataset` the plan as the
    trainer wants to be given it."""
    taken, plan = hf.Taken(model), Plan(trial, make)
    running = following(base)(
        model=model,
        args=args,
        train_dataset=dataset(plan),
        data_collator=lambda item: item,
        optimizers=(adamw, hf.schedule(trial, adamw)),
        trial=trial,
        setting=setting,
        plan=plan,
        **kwargs,
    )
    running.add_callback(edges(running, taken))
    running.train()
    return running
