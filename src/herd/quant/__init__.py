"""What the bytes of every storage format mean: the definition in numpy that all kernels are checked against.

`dequantize` follows the block layouts of the ggml project, in float32 and in one order of operations, so that any right reader
gives the same bits. `quantize` writes them: Q4_0 to Q8_0 as ggml's reference does, bit for bit; the K formats and IQ4 with a
search for scales. `quantize_fitted` searches for every format, and counts errors by the importance of their columns.

Names inside: `b` uint8 [blocks, bytes of a block], `q` the small integers of a block, `d` its scale, `m` its offset.
"""

from herd.quant.fitting import fit_groups, quantize_fitted
from herd.quant.reading import IQ4_VALUES, dequantize
from herd.quant.writing import ACTIVATION_GROUP, quantize, quantize_activations

__all__ = ["ACTIVATION_GROUP", "IQ4_VALUES", "dequantize", "fit_groups", "quantize", "quantize_activations", "quantize_fitted"]
