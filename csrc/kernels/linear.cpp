// linear: y[t, r] = x[t] . w[r] for rows of some panels, by the products of an instruction set. Built once; the contract is in matrix.h.
#include "kernels/linear.h"

namespace herd {

Form LinearKernels::form(const Matrix& matrix) const {
    if (matrix.arithmetic == Arithmetic::Int8 && !layout(matrix.storage).is_plain()) return Form::Int8;
    return linear_bf16 != nullptr && matrix.storage == Storage::BF16 ? Form::BF16 : Form::F32;
}

int64_t LinearKernels::packed_bytes(Storage storage, Arithmetic arithmetic, int64_t rows, int64_t columns) const {
    return panels_of(rows) * panel_bytes(storage, arithmetic, columns);
}

void LinearKernels::pack(Storage storage, Arithmetic arithmetic, FileRows rows_of_file, int64_t rows, int64_t columns, uint8_t* packed,
                         int64_t panel_begin, int64_t panel_end) const {
    const int64_t bytes = panel_bytes(storage, arithmetic, columns);
    for (int64_t p = panel_begin; p < panel_end; ++p) pack_panel(storage, rows_of_file, rows, columns, p, packed + p * bytes);
}

int64_t LinearKernels::scratch_bytes(const Matrix& matrix, int64_t tokens) const {
    if (matrix.is_in_place) return panel_bytes(matrix.storage, matrix.arithmetic, matrix.columns);  // plain: needs no other
    return form(matrix) == Form::Int8 ? int8_scratch_bytes(matrix, tokens) : float_scratch_bytes(matrix, tokens);
}

void LinearKernels::linear(const Matrix& matrix, const uint8_t* prepared, int64_t prepared_stride, int64_t tokens, const float* bias,
                           bool accumulate, float* y, int64_t y_stride, int64_t panel_begin, int64_t panel_end, uint8_t* scratch) const {
    const int64_t bytes = panel_bytes(matrix.storage, matrix.arithmetic, matrix.columns);
    const Form in = form(matrix);
    const auto product = in == Form::Int8 ? linear_int8 : in == Form::BF16 ? linear_bf16 : linear_float;
    const auto multiply = [&](int64_t begin, int64_t end, const uint8_t* first) {
        product({matrix, prepared, prepared_stride, tokens, bias, accumulate, y, y_stride, begin, end, bytes, scratch, first});
    };
    if (!matrix.is_in_place) return multiply(panel_begin, panel_end, matrix.data.data() + panel_begin * bytes);
    for (int64_t p = panel_begin; p < panel_end; ++p) {
        pack_panel(matrix.storage, matrix.file_rows(), matrix.rows, matrix.columns, p, scratch);
        multiply(p, p + 1, scratch);
    }
}

}  // namespace herd
