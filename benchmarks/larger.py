"""How fast does a model answer that memory does not hold? One JSON line per figure. Needs the right to make a control group (root).

    python benchmarks/larger.py [--shapes 8b,maverick] [--share 0.9] [--threads 2] [--steps 24] [--folder FOLDER]

A model of random weights runs in a control group that may use `share` of the file's size, and 80 MB for the program itself.
Of each step the time and the bytes that came from the disk; the bound is the speed of the same disk, reading the file from beginning to
end past the system's memory.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from random_models import SHAPES, write_model
from record import commit, figure, machine, say

from herd.version import __version__

OWN_BYTES = 80 << 20
STEP = """
import json, os, sys, time
from pathlib import Path
group, path, threads, steps, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
Path(group, "cgroup.procs").write_text(str(os.getpid()))
from herd.backends.base import BackendOptions, Plan, Span
from herd.backends.cpu import CpuBackend, Origin
from herd.backends.cpu.larger import Larger
from herd.checkpoints.open import open_checkpoint
def read_bytes():
    return int(next(line for line in open("/proc/self/io") if line.startswith("read_bytes")).split()[1])
checkpoint = open_checkpoint(path)
before = time.perf_counter()
larger = Larger(limit, lambda done, total: None)
backend = CpuBackend(checkpoint.config, checkpoint.leaf, BackendOptions(threads=threads), checkpoint.release_pages,
                     origin=Origin(checkpoint.digest(), path), checkpoint=checkpoint, larger=larger)
packed_s = time.perf_counter() - before
backend.allocate(8)
found = []
for at in range(steps):
    first, before = read_bytes(), time.perf_counter()
    backend.step(Plan((Span(at, [at * 7919 % 8000], list(range(8)), 1),)))
    found.append((time.perf_counter() - before, read_bytes() - first))
print(json.dumps({"packed_s": packed_s, "steps": found}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", default="8b,maverick")
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24, help="the first half warms up")
    parser.add_argument("--folder", type=Path, default=None, help="where models are written, and found again")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="herd-larger-"))
    try:
        for shape in options.shapes.split(","):
            say(shape)
            path = folder / f"{shape}-q4_0.gguf"
            if not path.exists():
                write_model(path, shape, "q4_0")
            measure(shape, path, options)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def measure(shape: str, path: Path, options: argparse.Namespace) -> None:
    size = path.stat().st_size
    limit = int(size * options.share) + OWN_BYTES
    group = make_group(limit)
    home = Path(tempfile.mkdtemp(prefix="home-", dir=path.parent))
    try:
        command = [sys.executable, "-c", STEP, str(group), str(path), str(options.threads), str(options.steps), str(limit - OWN_BYTES)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "HERD_HOME": str(home)})
        disk = disk_speed(path)
    finally:
        shutil.rmtree(home)
        group.rmdir()
    steps = json.loads(done.stdout)["steps"][options.steps // 2 :]
    facts = {"machine": machine(), "threads": options.threads, "commit": commit(), "model": f"random weights, {SHAPES[shape][1]}"}
    facts |= {"model_mb": size // 10**6, "memory_mb": limit // 10**6, "versions": {"herd": __version__}}
    name = f"{shape} q4_0, {size // 10**6} MB with {(limit - OWN_BYTES) // 10**6} MB of memory for it"
    figure(f"{name}: decode", [1 / seconds for seconds, _ in steps], "tokens/s", facts, engine="herd")
    figure(f"{name}: read from the disk for a token", [count / 1e6 for _, count in steps], "MB", facts, engine="herd")
    if sorted(count for _, count in steps)[len(steps) // 2] == 0:
        return  # most tokens need nothing from the disk
    rates = [count / seconds / 1e9 for seconds, count in steps]
    bound = {"value": float(f"{disk / 1e9:.4g}"), "what": "reading a file past the system's memory"}
    share = round(sorted(rates)[len(rates) // 2] / (disk / 1e9), 3)
    figure(f"{name}: read from the disk", rates, "GB/s", facts, engine="herd", bound=bound, share=share)


def make_group(limit: int) -> Path:
    for parent, sign, name in (
        ("/sys/fs/cgroup", "cgroup.controllers", "memory.max"),
        ("/sys/fs/cgroup/memory", "cgroup.procs", "memory.limit_in_bytes"),
    ):
        if not Path(parent, sign).exists():
            continue
        group = Path(parent, f"herd-larger-{os.getpid()}")
        try:
            group.mkdir()
            (group / name).write_text(str(limit))
        except OSError:
            continue
        return group
    raise SystemExit("no control group with a memory limit can be made here")


def disk_speed(path: Path) -> float:
    """Bytes a second, past the system's memory."""
    piece = mmap.mmap(-1, 4 << 20)  # aligned, as such reading wants
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    done, before = 0, time.perf_counter()
    while (count := os.readv(file, [piece])) > 0:
        done += count
    os.close(file)
    return done / (time.perf_counter() - before)


if __name__ == "__main__":
    main()
