"""References for the kernels of a run: what PyTorch, Transformers and Liger take for the same operations on the same shapes.

usage: references.py --spec spec.json --events events.jsonl

Reads one specification and appends events, one JSON object a line: hello, one kernel a row, skipped for what is not installed,
done. A row that fails is a row with its error; nothing is averaged or tried again. Needs torch with CUDA; transformers and
liger_kernel where they are there.
"""

import argparse
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
import traceback

# Nothing here may go out to the network, or replace Transformers' own code by kernels from a hub.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", USE_HUB_KERNELS="0", TOKENIZERS_PARALLELISM="false")

PROTOCOL = "chronibench.protocol/1"
PACKAGES = {
    "transformers": "pip install transformers",
    "liger_kernel": "pip install --no-deps liger-kernel, or put its wheel's content on PYTHONPATH",
}


class Events:
    """The event file; every line is written as it happens."""

    def __init__(self, path: str):
        self.file = open(path, "a", encoding="utf-8", buffering=1)

    def say(self, event: str, **fields):
        self.file.write(json.dumps({"event": event, **fields}, allow_nan=False) + "\n")
        self.file.flush()


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None


def available(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def hello(events: Events, torch) -> None:
    packages = ["torch", "triton", "transformers", "liger_kernel"]
    settings = {name: version(name) or ("unknown" if available(name) else "not installed") for name in packages}
    device = "cpu"
    if torch is not None and torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
        settings["cuda"] = str(torch.version.cuda)
        settings["cudnn"] = str(torch.backends.cudnn.version())
    precision = {"weights": "bf16", "master": "none", "moments": "bf16", "grads": "bf16"}
    events.say(
        "hello",
        protocol=PROTOCOL,
        name="references",
        version=version("torch") or "no torch",
        device=device,
        threads=os.cpu_count() or 1,
        pid=os.getpid(),
        precision=precision,
        settings=settings,
    )


def done(events: Events) -> int:
    events.say("done", steps=0)
    return 0


def failure(error: BaseException, where: str) -> dict:
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {error}".strip()
    return {"what": what[:2000], "where": f"{where} ({last.name}, line {last.lineno})", "hint": "see the versions in `hello`"}


def run(spec: dict, events: Events, torch) -> None:
    import attention
    import loss
    import measure
    import pointwise

    # Sums over all rows in full f32; what is timed is bf16 and knows nothing of it.
    torch.set_float32_matmul_precision("highest")
    clock = measure.Clock(spec["repetitions"], spec["flush_bytes"])
    has = {package: available(package) for package in PACKAGES}
    makers = {**pointwise.OPS, **loss.OPS, **attention.OPS}
    cases = [case for case in spec["cases"] if case["op"] in makers]
    for op in sorted({case["op"] for case in spec["cases"]} - makers.keys()):
        say_skipped(events, op, "there is no reference for it", "compare it with the copy or the product beside it")
    started = time.monotonic()
    for number, case in enumerate(cases):
        torch.manual_seed(1000 + number)
        for variant, make in makers[case["op"]](case, has):
            where = f"{case['op']} at {case['case']} by {variant}"
            print(f"{time.monotonic() - started:6.1f} s  {where}", file=sys.stderr, flush=True)
            # The one place where an error of a reference is caught: it is that row's, and is recorded.
            try:
                row = measure.measure(case, make(), clock)
            except Exception as error:
                row = {key: case[key] for key in ("op", "case", "bytes", "flops")}
                row.update(variant=variant, error=failure(error, where))
            events.say("kernel", **row)
            gc.collect()
            torch.cuda.empty_cache()


def say_skipped(events: Events, what: str, why: str, hint: str) -> None:
    events.say("skipped", what=what, why=why, hint=hint)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", required=True)
    parser.add_argument("--events", required=True)
    args = parser.parse_args()
    with open(args.spec, encoding="utf-8") as file:
        spec = json.load(file)
    events = Events(args.events)
    if spec["protocol"] != PROTOCOL:
        what = f"{spec['protocol']} is not spoken here"
        events.say("error", what=what, where=args.spec, hint="use the harness of the same build")
        return 6
    if not available("torch"):
        hello(events, None)
        hint = "pip install torch, or name another with --references PYTHON"
        say_skipped(events, "references", "this Python has no torch", hint)
        return done(events)
    torch = importlib.import_module("torch")
    hello(events, torch)
    if not torch.cuda.is_available():
        say_skipped(events, "references", "torch sees no GPU", "install a torch with CUDA, and its driver")
        return done(events)
    for package, hint in PACKAGES.items():
        if not available(package):
            say_skipped(events, f"references of {package}", "it is not installed", hint)
    run(spec, events, torch)
    return done(events)


if __name__ == "__main__":
    sys.exit(main())
