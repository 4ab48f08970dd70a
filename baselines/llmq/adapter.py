"""LLMQ by its Python module. It trains rows that one sample fills, as it has neither padding nor packing."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "common"))
import chronibench as cb  # noqa: E402


def check(trial):
    """Refuses what LLMQ would train as something else."""
    if trial.train["weight_decay"]:
        raise cb.Failure("LLMQ decays its embedding by a rule of its own", "train.weight_decay", "set it to 0 where LLMQ is compared")
    if trial.train["adam_epsilon"] != 1e-8:
        raise cb.Failure("LLMQ's AdamW has an epsilon of its own, 1e-8", "train.adam_epsilon", "leave it out where LLMQ is compared")
    for name in ("label_smoothing_factor", "z_loss"):
        if trial.train[name]:
            raise cb.Failure(f"{name} is not a part of LLMQ's loss", f"train.{name}", "set it to 0 where rivals are compared")
    shapes = {(batch.rows, batch.slots) for step in trial.batches for batch in step}
    full = all(lengths == [batch.slots] for step in trial.batches for batch in step for lengths in batch.lengths)
    counts = {len(step) for step in trial.batches}
    if len(shapes) != 1 or not full or len(counts) != 1:
        raise cb.Failure("rows are not all of one length and full", "data.plan", "compare LLMQ on data with `overlong: wrapped`")
    return shapes.pop() + (counts.pop(),)


def model_folder(trial):
    """A folder as LLMQ reads it: bf16 weights under Hugging Face's names; and their shapes."""
    import numpy as np

    folder = Path("model").absolute()
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, (dtype, shape, data) in cb.read_safetensors(trial.spec["model"]["weights"]).items():
        # The harness rounded them to bf16 already: the upper half is all of it.
        tensors[name] = ("BF16", shape, (np.frombuffer(data, dtype="<u4") >> 16).astype("<u2").tobytes())
    cb.write_safetensors(folder / "model.safetensors", tensors)
    return folder, {name: shape for name, (_, shape, _) in tensors.items()}


def inputs(batch):
    """Tokens and targets as LLMQ takes them; a position without a target has -100."""
    import numpy as np

    shape = (batch.rows, batch.slots)
    labels = np.array(batch.labels, dtype=np.int32).reshape(shape)
    targets = np.full(shape, cb.IGNORED, dtype=np.int32)
    targets[:, :-1] = labels[:, 1:]
    return np.array(batch.ids, dtype=np.int32).reshape(shape), targets


def model_config(trial, pyllmq):
    """The model's config under LLMQ's names, which are Hugging Face's."""
    config = json.loads(Path(trial.spec["model"]["config"]).read_text())
    names = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers")
    names += ("num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "vocab_size")
    return pyllmq.LLamaConfig(architecture=config["model_type"], dtype="bfloat16", **{name: config[name] for name in names})


def save(path, trainer):
    """LLMQ's export, as f32 in one file."""
    import numpy as np

    if path is None:
        return
    trainer.export_model("exported")
    tensors = {}
    for name, (dtype, shape, data) in cb.read_safetensors("exported/model.safetensors").items():
        if dtype == "BF16":
            data = (np.frombuffer(data, dtype="<u2").astype("<u4") << 16).tobytes()
        tensors[name] = ("F32", shape, data)
    cb.write_safetensors(path, tensors)


def run(trial):
    import numpy as np
    import pyllmq

    trial.load()
    rows, slots, micros = check(trial)
    options, train = trial.options, trial.train
    states = trial.spec.get("precision", {}).get("states", "bf16")
    folder, shapes = model_folder(trial)
    asked = pyllmq.LLamaOptions()
    asked.use_cuda_graphs = options["use_cuda_graphs"]
    asked.lmhead_chunks = options["lmhead_chunks"]
    if options["recompute_block"]:
        for name in ("recompute_swiglu", "recompute_rms_norm", "recompute_ffn", "recompute_qkv", "recompute_att"):
            setattr(asked, name, True)
    asked.momentum_type = asked.variance_type = {"bf16": "bf16", "f32": "fp32"}[states]
    geometry = {"ngpu": 1, "options": asked, "batch_size": rows, "seq_len": slots, "grad_accum": micros}
    trainer = pyllmq.LLMQTrainer(config=model_config(trial, pyllmq), **geometry)
    trainer.import_weights(str(folder / "model.safetensors"))

    precision = {"weights": "bf16", "master": "none", "moments": states, "grads": "bf16"}
    trial.hello(version("pyllmq"), "cuda", 1, precision, trial.settings(**options))
    trial.ready(shapes.items(), sum(int(np.prod(shape)) for shape in shapes.values()))
    batches = [[inputs(batch) for batch in step] for step in trial.batches]
    log = cb.StepLog(trial, cb.HostClock())
    log.start()
    for step, parts in enumerate(batches):
        for ids, targets in parts:
            trainer.step(ids, targets)
        lr = trial.lr(step)
        # Counted from 0: given 1 first, it takes the bias out as in a second step, and the first update is 0.74 of the rate.
        done = trainer.update(lr, train["adam_beta1"], train["adam_beta2"], step, 0.0, train["max_grad_norm"] or 1e9)
        save(trial.first_weights(step), trainer)
        fed = [row.tobytes() for ids, _ in parts for row in ids]
        log.end(lambda step=step, done=done, lr=lr, fed=fed: {
            "loss": done["loss"], "grad_norm": done["norm"], "digest": cb.digest(fed), "tokens": trial.counts(step), "lr": {"all": lr},
        })
    save(trial.spec.get("save_weights"), trainer)
    trial.done(peak_rss_bytes=cb.peak_rss())


if __name__ == "__main__":
    cb.main(__file__, run)
