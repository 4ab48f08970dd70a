"""The harness's protocol in Python, with nothing but the standard library.

An arm is started as `adapter.py --spec spec.json --events events.jsonl`. It reads the specification, takes tokens and batches from
the files that it names, and appends events. The formats are those of the Rust crate `chronibench-protocol`, to the bit:
token store, batch plan, digest of a batch, schedule of the learning rate.
"""

import argparse
import array
import ctypes
import hashlib
import json
import math
import os
import re
import signal
import struct
import sys
import time
from pathlib import Path

PROTOCOL = "chronibench.protocol/1"
IGNORED = -100
EXIT_TRIAL, EXIT_ENVIRONMENT = 6, 5


class Failure(Exception):
    """Something that the user can mend; it becomes the trial's `error` event."""

    def __init__(self, what, where, hint, code=EXIT_TRIAL):
        super().__init__(what)
        self.what, self.where, self.hint, self.code = what, where, hint, code


# ---- files -----------------------------------------------------------------------------------------------------------


def read_safetensors(path):
    """Name → (dtype, shape, bytes) of a safetensors file."""
    data = memoryview(Path(path).read_bytes())
    if len(data) < 8 or struct.unpack("<Q", data[:8])[0] > len(data) - 8:
        raise Failure("not a safetensors file", str(path), "prepare the run again")
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(bytes(data[8:start]))
    header.pop("__metadata__", None)
    tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        if start + end > len(data):
            raise Failure("the file ends early", str(path), "prepare the run again")
        tensors[name] = (info["dtype"], info["shape"], data[start + begin : start + end])
    return tensors


def write_safetensors(path, tensors):
    """Writes name → (dtype, shape, bytes), complete or not at all."""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = f"{path}.part"
    with open(part, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)
    os.replace(part, path)


class TokenStore:
    """All samples as token ids: `ids` and `mask` end to end, sample s is `offsets[s]:offsets[s + 1]`."""

    def __init__(self, path):
        tensors = read_safetensors(path)
        parts = {}
        for name, dtype, code in (("input_ids", "U32", "I"), ("loss_mask", "U8", "B"), ("offsets", "U64", "Q")):
            if tensors.get(name, ("nothing",))[0] != dtype:
                raise Failure(f"no tensor {name} of type {dtype}", str(path), "prepare the run again")
            parts[name] = array.array(code)
            parts[name].frombytes(tensors[name][2])
            if sys.byteorder == "big":
                parts[name].byteswap()
        self.ids, self.mask, self.offsets = parts["input_ids"], parts["loss_mask"], parts["offsets"]
        fits = self.offsets and self.offsets[0] == 0 and self.offsets[-1] == len(self.ids) == len(self.mask)
        if not fits or any(a > b for a, b in zip(self.offsets, self.offsets[1:])):
            raise Failure("offsets, ids and mask do not fit together", str(path), "prepare the run again")
        self.sha256 = hashlib.sha256(b"".join(bytes(tensors[n][2]) for n in ("input_ids", "loss_mask", "offsets"))).hexdigest()

    def sample(self, s):
        """Ids and loss mask of sample `s`."""
        span = slice(self.offsets[s], self.offsets[s + 1])
        return self.ids[span], self.mask[span]


class Batch:
    """One micro-batch: `rows` rows of `slots` positions, row after row in flat arrays.

    `labels` are Hugging Face's: the id at its own position, IGNORED where nothing is learned — the model shifts — so that the
    first token of a sample is no target of the one before it. `positions` restart with every sample and in the padding.
    """

    def __init__(self, micro, tokens, pad):
        self.rows, self.slots = len(micro["rows"]), micro["row_slots"]
        self.ids, self.labels, self.positions = array.array("q"), array.array("q"), array.array("q")
        self.real_mask, self.lengths = array.array("q"), []
        self.samples = [list(row) for row in micro["rows"]]
        for row in micro["rows"]:
            lengths, used = [], 0
            for s in row:
                ids, mask = tokens.sample(s)
                self.ids.extend(ids.tolist())
                self.labels.extend(i if m and at else IGNORED for at, (i, m) in enumerate(zip(ids, mask)))
                self.positions.extend(range(len(ids)))
                lengths.append(len(ids))
                used += len(ids)
            empty = self.slots - used
            if empty < 0:
                raise Failure("a row is overfull", "data.plan", "make the plan again from this scenario's data")
            self.ids.extend([pad] * empty)
            self.labels.extend([IGNORED] * empty)
            self.positions.extend(range(empty))
            self.real_mask.extend([1] * used + [0] * empty)
            self.lengths.append(lengths)

    @property
    def counts(self):
        """Slots, real tokens and targets."""
        targets = len(self.labels) - self.labels.count(IGNORED)
        return {"slots": self.rows * self.slots, "real": sum(map(sum, self.lengths)), "loss": targets}


def digest(rows):
    """SHA-256 over rows of ids: each its length and then its ids, little-endian 32 bits. `rows` are bytes of such ids."""
    total = hashlib.sha256()
    for row in rows:
        total.update(struct.pack("<I", len(row) // 4))
        total.update(row)
    return total.hexdigest()


def ids_bytes(ids):
    """Ids as little-endian 32 bits."""
    return struct.pack(f"<{len(ids)}I", *ids)


def lr_factor(train, step, total):
    """Learning-rate factor of step `step` (from 0) of `total`, as `TrainArgs::lr_factor` has it."""
    warmup = train["warmup_steps"]
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(total - warmup, 1)
    kind = train["lr_scheduler_type"]
    if kind == "constant":
        return 1.0
    return 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def peak_rss():
    """Most memory that this process had resident, bytes; None where the system does not tell."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(match[1]) * 1024 if match else None


# ---- events ----------------------------------------------------------------------------------------------------------


class Events:
    """The event file: a line is one write, so that none is ever seen in part."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)

    def line(self, text):
        data = (text + "\n").encode()
        while data:
            data = data[os.write(self.file, data) :]

    def tell(self, event, **fields):
        self.line(json.dumps({"event": event, **fields}))


class HostClock:
    """Times of work that is done when a call returns."""

    def begin(self):
        self.began = time.monotonic_ns()
        return self.began

    def mark(self):
        return time.monotonic_ns()

    def end(self):
        return time.monotonic_ns()

    def ns(self, mark):
        return mark


class StepLog:
    """Tells steps and windows. Steps follow each other without a gap: whatever an arm does between two steps is time of
    the second. The device is waited for at the edges of windows and after untimed steps alone; what a step has to report is a
    function that is called behind such an edge."""

    def __init__(self, trial, clock):
        self.trial, self.clock, self.measure = trial, clock, trial.measure
        self.step, self.pending = 0, []

    def start(self):
        """Just before the first step, and by itself after every edge."""
        self.begin_ns = self.clock.begin()

    @property
    def timed(self):
        return self.step >= self.measure["untimed_steps"]

    def end(self, report):
        """A step has been given to the device. `report()` is its loss, grad_norm, digest, tokens and lr."""
        self.pending.append((self.step, self.clock.mark(), report))
        timed, size = self.timed, self.measure["window_steps"] if self.timed else 1
        self.step += 1
        if len(self.pending) < size:
            return
        end_ns = self.clock.end()
        ends = [min(self.clock.ns(mark), end_ns) for _, mark, _ in self.pending[:-1]] + [end_ns]
        starts = [self.begin_ns] + ends[:-1]
        for (step, _, report), start, end in zip(self.pending, starts, ends):
            phase = "timed" if timed else "untimed"
            fields = {"samples": self.trial.samples(step), **report()}
            self.trial.events.tell("step", step=step, phase=phase, start_ns=start, end_ns=end, **fields)
        if timed:
            first = self.pending[0][0]
            index = (first - self.measure["untimed_steps"]) // size
            edges = {"start_ns": self.begin_ns, "end_ns": end_ns}
            self.trial.events.tell("window", index=index, first_step=first, last_step=self.step - 1, **edges)
        self.pending = []
        self.start()


class Trial:
    """A specification with its files read."""

    def __init__(self, spec, events, rival):
        self.spec, self.events, self.rival = spec, events, rival
        if spec["protocol"] != PROTOCOL:
            raise Failure(f"protocol '{spec['protocol']}' is not {PROTOCOL}", "protocol", "use adapter and harness of one version")
        if spec.get("kernels"):
            raise Failure("this arm has no interchangeable kernels", "kernels", "take `kernels` out of its arm")
        self.train, self.method = spec["train"], spec["method"]
        self.lora = self.method if self.method["type"] == "lora" else None
        self.options = {name: option["default"] for name, option in rival["options"].items()} | spec.get("options", {})
        self.scheduled = spec["measure"]["untimed_steps"] + spec["measure"]["timed_steps"]
        # An audit trial runs the first steps of the schedule, all untimed.
        audit = spec.get("audit")
        self.steps = audit["steps"] if audit else self.scheduled
        self.measure = {"untimed_steps": self.steps, "timed_steps": 0, "window_steps": 1} if audit else spec["measure"]

    def load(self):
        """Reads tokens and plan; every batch is made before anything is timed."""
        self.tokens = TokenStore(self.spec["data"]["tokens"])
        plan = json.loads(Path(self.spec["data"]["plan"]).read_text())
        if len(plan["steps"]) < self.steps:
            raise Failure(f"{len(plan['steps'])} steps planned, {self.steps} asked for", "data.plan", "prepare the run again")
        self.packing, self.pad = plan["packing"], plan["pad_token_id"]
        steps = plan["steps"][: self.steps]
        self.batches = [[Batch(m, self.tokens, self.pad) for m in step["micro_batches"]] for step in steps]

    def lr(self, step):
        """Peak learning rate times the schedule's factor."""
        return self.train["learning_rate"] * lr_factor(self.train, step, self.scheduled)

    def first_weights(self, step):
        """Where an audit trial saves all weights after this step; nowhere after another than the first that has a rate."""
        if "audit" not in self.spec or self.lr(step) == 0.0 or any(self.lr(s) for s in range(step)):
            return None
        return self.spec["audit"]["first_weights"]

    def counts(self, step):
        """Tokens of a step, all its micro-batches."""
        all_counts = [batch.counts for batch in self.batches[step]]
        return {name: sum(c[name] for c in all_counts) for name in ("slots", "real", "loss")}

    def samples(self, step):
        """Samples of a step, row after row."""
        return [s for batch in self.batches[step] for row in batch.samples for s in row]

    def settings(self, **more):
        """Training settings under the names that the parity diff knows; `more` are the arm's own."""
        settings = {k: v for k, v in self.train.items() if v is not None}
        settings.update({k: v for k, v in self.method.items() if k not in ("type", "adapter_weights")})
        return settings | {"method": self.method["type"], "optimizer": "adamw"} | more

    def hello(self, version, device, threads, precision, settings, chosen=None):
        """First event. `precision` is weights, master, moments and grads."""
        fields = dict(protocol=PROTOCOL, name=self.rival["name"], version=version, device=device, threads=threads)
        self.events.tell("hello", pid=os.getpid(), precision=precision, settings=settings, chosen=chosen or {}, **fields)

    def ready(self, trainable, total_params, **planned):
        """`trainable` is a list of (name, shape)."""
        tensors = [{"name": name, "shape": list(shape)} for name, shape in trainable]
        self.events.tell("ready", trainable=tensors, total_params=total_params, tokens_sha256=self.tokens.sha256, **planned)

    def done(self, **fields):
        """Last event."""
        self.events.tell("done", steps=self.steps, weights=self.spec.get("save_weights"), **fields)


# ---- the program -----------------------------------------------------------------------------------------------------


def describe(folder):
    """What an adapter says of itself: name, options, and the versions that it is pinned to."""
    rival = json.loads((folder / "rival.json").read_text())
    lock = (folder / "requirements.txt").read_text()
    return rival | {"pins": dict(re.findall(r"^([\w.-]+)==([^\s\\;]+)", lock, re.M))}


def end_with_parent():
    """A harness that is killed outright leaves no trial behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main(adapter, run):
    """Runs an adapter: `run(trial)` is given a trial whose files are not yet read."""
    folder = Path(adapter).resolve().parent
    rival = describe(folder)
    parser = argparse.ArgumentParser(description=rival["title"], epilog="The harness starts this program: chronibench run FILE")
    parser.add_argument("--describe", action="store_true", help="print name, options and pinned versions as JSON")
    parser.add_argument("--spec", help="specification of a trial, JSON")
    parser.add_argument("--events", help="file that events are appended to")
    args = parser.parse_args()
    if args.describe:
        print(json.dumps(rival, indent=2))
        return
    if not (args.spec and args.events):
        parser.error("--spec and --events are needed, or --describe")
    end_with_parent()
    events = Events(args.events)
    try:
        run(Trial(json.loads(Path(args.spec).read_text()), events, rival))
    except ModuleNotFoundError as e:
        hint = f"chronibench env check {rival['name']}"
        what = f"no Python module '{e.name}'" if e.name else str(e)
        fail(events, Failure(what, sys.executable, hint, EXIT_ENVIRONMENT))
    except Failure as failure:
        fail(events, failure)


def fail(events, failure):
    """The failure as the last event, and on standard error in case the event file is what failed."""
    print(f"{failure.what}\n  where: {failure.where}\n  mend:  {failure.hint}", file=sys.stderr)
    events.tell("error", what=failure.what, where=failure.where, hint=failure.hint)
    sys.exit(failure.code)
