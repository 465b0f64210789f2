"""Parameter counts and widths against the published ones; cache bytes against the known 16-bit figures."""

from __future__ import annotations

import pytest

from herd.dtypes import BF16, F16, F32, Q4_1, Q8_0
from herd.errors import FileProblem
from herd.models import llama3_vision
from herd.models.llama import LlamaConfig, tensors
from herd.models.llama3_vision import Llama3VisionConfig
from herd.models.llama3_vision_encoder import EncoderConfig
from herd.models.rope import Rope
from herd.models.sizes import buffer_bytes, cache_bytes, cache_bytes_per_token, count_parameters, ffn_width, weight_bytes
from herd.models.weights import Kind

# name: width, layers, heads, kv heads, head width, (multiple_of, multiplier), vocabulary, tied, parameters, cache bytes per token
RELEASES = {
    "llama-7b": (4096, 32, 32, 32, 128, (256, None), 32000, False, 6_738_415_616, 524_288),
    "llama-13b": (5120, 40, 40, 40, 128, (256, None), 32000, False, 13_015_864_320, 819_200),
    "llama-33b": (6656, 60, 52, 52, 128, (256, None), 32000, False, 32_528_943_616, None),
    "llama-65b": (8192, 80, 64, 64, 128, (256, None), 32000, False, 65_285_660_672, None),
    "llama-2-70b": (8192, 80, 64, 8, 128, (4096, 1.3), 32000, False, 68_976_648_192, 327_680),
    "code-llama-7b": (4096, 32, 32, 32, 128, (256, None), 32016, False, 6_738_546_688, 524_288),
    "code-llama-13b": (5120, 40, 40, 40, 128, (256, None), 32016, False, 13_016_028_160, 819_200),
    "code-llama-34b": (8192, 48, 64, 8, 128, (256, None), 32000, False, 33_743_970_304, None),
    "code-llama-70b": (8192, 80, 64, 8, 128, (4096, 1.3), 32016, False, 68_976_910_336, 327_680),
    "llama-3-8b": (4096, 32, 32, 8, 128, (1024, 1.3), 128256, False, 8_030_261_248, 131_072),
    "llama-3-70b": (8192, 80, 64, 8, 128, (4096, 1.3), 128256, False, 70_553_706_496, 327_680),
    "llama-3.1-405b": (16384, 126, 128, 8, 128, (4096, 1.2), 128256, False, 405_853_388_800, 516_096),
    "llama-3.2-1b": (2048, 16, 32, 8, 64, (256, 1.5), 128256, True, 1_235_814_400, 32_768),
    "llama-3.2-3b": (3072, 28, 24, 8, 128, (256, 1.0), 128256, True, 3_212_749_824, 114_688),
}
FFN_WIDTHS = {
    (4096, 256, None): 11008,
    (5120, 256, None): 13824,
    (6656, 256, None): 17920,
    (8192, 256, None): 22016,
    (8192, 4096, 1.3): 28672,
    (4096, 1024, 1.3): 14336,
    (16384, 4096, 1.2): 53248,
    (2048, 256, 1.5): 8192,
    (3072, 256, 1.0): 8192,
}


def release(name: str) -> LlamaConfig:
    width, layers, heads, kv_heads, head_width, ffn, vocabulary, tied, _, _ = RELEASES[name]
    return LlamaConfig(
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_width=head_width,
        ffn_width=ffn_width(width, *ffn),
        vocab_size=vocabulary,
        context_length=4096,
        norm_eps=1e-5,
        rope=Rope(10000.0, head_width),
        tied_embeddings=tied,
    )


@pytest.mark.parametrize("name", RELEASES)
def test_parameters_of_every_release_are_counted_exactly(name: str) -> None:
    assert count_parameters(release(name)) == RELEASES[name][8]


@pytest.mark.parametrize("name", [name for name, facts in RELEASES.items() if facts[9]])
def test_cache_bytes_per_token_at_16_bits_are_the_known_ones(name: str) -> None:
    assert cache_bytes_per_token(release(name)) == RELEASES[name][9]


@pytest.mark.parametrize("rule", FFN_WIDTHS)
def test_ffn_widths_follow_metas_rule(rule: tuple[int, int, float | None]) -> None:
    assert ffn_width(*rule) == FFN_WIDTHS[rule]


def vision_release(width: int, num_layers: int, num_heads: int, ffn: int, tile: int) -> Llama3VisionConfig:
    return Llama3VisionConfig(
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_width=128,
        ffn_width=ffn,
        vocab_size=128256,
        context_length=131072,
        norm_eps=1e-5,
        rope=Rope(500000.0, 128),
        crossing=tuple(range(3, num_layers, 4)),
        vision=EncoderConfig(
            tile=tile,
            patch=14,
            max_tiles=4,
            width=1280,
            num_layers=32,
            num_global_layers=8,
            num_heads=16,
            ffn_width=5120,
            kept=(3, 7, 15, 23, 30),
        ),
    )


LLAMA_3_2_VISION = {
    "11b (and Guard 3)": (vision_release(4096, 32, 32, 14336, 560), 10_629_184_035, 1601),
    "11b base": (vision_release(4096, 32, 32, 14336, 448), 10_616_650_275, 1025),
    "90b": (vision_release(8192, 80, 64, 28672, 560), 88_552_318_523, 1601),
}


@pytest.mark.parametrize("name", LLAMA_3_2_VISION)
def test_parameters_of_llama_3_2_vision_are_those_of_metas_files(name: str) -> None:
    """Hugging Face's files have more: tables of places are written out for each shape of picture."""
    cfg, count, tile_rows = LLAMA_3_2_VISION[name]
    assert count_parameters(cfg) == count
    assert cfg.vision.tile_rows == tile_rows and cfg.vision.filled_rows == tile_rows + 7
    assert cfg.vision.num_features == 7680


def test_one_crossing_block_of_the_11b_has_218_112_258_parameters() -> None:
    specs = llama3_vision.tensors(LLAMA_3_2_VISION["11b base"][0])
    assert sum(spec.count for spec in specs if spec.name.startswith("crossing.7.")) == 218_112_258


def test_crossing_blocks_keep_nothing_of_tokens() -> None:
    assert cache_bytes_per_token(LLAMA_3_2_VISION["90b"][0]) == cache_bytes_per_token(release("llama-3-70b"))


def test_one_layer_of_the_8b_has_218_112_000_parameters() -> None:
    assert sum(spec.count for spec in tensors(release("llama-3-8b")) if spec.name.startswith("layers.31.")) == 218_112_000


def test_weights_in_16_bits_take_two_bytes_a_parameter() -> None:
    cfg = release("llama-3.2-1b")
    assert weight_bytes(cfg, BF16) == 2 * count_parameters(cfg)


def test_a_format_may_be_chosen_for_each_weight() -> None:
    cfg = release("llama-3.2-1b")
    matrices = sum(spec.count for spec in tensors(cfg) if spec.kind is Kind.MATRIX)
    embedding = cfg.vocab_size * cfg.width
    rest = count_parameters(cfg) - matrices - embedding

    def chosen(spec):
        return {Kind.MATRIX: Q4_1, Kind.EMBEDDING: Q8_0}.get(spec.kind, F32)

    assert weight_bytes(cfg, chosen) == matrices * 20 // 32 + embedding * 34 // 32 + rest * 4


def test_rows_that_do_not_hold_whole_blocks_are_refused() -> None:
    cfg = LlamaConfig(
        width=48, num_layers=1, num_heads=3, num_kv_heads=3, head_width=16, ffn_width=48, vocab_size=10, context_length=8,
        norm_eps=1e-5, rope=Rope(1e4, 16),
    )  # fmt: skip
    with pytest.raises(FileProblem, match="q8_0 stores 32 elements a block; a row of 48"):
        weight_bytes(cfg, Q8_0)


def test_a_sequence_takes_whole_pages_of_cache() -> None:
    cfg = release("llama-3.2-1b")
    assert cache_bytes(cfg, 65, page_tokens=64, dtype=F16) == 128 * 32_768
    assert cache_bytes(cfg, 0, page_tokens=64) == 0


def test_buffers_grow_with_tokens_and_with_outputs() -> None:
    cfg = release("llama-3.2-1b")
    one = buffer_bytes(cfg, 1, 0)
    assert one == 4 * (2 * 2048 + 3 * 8192)
    assert buffer_bytes(cfg, 512, 64) == 512 * one + 64 * 4 * (2048 + 128256)
