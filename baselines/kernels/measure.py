"""Timing, checks and rows: what every reference shares.

A form of an operation (`Form`) is something to run with the operands it runs on. It is run once and checked against a
computation in higher precision at sampled places; only then is it timed, by device events, with the L2 cache flushed before every
run. The GPU sleeps for a moment before the first event, so that every launch is queued by then: what is timed is the GPU's work,
not the host's.
"""

import statistics
from dataclasses import dataclass
from typing import Callable

import torch

# Cycles that the GPU sleeps before a timed run, about a millisecond: longer than the host takes for the launches of one.
SLEEP_CYCLES = 2_000_000
WARM_UPS = 3
BF16 = torch.bfloat16


@dataclass
class Form:
    """One way to run an operation. `prepare` is called before every run, untimed, and its result is passed to `run`."""

    run: Callable
    prepare: Callable = lambda: None
    name: str = ""
    # Fewest bytes, where they are not those of the case.
    bytes: int | None = None
    note: str = ""
    # How long the GPU sleeps before a timed run.
    sleep_cycles: int = SLEEP_CYCLES


@dataclass
class Reference:
    """An implementation of an operation at a shape: the fastest of its forms is its row."""

    variant: str
    forms: list
    # Given what `run` returns: a list of `compared`.
    check: Callable
    measure_memory: bool = False


class Clock:
    """Runs forms."""

    def __init__(self, repetitions: int, flush_bytes: int):
        self.repetitions = repetitions
        self.flush = torch.empty(flush_bytes, dtype=torch.uint8, device="cuda")

    def once(self, form: Form, cold: bool) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        prepared = form.prepare()
        if cold:
            self.flush.zero_()
        torch.cuda._sleep(form.sleep_cycles)
        begin.record()
        result = form.run(prepared)
        end.record()
        torch.cuda.synchronize()
        del result
        return begin.elapsed_time(end) / 1e3

    def times(self, form: Form) -> tuple:
        """Seconds of every cold and of every warm run."""
        for _ in range(WARM_UPS):
            self.once(form, cold=True)
        cold = [self.once(form, cold=True) for _ in range(self.repetitions)]
        warm = [self.once(form, cold=False) for _ in range(self.repetitions)]
        return cold, warm


def peak_bytes(form: Form) -> int:
    """What a run needs at most besides what was there before it, its results included."""
    torch.cuda.synchronize()
    prepared = form.prepare()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = form.run(prepared)
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def measure(case: dict, reference: Reference, clock: Clock) -> dict:
    """A row: checked, then timed."""
    row = {
        "op": case["op"],
        "case": case["case"],
        "variant": reference.variant,
        "bytes": case["bytes"],
        "flops": case["flops"],
        "l2_bytes": torch.cuda.get_device_properties(0).L2_cache_size,
    }
    best = None
    for form in reference.forms:
        outputs = form.run(form.prepare())
        compared = reference.check(outputs)
        del outputs
        failure = next((why(c) for c in compared if not holds(c)), None)
        if failure is not None:
            row["check"] = {"compared": compared, "failure": f"{form.name} {failure}".strip()}
            return row
        cold, warm = clock.times(form)
        if best is None or statistics.median(cold) < statistics.median(best[1]):
            best = (form, cold, warm, compared)
    form, cold, warm, compared = best
    row.update(cold_s=cold, warm_s=warm, check={"compared": compared, "failure": None})
    row["bytes"] = case["bytes"] if form.bytes is None else form.bytes
    row["warm_bytes"] = row["bytes"]
    chosen = f"fastest of {len(reference.forms)} forms: {form.name}" if len(reference.forms) > 1 else form.name
    words = [form.note, chosen]
    note = "; ".join(word for word in words if word)
    if note:
        row["note"] = note
    if reference.measure_memory:
        row["memory_bytes"] = peak_bytes(form)
    return row


def holds(c: dict) -> bool:
    return c["error"] is not None and c["error"] <= c["tolerance"]


def why(c: dict) -> str:
    return f"{c['what']}[{c['index']}] is {c['got']}, not {c['want']}: off by {c['error']}, {c['tolerance']} allowed"


def compared(what: str, got, want, tolerance: float) -> dict:
    """Errors in units of the largest value that should be there. Numbers that are not finite become None."""
    got, want = got.detach().double().flatten(), want.detach().double().flatten()
    if got.shape != want.shape:
        raise ValueError(f"{what}: {got.numel()} values, {want.numel()} expected")
    scale = want.abs().max().clamp_min(1e-300)
    error = (got - want).abs() / scale
    error = torch.where(torch.isfinite(error), error, torch.full_like(error, float("inf")))
    index = int(error.argmax())

    def finite(x):
        x = float(x)
        return x if abs(x) < float("inf") else None

    return {
        "what": what,
        "values": got.numel(),
        "error": finite(error[index]),
        "tolerance": tolerance,
        "index": index,
        "got": finite(got[index]),
        "want": finite(want[index]),
    }


def sample(rows: int, more: int = 6):
    """Rows to look at: the first, the last and some between, always the same."""
    generator = torch.Generator().manual_seed(11)
    between = torch.randint(0, rows, (more,), generator=generator).tolist()
    return torch.tensor(sorted({0, rows - 1, *between}), device="cuda")


def normal(*shape, scale: float = 1.0, dtype=BF16):
    return torch.randn(*shape, device="cuda", dtype=torch.float32).mul_(scale).to(dtype)


def compile_fresh(function):
    """A compiled form of a function for one shape; nothing of an earlier shape is kept."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)
