"""How near do the encoders of pictures come to the float32 peak? One JSON line per figure.

    python benchmarks/pictures.py [--threads 2] [--rounds 5] [--encoders llama-3.2-vision,llama-4]

Encoders have the widths of the releases, fewer layers, and random bfloat16 weights: Llama 3.2 Vision encodes one tile of 560 x 560
pixels, Llama 4 two of 336 x 336. Operations are those of products and of attention, a multiply and an add counting as two.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from random_models import Random
from record import commit, figure, machine, say

from herd.backends.cpu.limits import measure_float32
from herd.backends.cpu.machine import make_machine
from herd.backends.cpu.packed import Packer
from herd.backends.cpu.picture_ops import CpuPictureOps
from herd.dtypes import BF16, F32
from herd.models.architecture import Config, architecture_of, seeing
from herd.models.llama3_vision import Llama3VisionConfig
from herd.models.llama3_vision_encoder import EncoderConfig
from herd.models.llama4 import Llama4Config
from herd.models.llama4_vision import Llama4VisionConfig
from herd.models.ops import PictureStep
from herd.models.rope import Rope
from herd.models.weights import stored
from herd.version import __version__

TEXT: dict[str, Any] = {
    "width": 256, "num_heads": 4, "num_kv_heads": 2, "head_width": 64, "ffn_width": 256, "vocab_size": 512, "context_length": 512,
    "norm_eps": 1e-5, "rope": Rope(10000.0, 64),
}  # fmt: skip
LLAMA_3_2 = Llama3VisionConfig(
    **TEXT,
    num_layers=2,
    crossing=(1,),
    vision=EncoderConfig(
        tile=560, patch=14, max_tiles=1, width=1280, num_layers=2, num_global_layers=1, num_heads=16, ffn_width=5120, kept=(1,)
    ),
)
LLAMA_4 = Llama4Config(
    **TEXT,
    num_layers=1,
    expert_width=256,
    num_experts=1,
    expert_layers=(),
    rotary_layers=(0,),
    chunked_layers=(),
    chunk=None,
    qk_norm=False,
    vision=Llama4VisionConfig(
        width=1408, num_layers=3, num_heads=16, ffn_width=5632, tile=336, patch=14, merge=2, adapter_width=4096, picture_token=500
    ),
)
ENCODERS: dict[str, tuple[Config, int, int, str]] = {
    "llama-3.2-vision": (LLAMA_3_2, 1, 560, "3 of 40 layers"),
    "llama-4": (LLAMA_4, 2, 336, "3 of 34 layers"),
}


class Counting(CpuPictureOps):
    """The operations that products and attention take."""

    operations = 0.0

    def linear(self, x: Any, w: Any, bias: Any = None) -> Any:
        self.operations += 2.0 * len(x) * w.shape[0] * w.shape[1]
        return super().linear(x, w, bias)

    def _attend(self, q_INH: Any, k_JKH: Any, v_JKH: Any, scale: float) -> Any:
        self.operations += 4.0 * q_INH.size * len(k_JKH)
        return super()._attend(q_INH, k_JKH, v_JKH, scale)


def measure(name: str, threads: int, rounds: int, facts: dict[str, Any]) -> None:
    cfg, tiles, side, layers = ENCODERS[name]
    machine_, model, architecture = make_machine(threads), seeing(cfg), architecture_of(cfg)
    assert model is not None
    packer = Packer(machine_, "int8", None)
    packed = {}
    for spec in architecture.tensors(cfg):
        dtype = F32 if spec.kind.is_vector or spec.shape[-1] % 256 else BF16
        values = np.random.default_rng(1).standard_normal(spec.shape).astype(np.float32) * np.float32(0.02)
        data = values.reshape(-1, spec.shape[-1]).view(np.uint8) if dtype is F32 else Random(dtype, spec.shape, 0.02).rows()
        packed[spec.name] = packer.pack(spec, stored(dtype, spec.shape, data))
    ops = Counting(machine_)
    pixels = np.random.default_rng(2).standard_normal((tiles, 3, side, side)).astype(np.float32)
    step = PictureStep(cast(Any, ops), pixels, tiles, side, side, 1, tiles)
    weights = architecture.weights(cfg, cast(Any, packed.__getitem__))
    seconds, peaks = [], []
    for _ in range(rounds + 1):
        peaks.append(measure_float32(threads) / 1e9)
        ops.operations = 0.0
        before = time.perf_counter()
        list(model.encode(weights, cfg, step))
        seconds.append(time.perf_counter() - before)
    peak, rates = float(np.median(peaks)), [ops.operations / each / 1e9 for each in seconds[1:]]
    bound = {"value": float(f"{peak:.4g}"), "what": "float32 peak"}
    figure(
        f"encoder of {name}, {layers}", rates, "GFLOPS", facts, engine="herd", bound=bound, share=round(float(np.median(rates)) / peak, 3)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoders", default=",".join(ENCODERS))
    options = parser.parse_args()
    facts = {"machine": machine(), "threads": options.threads, "commit": commit(), "model": "encoders, random weights"}
    facts["versions"] = {"herd": __version__}
    for name in options.encoders.split(","):
        say(name)
        measure(name, options.threads, options.rounds, facts)


if __name__ == "__main__":
    main()
