// The table of this instruction set.
#include "kernels/operations.h"

namespace herd::HERD_ISA {

const Kernels& kernel_table() {
    static constexpr auto exponential_of = static_cast<void (*)(const float*, int64_t, float*)>(exponential);
    static const Kernels table{
        .rms_norm = rms_norm,
        .rotate = rotate,
        .layer_norm = layer_norm,
        .silu_gate = silu_gate,
        .sigmoid_gate = sigmoid_gate,
        .soft_cap = soft_cap,
        .gelu = gelu,
        .add_scaled = add_scaled,
        .scale = scale,
        .add = add,
        .all_finite = all_finite,
        .exponential = exponential_of,
        .store_keys = store_keys,
        .store_values = store_values,
        .tile_rows = tile_rows,
        .attention_scratch_bytes = attention_scratch_bytes,
        .attend = attend,
        .fold = fold,
        .finish = finish,
        .float_peak = float_peak,
        .int8_peak = int8_peak,
        .bf16_peak = bf16_peak,
        .read_bytes = read_bytes,
        .float_peak_operations = kFloatPeakOperations,
        .int8_peak_operations = kInt8PeakOperations,
        .bf16_peak_operations = kBf16PeakOperations,
    };
    return table;
}

}  // namespace herd::HERD_ISA
