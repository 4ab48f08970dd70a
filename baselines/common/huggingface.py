"""What the adapters on PyTorch and Hugging Face share: model, adapters, batches, optimizer, what a step reports, saved weights.

The harness's files come in, the stack's own objects come out; nothing here is part of any stack's computation.
"""

import os
import time
from pathlib import Path

import chronibench as cb
import torch

NO_DECAY_DIMS = 1


class CudaClock:
    """Times of work that a GPU does later: events on its stream, and a wait at the edges alone."""

    def begin(self):
        self.anchor, self.anchor_ns = self.mark(), time.monotonic_ns()
        return self.anchor_ns

    def mark(self):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def end(self):
        torch.cuda.synchronize()
        return time.monotonic_ns()

    def ns(self, mark):
        return self.anchor_ns + int(self.anchor.elapsed_time(mark) * 1e6)


class Setting:
    """Device and number formats of a trial.

    `states` is what AdamW keeps. bf16: weights, gradients and moments are bf16. f32: what trains is f32, and autocast makes the
    bf16 that products read. 8bit: bf16 weights, 8-bit moments by bitsandbytes. Under LoRA the base is bf16 in each.
    """

    def __init__(self, trial, states="bf16"):
        self.device = torch.device(trial.spec["device"])
        asked = trial.spec.get("precision", {})
        on_gpu = self.device.type == "cuda"
        if on_gpu and not torch.cuda.is_available():
            raise cb.Failure("PyTorch finds no GPU", trial.spec["device"], "see `python -m torch.utils.collect_env`", cb.EXIT_ENVIRONMENT)
        if on_gpu:
            torch.cuda.set_device(self.device.index or 0)
            torch.cuda.reset_peak_memory_stats()
        elif trial.spec.get("threads"):
            torch.set_num_threads(trial.spec["threads"])
        self.dtype = torch.float32 if asked.get("dtype", "bf16" if on_gpu else "f32") == "f32" else torch.bfloat16
        self.states = asked.get("states") or (states if self.dtype == torch.bfloat16 else "f32")
        self.autocast = self.dtype == torch.bfloat16 and self.states == "f32"
        full_masters = self.autocast and not trial.lora
        self.load_dtype = torch.float32 if full_masters else self.dtype
        self.clock = CudaClock() if on_gpu else cb.HostClock()

    @property
    def name(self):
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def precision(self, model, moments=None):
        """As the model's parameters really are."""
        short = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
        trained = {short[p.dtype] for p in model.parameters() if p.requires_grad}
        kept = "+".join(sorted(trained))
        weights = "bf16" if self.dtype == torch.bfloat16 else "f32"
        master = "none" if kept == weights else kept
        return {"weights": weights, "master": master, "moments": moments or ("8bit" if self.states == "8bit" else kept), "grads": kept}


def check_train(trial):
    """Refuses what these stacks' losses do not have."""
    for name in ("label_smoothing_factor", "z_loss"):
        if trial.train[name]:
            raise cb.Failure(f"{name} is not a part of this stack's loss", f"train.{name}", "set it to 0 where rivals are compared")


def model_folder(trial):
    """A folder as `from_pretrained` reads it: the config, and the starting weights by a link."""
    folder = Path("model").absolute()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(Path(trial.spec["model"]["config"]).read_bytes())
    link = folder / "model.safetensors"
    if not link.exists():
        os.symlink(trial.spec["model"]["weights"], link)
    return folder


def check_attention(name):
    import importlib.util

    if name == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise cb.Failure("no Python module 'flash_attn'", "options.attention", "install flash-attn, or use sdpa", cb.EXIT_ENVIRONMENT)


def load_model(trial, setting, attention):
    """The stack's model with the harness's weights, on the device."""
    from transformers import AutoModelForCausalLM

    check_attention(attention)
    folder = model_folder(trial)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=setting.load_dtype, attn_implementation=attention)
    return model.to(setting.device)


def trained_model(trial, setting, by_trainer=False):
    """`load_model` with adapters and checkpointing as the arm's options say; a `Trainer` turns checkpointing on by itself."""
    model = load_model(trial, setting, trial.options["attention"])
    if trial.lora:
        model = add_lora(trial, setting, model)
    if trial.options["gradient_checkpointing"]:
        if not by_trainer:
            model.gradient_checkpointing_enable()
        if trial.lora:
            model.enable_input_require_grads()
    return model


def lora_settings(lora):
    """A method's settings as PEFT's `LoraConfig` takes them."""
    names = ("r", "lora_alpha", "target_modules", "use_rslora")
    return {name: lora[name] for name in names} | {"lora_dropout": 0.0, "bias": "none"}


def add_lora(trial, setting, model):
    """PEFT's adapters, starting from the harness's."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", **lora_settings(trial.lora))
    model = get_peft_model(model, config, autocast_adapter_dtype=setting.states == "f32")
    start_adapters(trial, model)
    return model


def start_adapters(trial, model):
    """Copies the harness's adapters over those that PEFT drew."""
    from safetensors.torch import load_file

    start = load_file(trial.lora["adapter_weights"])
    trained = dict(named_trainable(model))
    if set(start) != set(trained):
        odd = sorted(set(start) ^ set(trained))[:3]
        raise cb.Failure(f"other adapters than the harness's: {', '.join(odd)} …", "method.target_modules", "use targets that this stack has")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start[name])


def plain_name(name):
    """A parameter's name without what wrappers add to it."""
    return name.replace("_orig_mod.", "").replace(".default.weight", ".weight")


def saved_name(name):
    """Of a base model below PEFT, the name that it has without PEFT."""
    name = plain_name(name)
    if ".lora_" in name:
        return name
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def named_trainable(model):
    """What trains, by its Hugging Face or PEFT name; a tied tensor once."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield saved_name(name), parameter


def tell_ready(trial, model):
    total = sum(p.numel() for p in model.parameters())
    trial.ready([(name, p.shape) for name, p in named_trainable(model)], total)


def save_weights(path, model):
    """Everything in f32 under Hugging Face's and PEFT's names, complete or not at all."""
    from safetensors.torch import save_file

    if path:
        tensors = {saved_name(n): p.detach().to("cpu", torch.float32).contiguous() for n, p in model.named_parameters()}
        save_file(tensors, f"{path}.part")
        os.replace(f"{path}.part", path)


def groups(trial, model):
    """Parameter groups: decay for matrices alone, and under LoRA+ a rate of its own for B. Name → rate of a group is `lr`."""
    ratio, base, decay = (trial.lora or {}).get("loraplus_lr_ratio", 1.0), trial.train["learning_rate"], trial.train["weight_decay"]
    sorted_in = {}
    for name, parameter in named_trainable(model):
        kind = "lora_B" if ".lora_B." in name else "lora_A" if ".lora_A." in name else "all"
        decays = parameter.ndim > NO_DECAY_DIMS
        sorted_in.setdefault((kind, decays), []).append(parameter)
    return [
        {"params": parameters, "lr": base * (ratio if kind == "lora_B" else 1.0), "weight_decay": decay if decays else 0.0, "kind": kind}
        for (kind, decays), parameters in sorted_in.items()
    ]


def optimizer(trial, setting, model, optim):
    """AdamW as `TrainingArguments.optim` names it."""
    t = trial.train
    shared = {"betas": (t["adam_beta1"], t["adam_beta2"]), "eps": t["adam_epsilon"]}
    parameters = groups(trial, model)
    if setting.states == "8bit" or optim == "adamw_8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, lr=t["learning_rate"], **shared)
    return torch.optim.AdamW(parameters, lr=t["learning_rate"], fused=optim == "adamw_torch_fused", **shared)


def schedule(trial, adamw):
    """The harness's schedule on every group."""
    return torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: cb.lr_factor(trial.train, step, trial.scheduled))


def rates(adamw):
    return {group["kind"]: group["lr"] for group in adamw.param_groups}


def tensors(batch, flatten=False):
    """A micro-batch as these models take it, on the host.

    Rows of one sample each get an attention mask, as every collator gives; rows of several get positions that restart, from
    which the model keeps the samples apart. `flatten` makes one row of all, for attention by lengths.
    """
    shape = (1, -1) if flatten else (batch.rows, batch.slots)
    make = lambda values: torch.tensor(values, dtype=torch.int64).view(shape)  # noqa: E731
    made = {"input_ids": make(batch.ids), "labels": make(batch.labels)}
    if flatten or any(len(lengths) > 1 for lengths in batch.lengths):
        return made | {"position_ids": make(batch.positions)}
    return made | {"attention_mask": make(batch.real_mask)}


def rehearse(micros, backward, model, taken):
    """Runs a micro-batch of every shape forward and backward before the first step, without an update: what compiles or is tuned by
    shape would otherwise do so inside a timed step. The native arm rehearses its shapes, too."""
    firsts = {}
    for micro in micros:
        firsts.setdefault(tuple((name, tuple(tensor.shape)) for name, tensor in micro.items()), micro)
    model.train()
    for micro in firsts.values():
        backward(micro)
    model.zero_grad(set_to_none=True)
    # They were of no step.
    taken.ids = []


class Taken:
    """Copies of the ids as they entered the model, by a hook in front of its forward pass; digested when a window is over."""

    def __init__(self, model):
        self.ids = []
        model.register_forward_pre_hook(self.take, with_kwargs=True)

    def take(self, module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.ids.append(ids.detach().to(torch.int32, copy=True))

    def step(self, count):
        """The ids of the last `count` micro-batches."""
        if len(self.ids) < count:
            raise cb.Failure(f"the model was called {len(self.ids)} times for {count} micro-batches", "forward", "report this")
        taken, self.ids = self.ids[:count], self.ids[count:]
        return taken


def digest(batches, taken):
    """Digest and counts of a step: the ids that were taken, in the rows of the plan."""
    rows = []
    for batch, ids in zip(batches, taken):
        rows += [row.tobytes() for row in ids.cpu().numpy().reshape(-1, batch.slots)]
    return cb.digest(rows)


def reporter(trial, step, taken, losses, norm, lr):
    """What a step has to report, once the device is done: losses of micro-batches are shares of the step's mean."""

    def report():
        loss = float(torch.stack([loss.float() for loss in losses]).sum())
        fields = {"loss": loss, "grad_norm": float(norm), "lr": lr, "tokens": trial.counts(step)}
        return fields | {"digest": digest(trial.batches[step], taken)}

    return report


def tell_done(trial, setting, model):
    peak = {"peak_rss_bytes": cb.peak_rss()}
    if setting.device.type == "cuda":
        gpu = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        peak["peak_gpu_bytes"] = gpu
    save_weights(trial.spec.get("save_weights"), model)
    trial.done(**peak)


def stand_in_tokenizer(trial):
    """A tokenizer for trainers that ask for one; nothing is tokenised by it."""
    import json

    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    size = json.loads(Path(trial.spec["model"]["config"]).read_text())["vocab_size"]
    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(size)}, unk_token="<0>"))
    # Two tokens, for a padding token that also ends is replaced by a new one in some trainers, and the model grows by it.
    pad, end = f"<{trial.pad}>", f"<{int(trial.pad == 0)}>"
    # Loaded again as a family's own class, it gets that family's unknown token where it has none, and is longer than the model.
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad, eos_token=end, unk_token=end)
