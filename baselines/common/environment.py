"""What `chronibench env` has a Python do: compare an environment with its lock, resolve a lock, pack and unpack a bundle.

Nothing but the standard library and pip. A failure is told on standard error, and the exit code is 5.
"""

import argparse
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

BASE = "# ---- base"
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]
TARGET = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
QUIET = ["-q", "--disable-pip-version-check", "--root-user-action=ignore"]

# What no trial loads: commands and interfaces beside the library, and binaries for other versions of CUDA.
UNUSED = {
    "unsloth": ["studio", "unsloth_cli"],
    "bitsandbytes": [],
}
CUDA_BINARY = "libbitsandbytes_cuda130.so"

# The calls that pyllmq makes to cuBLASLt 12 and that version 13 answers in the same way.
CUBLASLT = """Create Destroy Matmul MatmulAlgoGetHeuristic MatmulDescCreate MatmulDescDestroy MatmulDescSetAttribute
MatmulPreferenceCreate MatmulPreferenceDestroy MatmulPreferenceSetAttribute MatrixLayoutCreate MatrixLayoutDestroy""".split()


def fail(what, where, hint):
    print(f"error: {what}\n  where: {where}\n  mend:  {hint}", file=sys.stderr)
    sys.exit(5)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(path):
    """(name, version, whether of the base) of every package of a lock."""
    carried, _, base = Path(path).read_text().partition(BASE)
    for text, is_base in ((carried, False), (base, True)):
        for name, version in re.findall(r"^([\w.-]+)==([^\s\\;]+)", text, re.M):
            yield normal(name), version, is_base


def check(lock):
    """Prints what the running Python has of a lock, as JSON. A local part of a version (+cu130) does not count."""
    rows = []
    for name, version, is_base in locked(lock):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        same = found is not None and found.split("+")[0] == version.split("+")[0]
        rows.append({"name": name, "locked": version, "found": found, "base": is_base, "same": same})
    print(json.dumps({"python": sys.version.split()[0], "packages": rows}))


def pip(*arguments):
    done = subprocess.run([sys.executable, "-m", "pip", *arguments])
    if done.returncode:
        fail("pip failed; its words are above", " ".join(arguments[:1]), "check the network, and that this Python has pip 23 or newer")


def resolve(requirements, dependencies):
    if not requirements:
        return []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        more = [] if dependencies else ["--no-deps"]
        pip("install", *QUIET, "--dry-run", "--ignore-installed", "--only-binary=:all:", "--report", str(report), *more, *requirements)
        found = json.loads(report.read_text())["install"]
    hashes = lambda one: one["download_info"]["archive_info"]["hashes"]["sha256"]  # noqa: E731
    return sorted((normal(one["metadata"]["name"]), one["metadata"]["version"], hashes(one)) for one in found)


def lock(name, source, out):
    """Resolves `requirements.in`: what is carried exactly as it is listed, the base with all that it needs."""
    if sys.version_info[:2] != (3, 12):
        fail("locks are made by Python 3.12", sys.executable, "name one with --python")
    carried, _, base = Path(source).read_text().partition(BASE)
    listed = lambda text: [line for line in text.splitlines() if line and not line.startswith("#")]  # noqa: E731
    ours = resolve(listed(carried), dependencies=False)
    names = {one[0] for one in ours}
    theirs = [one for one in resolve(listed(base), dependencies=True) if one[0] not in names]
    text = "".join
    lines = lambda all_of: text(f"{n}=={v} \\\n    --hash=sha256:{h}\n" for n, v, h in all_of)  # noqa: E731
    head = f"# Made by `chronibench env lock {name}` for Python 3.12 on Linux x86_64.\n"
    part = Path(f"{out}.part")
    part.write_text(head + lines(ours) + BASE + "\n" + lines(theirs))
    part.replace(out)


def trim(site):
    """Takes out what no trial loads."""
    for names in UNUSED.values():
        for name in names:
            shutil.rmtree(site / name, ignore_errors=True)
    for library in site.glob("bitsandbytes/libbitsandbytes_*.so"):
        if library.name not in (CUDA_BINARY, "libbitsandbytes_cpu.so"):
            library.unlink()
    for cache in list(site.rglob("__pycache__")) + list(site.glob("bin")):
        shutil.rmtree(cache, ignore_errors=True)


def forward_cublaslt(out):
    """Builds a libcublasLt.so.12 whose calls go to the machine's libcublasLt.so.13."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        fail("no C compiler for the library between cuBLASLt 12 and 13", "PATH", "install gcc")
    names = [f"cublasLt{call}" for call in CUBLASLT]
    pointers = "\n".join(f"void *to_{name};" for name in names)
    found = "\n".join(f'    to_{name} = dlsym(library, "{name}");' for name in names)
    jump = "mov to_{0}@GOTPCREL(%rip), %r11\\n jmp *(%r11)"
    jumps = "\n".join(f'__attribute__((naked)) void {n}(void) {{ __asm__ volatile("{jump.format(n)}"); }}' for n in names)
    source = f"""#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
{pointers}
__attribute__((constructor)) static void find(void) {{
    void *library = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (!library) {{ fprintf(stderr, "%s\\n", dlerror()); abort(); }}
{found}
}}
{jumps}
"""
    with tempfile.TemporaryDirectory() as folder:
        code, versions = Path(folder) / "forward.c", Path(folder) / "versions.map"
        code.write_text(source)
        versions.write_text("libcublasLt.so.12 { global: " + " ".join(f"{n};" for n in names) + " local: *; };\n")
        how = [compiler, "-O1", "-fPIC", "-shared", "-o", str(out), str(code), "-ldl"]
        subprocess.run(how + [f"-Wl,--version-script={versions}", "-Wl,-soname,libcublasLt.so.12"], check=True)


def libraries(name, folder, site):
    """Shared libraries that a rival needs beside its packages."""
    if name != "llmq":
        return
    target = folder / "lib"
    target.mkdir()
    for runtime in site.rglob("libcudart.so.12"):
        shutil.copy(runtime, target)
    shutil.rmtree(site / "nvidia", ignore_errors=True)
    forward_cublaslt(target / "libcublasLt.so.12")


def entries(text, names):
    """The lines of a lock that are of some packages."""
    blocks = re.findall(r"^[\w.-]+==.*(?:\n[ \t]+.*)*", text, re.M)
    kept = {normal(block.partition("==")[0]): block for block in blocks}
    for name in names:
        if name not in kept:
            fail(f"the base has no package {name}", "--also", "name packages that `chronibench env check` calls missing")
    return "".join(f"{kept[name]}\n" for name in names)


def pack(name, lock_file, lock_sha256, out, also=""):
    """Downloads what a lock carries and packs it, for a machine that has the base, but for what is in `also`, and no network."""
    carried, _, base = Path(lock_file).read_text().partition(BASE)
    carried += entries(base, [normal(one) for one in also.split(",") if one])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        site = folder / "site"
        site.mkdir(parents=True)
        wanted = Path(temporary) / "carried.txt"
        wanted.write_text(carried)
        platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
        how = ["--require-hashes", "--no-deps", "--no-compile", "--ignore-requires-python", "--target", str(site), *TARGET, *platforms]
        pip("install", *QUIET, *how, "-r", str(wanted))
        trim(site)
        libraries(name, folder, site)
        (folder / "bundle.json").write_text(json.dumps({"name": name, "lock_sha256": lock_sha256}))
        part = f"{out}.part"
        with tarfile.open(part, "w:xz", preset=6) as archive:
            archive.add(folder, arcname=".", filter=anonymous)
        Path(part).replace(out)
    print(f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB")


def anonymous(member):
    """The same bytes from the same files, whoever packs them and when."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def unpack(name, lock_sha256, bundle, folder):
    """Unpacks a bundle that was made of this very lock."""
    try:
        with tarfile.open(bundle, "r:xz") as archive:
            says = json.load(archive.extractfile("./bundle.json"))
            if says != {"name": name, "lock_sha256": lock_sha256}:
                fail(f"the bundle is of {says['name']} and another lock", bundle, f"make it again: chronibench env bundle {name}")
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, KeyError, EOFError, OSError) as e:
        fail(f"not a bundle: {e}", bundle, f"make it again: chronibench env bundle {name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["check", "lock", "pack", "unpack", "libraries"])
    parser.add_argument("arguments", nargs="*")
    args = parser.parse_args()
    if args.what == "libraries":
        name, folder, site = args.arguments
        libraries(name, Path(folder), Path(site))
    else:
        {"check": check, "lock": lock, "pack": pack, "unpack": unpack}[args.what](*args.arguments)


if __name__ == "__main__":
    main()
