// The tables of this instruction set.
#include "kernels/linear.h"
#include "kernels/operations.h"
#include "kernels/pack.h"
#include "kernels/quantise.h"

namespace herd::HERD_ISA {

const Kernels& kernel_table();
const LinearKernels& linear_table();

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

const LinearKernels& linear_table() {
    static const LinearKernels table{
        .prepared_bytes = prepared_bytes,
        .prepare = prepare,
        .block_columns = block_columns,
        .row_bytes = row_bytes,
        .panel_bytes = panel_bytes,
        .pack_panel = pack_panel,
        .unpack_row = unpack_row,
        .linear_int8 = linear_int8,
        .linear_float = linear_float,
        .linear_bf16 = nullptr,
        .int8_scratch_bytes = int8_scratch_bytes,
        .float_scratch_bytes = float_scratch_bytes,
    };
    return table;
}

}  // namespace herd::HERD_ISA
