"""The numpy definition of every format: against the `gguf` package, recorded vectors, and plain rounding."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from herd import dtypes
from herd.dtypes import DType
from herd.errors import FileProblem
from herd.quant import IQ4_VALUES, dequantize, quantize, quantize_activations

# Where the scale and the offset of each block are, and sum, sum of squares and first four values of the block whose byte i
# is (37 i + 11) mod 256, scale 0.5 and offset 0.25. Recorded once from the gguf package.
VECTORS = {
    "q4_0": (0, None, -10.5, 161.25, (-1.5, 1, 3.5, -2)),
    "q4_1": (0, 2, 130.5, 695, (7.75, 2.25, 4.75, 7.25)),
    "q5_0": (0, None, 7.5, 656.75, (4.5, -1, 1.5, -4)),
    "q5_1": (0, 2, 260.5, 2824.5, (9.75, 12.25, 14.75, 9.25)),
    "q8_0": (0, None, -88, 47564, (42.5, 61, -48.5, -30)),
    "q2_k": (80, 82, 1029.5, 13619, (16.5, 0, 5.5, 11)),
    "q3_k": (108, None, 479, 142176.5, (40.5, -54, 13.5, -27)),
    "q4_k": (0, 2, 27220, 6041305, (157.75, -12.75, 64.75, 142.25)),
    "q5_k": (0, 2, 58108, 25707205, (405.75, -12.75, 312.75, 142.25)),
    "q6_k": (208, None, 2306, 118475065, (-715.5, 848, 291.5, -265)),
    "iq4_nl": (0, None, -128.5, 33573.25, (-17.5, 12.5, 56.5, -24.5)),
    "iq4_xs": (0, None, -5502.5, 60747839.25, (32.5, -0.5, -34.5, 41.5)),
}
BIT_EXACT_WRITERS = (dtypes.F32, dtypes.F16, dtypes.BF16, dtypes.Q4_0, dtypes.Q4_1, dtypes.Q5_0, dtypes.Q5_1, dtypes.Q8_0)
SEARCHED = (dtypes.Q2_K, dtypes.Q3_K, dtypes.Q4_K, dtypes.Q5_K, dtypes.Q6_K, dtypes.IQ4_NL, dtypes.IQ4_XS)


def official(dtype: DType) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType(dtype.ggml_id)


@pytest.mark.parametrize("dtype", dtypes.BLOCK, ids=lambda dtype: dtype.name)
def test_a_known_block_reads_as_recorded(dtype: DType) -> None:
    scale_at, offset_at, total, squares, first = VECTORS[dtype.name]
    block = np.array([(37 * i + 11) % 256 for i in range(dtype.block_bytes)], dtype=np.uint8)
    block[scale_at : scale_at + 2] = np.array([0.5], dtype=np.float16).view(np.uint8)
    if offset_at is not None:
        block[offset_at : offset_at + 2] = np.array([0.25], dtype=np.float16).view(np.uint8)
    values = dequantize(dtype, block, (dtype.block,)).astype(np.float64)
    assert (values.sum(), np.square(values).sum(), tuple(values[:4])) == (total, squares, first)


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=lambda dtype: dtype.name)
def test_random_bytes_read_to_the_same_bits_as_with_the_gguf_package(dtype: DType) -> None:
    """Any bytes are valid, so scales are of every size, infinite and not a number among them."""
    data = np.random.default_rng(7).integers(0, 256, (64, 32 * dtype.row_bytes(256)), dtype=np.uint8)
    as_official = {"f32": np.float32, "f16": np.float16}.get(dtype.name, np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data.view(as_official), official(dtype))
    found = dequantize(dtype, data, expected.shape)
    assert np.array_equal(found, expected.astype(np.float32), equal_nan=True)
    assert np.array_equal(np.signbit(found[found == 0]), np.signbit(expected[expected == 0]))


@pytest.mark.parametrize("dtype", BIT_EXACT_WRITERS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 300.0])
def test_simple_formats_are_written_to_the_same_bits_as_with_the_gguf_package(dtype: DType, size: float) -> None:
    x = (np.random.default_rng(3).standard_normal((64, 1024)) * size).astype(np.float32)
    x[0, :32] = 0
    x[1, :32] = np.float32(size)
    with np.errstate(all="ignore"):
        expected = np.ascontiguousarray(gguf.quants.quantize(x, official(dtype))).view(np.uint8)
    assert np.array_equal(quantize(dtype, x), expected.reshape(64, -1))


def test_bf16_rounds_to_nearest_even_and_keeps_a_nan_quiet() -> None:
    bits = np.array([[0x3F808000, 0x3F818000, 0x3F808001, 0x7F800001, 0xFF800000, 0x7F7FFFFF]], dtype=np.uint32)
    stored = quantize(dtypes.BF16, bits.view(np.float32)).view(np.uint16)
    assert stored.tolist() == [[0x3F80, 0x3F82, 0x3F81, 0x7FC0, 0xFF80, 0x7F80]]


def plain_rounding(dtype: DType, x: np.ndarray) -> np.ndarray:
    """What a quantiser without a search does within the same layout: ranges divided evenly, group scales rounded likewise."""
    blocks = x.reshape(-1, dtype.block)
    half = lambda values: values.astype(np.float16).astype(np.float32)  # noqa: E731
    if dtype in (dtypes.Q2_K, dtypes.Q4_K, dtypes.Q5_K):
        size, levels, high = {"q2_k": (16, 3, 15), "q4_k": (32, 15, 63), "q5_k": (32, 31, 63)}[dtype.name]
        groups = blocks.reshape(len(blocks), -1, size)
        low = np.minimum(groups.min(-1), 0)
        scale = (groups.max(-1) - low) / levels
        d, dmin = half(scale.max(-1, keepdims=True) / high), half(-low.min(-1, keepdims=True) / high)
        whole = np.rint(np.divide(-low, dmin, out=np.zeros_like(low), where=dmin > 0))
        scale, offset = (d * np.rint(scale / d))[..., None], (dmin * whole)[..., None]
        return (scale * np.clip(np.rint((groups + offset) / scale), 0, levels) - offset).reshape(x.shape)
    values = np.asarray(
        {"q3_k": np.arange(-4, 4), "q6_k": np.arange(-32, 32)}.get(dtype.name, IQ4_VALUES),
        dtype=np.float32,
    )
    size, low = {"q3_k": (16, -32), "q6_k": (16, -128), "iq4_xs": (32, -32), "iq4_nl": (32, 0)}[dtype.name]
    groups = blocks.reshape(len(blocks), -1, size)
    scale = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)[..., 0] / values[0]
    if low:
        d = half(np.take_along_axis(scale, np.abs(scale).argmax(-1, keepdims=True), -1) / low)
        scale = d * np.clip(np.rint(scale / d), low, -low - 1)
    with np.errstate(all="ignore"):
        scaled = groups / scale[..., None]
    nearest = values[np.abs(scaled[..., None] - values).argmin(-1)]
    return (half(scale)[..., None] * nearest).reshape(x.shape) if not low else (scale[..., None] * nearest).reshape(x.shape)


@pytest.mark.parametrize("dtype", SEARCHED, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape_of_values", ["normal", "laplace", "uniform", "one-sided"])
def test_the_search_for_scales_is_no_worse_than_plain_rounding(dtype: DType, shape_of_values: str) -> None:
    random = np.random.default_rng(5)
    x = {
        "normal": lambda: random.standard_normal((32, 512)),
        "laplace": lambda: random.laplace(size=(32, 512)),
        "uniform": lambda: random.uniform(-1, 1, (32, 512)),
        "one-sided": lambda: random.uniform(0.5, 1, (32, 512)),
    }[shape_of_values]().astype(np.float32)
    found = dequantize(dtype, quantize(dtype, x), x.shape)
    ours, plain = np.square(found - x).mean(), np.square(plain_rounding(dtype, x) - x).mean()
    assert ours <= plain, f"mean square error {ours:.3g}, plain rounding {plain:.3g}"


@pytest.mark.parametrize("dtype", dtypes.BLOCK, ids=lambda dtype: dtype.name)
def test_writing_what_was_read_keeps_zeros_and_small_errors(dtype: DType) -> None:
    assert not dequantize(dtype, quantize(dtype, np.zeros((2, 256), np.float32)), (2, 256)).any()
    x = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
    once = dequantize(dtype, quantize(dtype, x), x.shape)
    twice = dequantize(dtype, quantize(dtype, once), x.shape)
    assert np.square(twice - once).mean() <= np.square(once - x).mean()


@pytest.mark.parametrize("dtype", dtypes.BLOCK, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38], ids=str)
def test_weights_that_a_block_format_cannot_hold_are_refused(dtype: DType, value: float) -> None:
    x = np.zeros((1, 256), np.float32)
    x[0, 5] = value
    with pytest.raises(FileProblem, match=r"not a finite number|too large"):
        quantize(dtype, x)


def test_f16_refuses_what_it_cannot_hold_and_rows_must_hold_whole_blocks() -> None:
    with pytest.raises(FileProblem, match="65504"):
        quantize(dtypes.F16, np.full((1, 4), 1e5, np.float32))
    with pytest.raises(FileProblem, match="whole blocks"):
        quantize(dtypes.Q4_K, np.zeros((1, 128), np.float32))
    with pytest.raises(ValueError, match="not a q8_0 tensor"):
        dequantize(dtypes.Q8_0, np.zeros(33, np.uint8), (32,))


def test_activations_are_rounded_half_to_even_by_groups_of_32() -> None:
    x = np.random.default_rng(2).standard_normal((5, 96)).astype(np.float32)
    x[1, 32:64] = 0
    x[2, :32] = np.linspace(-127, 127, 32, dtype=np.float32)
    q, scale = quantize_activations(x)
    assert q.dtype == np.int8 and scale.dtype == np.float32 and q.shape == (5, 96) and scale.shape == (5, 3)
    for token in range(5):
        for group in range(3):
            part = x[token, 32 * group : 32 * group + 32]
            expected = np.float32(np.abs(part).max()) / np.float32(127)
            assert scale[token, group] == expected
            rounded = [round(float(value * (np.float32(1) / expected))) if expected else 0 for value in part]
            assert q[token, 32 * group : 32 * group + 32].tolist() == rounded
