// linear: y[t, r] = x[t] . w[r] for rows of some panels; the table of this instruction set. The contract is in matrix.h.
#include "kernels/linear.h"

#include "kernels/pack.h"
#include "kernels/quantise.h"

namespace herd::HERD_ISA {

const LinearKernels& linear_table();

namespace {

bool in_int8(const Matrix& matrix) { return matrix.arithmetic == Arithmetic::Int8 && !layout(matrix.storage).is_plain(); }

Form form(const Matrix& matrix) {
    if (in_int8(matrix)) return Form::Int8;
    return kBf16Pairs && matrix.storage == Storage::BF16 ? Form::BF16 : Form::F32;
}

int64_t scratch_bytes(const Matrix& matrix, int64_t tokens) {
    if (matrix.is_in_place) return panel_bytes(matrix.storage, matrix.arithmetic, matrix.columns);  // plain: needs no other
    return in_int8(matrix) ? linear_int8_scratch_bytes(matrix, tokens) : linear_float_scratch_bytes(matrix, tokens);
}

void linear(const Matrix& matrix, const uint8_t* prepared, int64_t prepared_stride, int64_t tokens, const float* bias, bool accumulate,
            float* y, int64_t y_stride, int64_t panel_begin, int64_t panel_end, uint8_t* scratch) {
    const int64_t bytes = panel_bytes(matrix.storage, matrix.arithmetic, matrix.columns);
    const auto multiply = [&](int64_t begin, int64_t end, const uint8_t* first) {
        const LinearCall call{matrix, prepared, prepared_stride, tokens, bias, accumulate, y, y_stride, begin, end, bytes, scratch, first};
        in_int8(matrix) ? linear_int8(call) : linear_float(call);
    };
    if (!matrix.is_in_place) return multiply(panel_begin, panel_end, matrix.data.data() + panel_begin * bytes);
    for (int64_t p = panel_begin; p < panel_end; ++p) {
        pack_panel(matrix.storage, matrix.file_rows(), matrix.rows, matrix.columns, p, scratch);
        multiply(p, p + 1, scratch);
    }
}

}  // namespace

const LinearKernels& linear_table() {
    static const LinearKernels table{form,        prepared_bytes, prepare,    block_columns, row_bytes, panel_bytes,
                                     packed_bytes, pack,          unpack_row, scratch_bytes, linear};
    return table;
}

}  // namespace herd::HERD_ISA
