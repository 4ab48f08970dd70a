"""An arm that trains nothing: it plays a script of known times and known faults, by the code that all adapters share."""

import array
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "common"))
import chronibench as cb  # noqa: E402


class ScriptedClock(cb.HostClock):
    """Step n ends n + 1 step lengths after the start, exactly; `wait` sleeps until then."""

    def __init__(self, step_ms):
        self.length, self.edges, self.origin = int(step_ms * 1e6), 0, time.monotonic_ns()

    def wait(self):
        self.edges += 1
        time.sleep(max(0, self.origin + self.end() - time.monotonic_ns()) / 1e9)

    def end(self):
        return self.length * self.edges

    begin = mark = end


def trainable(trial, weights):
    """Name → shape of what a trial trains: the model's tensors, or the adapters'."""
    source = trial.lora["adapter_weights"] if trial.lora else trial.spec["model"]["weights"]
    return {name: shape for name, (_, shape, _) in cb.read_safetensors(source).items()}


def elements(shape):
    total = 1
    for extent in shape:
        total *= extent
    return total


def misbehave(trial, behaviour, step):
    """What the script says for a step, for faults that are not of its report."""
    if behaviour == "crash":
        print("the mock crashes, as its script says", file=sys.stderr, flush=True)
        os.abort()
    if behaviour == "error":
        raise cb.Failure("the mock fails, as its script says", f"step {step}", "change the script")
    if behaviour == "out_of_memory":
        raise MemoryError("CUDA out of memory. Tried to allocate 20.00 GiB, as the mock's script says")
    if behaviour == "partial_line":
        os.write(trial.events.file, b'{"event": "step", "st')
        os._exit(0)
    once = step == trial.options["at_step"]
    if behaviour == "grandchild" and once:
        subprocess.Popen(["sleep", "600"])
    if behaviour == "garbage":
        trial.events.line("the mock talks nonsense, as its script says")
    if behaviour == "huge_output" and once:
        sys.stderr.write("words without end\n" * 1_000_000)
    while behaviour == "hang":
        time.sleep(1)


def report(trial, step, behaviour):
    """The report of a step, true but for what the script says."""
    rows = []
    for batch in trial.batches[step]:
        rows += [cb.ids_bytes(batch.ids[r * batch.slots : (r + 1) * batch.slots]) for r in range(batch.rows)]
    counts = trial.counts(step)
    if behaviour == "wrong_counts":
        counts["real"] += 1
    lr = {"all": trial.lr(step)}
    if trial.lora:
        lr = {"lora_A": trial.lr(step), "lora_B": trial.lr(step) * trial.lora["loraplus_lr_ratio"]}
    samples = trial.samples(step)
    return {
        "loss": 6.0 - 3.0 * (step + 1) / trial.scheduled,
        "grad_norm": 1.0,
        "samples": samples[::-1] + [0] if behaviour == "wrong_samples" else samples,
        "digest": "0" * 64 if behaviour == "wrong_digest" else cb.digest(rows),
        "tokens": counts,
        "lr": lr,
    }


def save(trial, path, moved):
    """The starting weights, with every tensor of `moved` shifted a little."""
    files = [trial.spec["model"]["weights"]] + ([trial.lora["adapter_weights"]] if trial.lora else [])
    tensors = {}
    for file in files:
        for name, (dtype, shape, data) in cb.read_safetensors(file).items():
            values = array.array("f", bytes(data))
            if name in moved:
                values = array.array("f", [v + 1e-3 for v in values])
            tensors[name] = (dtype, shape, values.tobytes())
    cb.write_safetensors(path, tensors)


def run(trial):
    options, lora = trial.options, trial.lora
    trial.load()
    weights = cb.read_safetensors(trial.spec["model"]["weights"])
    trained = trainable(trial, weights)
    total = sum(elements(shape) for _, shape, _ in weights.values())
    total += sum(map(elements, trained.values())) if lora else 0
    precision = {"weights": "f32", "master": "none", "moments": "f32", "grads": "f32"}
    version = ".".join(map(str, sys.version_info[:3]))
    trial.hello(version, "cpu", trial.spec.get("threads") or 1, precision, trial.settings())
    trial.ready(trained.items(), total)

    clock = ScriptedClock(options["step_ms"])
    log = cb.StepLog(trial, clock)
    log.start()
    for step in range(trial.steps):
        behaviour = options["behaviour"] if step >= options["at_step"] else "honest"
        misbehave(trial, behaviour, step)
        clock.wait()
        log.end(lambda step=step, behaviour=behaviour: report(trial, step, behaviour))
    if options["behaviour"] == "no_done":
        return
    save(trial, trial.spec["save_weights"], {} if options["behaviour"] == "frozen" else trained)
    trial.done(peak_rss_bytes=cb.peak_rss())


if __name__ == "__main__":
    cb.main(__file__, run)
