"""Does loading cost more than reading the file? One JSON line per figure.

    python benchmarks/loading.py [--size 1b] [--rounds 3] [--folder FOLDER | --model FOLDER] [--parts cold,warm,kept]

Writes a Hugging Face folder with the shape of Llama 3.2 1B and random bfloat16 weights (2.5 GB; --size tiny for a trial; --model
uses one that was written before), and measures, each in a fresh process:

  read cold            reading the file from beginning to end after the system was told to forget it: the physical limit
  load, first token    from `import herd` until `herd.load` returns, and until the first token of an answer is there, when nothing
                       can be put off any longer. Each is measured
      cold             after the system was told to forget the file, with nothing kept from earlier starts;
      warm             with the file in memory, nothing kept from earlier starts;
      kept             with packed weights kept from an earlier start, mapped: no packing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record import commit, figure, machine, say, sha256

import herd

SHAPES = {
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
    "tiny": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32},
}
WIDER = {"1b": {"intermediate_size": 8192, "vocab_size": 128256}, "tiny": {"intermediate_size": 1024, "vocab_size": 4096}}
LOAD = """
import sys, time
before = time.perf_counter()
import herd
model = herd.load(sys.argv[1])
loaded = time.perf_counter() - before
model.generate([1, 2, 3], max_tokens=1, temperature=0.0)
print(loaded, time.perf_counter() - before)
time.sleep(float(sys.argv[2]))
model.close()
"""
PARTS = ("cold", "warm", "kept")
KEEP_S = 40.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where the model is written; removed at the end")
    parser.add_argument("--model", type=Path, default=None, help="a folder that write_model made; stays")
    parser.add_argument("--parts", default=",".join(PARTS), help="which figures")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts is {options.parts}; there are {', '.join(PARTS)}")
    folder = options.model or Path(tempfile.mkdtemp(prefix="herd-loading-", dir=options.folder))
    weights = folder / "model.safetensors" if options.model else write_model(folder, options.size)
    try:
        model = {"model": f"Llama 3.2's shape {options.size}, random bfloat16", "model_mb": weights.stat().st_size // 10**6}
        facts = {**model, "model_sha256": sha256(weights), "commit": commit(), "machine": machine(), "threads": machine()["cores"]}
        facts["versions"] = {"herd": herd.__version__}
        if "cold" in parts:
            measure_cold(folder, weights, options.rounds, facts)
        if "warm" in parts:
            measure_warm(folder, options.rounds, facts)
        if "kept" in parts:
            measure_kept(folder, options.rounds, facts)
    finally:
        if not options.model:
            shutil.rmtree(folder)


def measure_cold(folder: Path, weights: Path, rounds: int, facts: Mapping[str, Any]) -> None:
    """Both find memory that the file has just left: where a host takes unused memory away, getting it back takes longer than reading."""
    read_cold, cold = [], []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        read_through(weights)
        forget(weights)
        read_cold.append(read_through(weights))
        forget(weights)
        cold.append(load(folder))
    bound = {"value": round(float(np.median(read_cold)), 3), "what": "reading the file cold"}
    share = round(float(np.median(read_cold) / np.median([first for _, first in cold])), 3)
    figure("read cold", read_cold, "s", facts)
    figure("load, cold", [loaded for loaded, _ in cold], "s", facts)
    figure("first token, cold", [first for _, first in cold], "s", facts, bound=bound, share=share)


def measure_warm(folder: Path, rounds: int, facts: Mapping[str, Any]) -> None:
    load(folder)
    warm = [load(folder) for _ in range(rounds)]
    figure("load, warm", [loaded for loaded, _ in warm], "s", facts)
    figure("first token, warm", [first for _, first in warm], "s", facts)


def measure_kept(folder: Path, rounds: int, facts: Mapping[str, Any]) -> None:
    home = folder / "home"
    try:
        load(folder, home, KEEP_S)
        if not list(home.rglob("*.kept")):
            raise SystemExit(f"Packed weights were not kept within {KEEP_S} s.")
        kept = [load(folder, home) for _ in range(rounds)]
    finally:
        shutil.rmtree(home, ignore_errors=True)
    figure("load, kept", [loaded for loaded, _ in kept], "s", facts)
    figure("first token, kept", [first for _, first in kept], "s", facts)


def write_model(folder: Path, size: str) -> Path:
    """config.json and model.safetensors with random weights, streamed."""
    shape = {**SHAPES[size], **WIDER[size]}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "max_position_embeddings": 4096}
    config |= {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu", "torch_dtype": "bfloat16", **shape}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = shapes_of(shape)
    header, offset = {}, 0
    for name, dims in tensors.items():
        length = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = folder / "model.safetensors"
    pool = (np.random.default_rng(0).standard_normal(1 << 24).astype(np.float32) * 0.02).view(np.uint32) >> 16
    values = pool.astype(np.uint16)
    say(f"writing {offset / 1e9:.1f} GB")
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for dims in tensors.values():
            left = int(np.prod(dims))
            while left:
                count = min(left, len(values))
                file.write(values[:count].tobytes())
                left -= count
        file.flush()
        os.fsync(file.fileno())
    return path


def shapes_of(shape: dict[str, int]) -> dict[str, list[int]]:
    width, ffn = shape["hidden_size"], shape["intermediate_size"]
    q, kv = (shape[key] * shape["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    found = {"model.embed_tokens.weight": [shape["vocab_size"], width], "model.norm.weight": [width]}
    for index in range(shape["num_hidden_layers"]):
        at = f"model.layers.{index}."
        found |= {f"{at}input_layernorm.weight": [width], f"{at}post_attention_layernorm.weight": [width]}
        found |= {f"{at}self_attn.{name}_proj.weight": [rows, width] for name, rows in (("q", q), ("k", kv), ("v", kv))}
        found |= {f"{at}self_attn.o_proj.weight": [width, q], f"{at}mlp.down_proj.weight": [width, ffn]}
        found |= {f"{at}mlp.{name}_proj.weight": [ffn, width] for name in ("gate", "up")}
    return found


def forget(path: Path) -> None:
    """Tells the system to drop what it holds of the file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(path: Path) -> float:
    buffer = bytearray(8 << 20)
    before = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - before


def load(folder: Path, home: Path | None = None, stay_s: float = 0.0) -> tuple[float, float]:
    """Seconds from `import herd` to a loaded model and to the first token, in a process of its own. Without `home` nothing is kept."""
    words = [sys.executable, "-c", LOAD, str(folder), str(stay_s)]
    kept = {"HERD_CACHE_BYTES": "0"} if home is None else {"HERD_HOME": str(home)}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **kept})
    loaded, first = done.stdout.split()
    return float(loaded), float(first)


if __name__ == "__main__":
    main()
