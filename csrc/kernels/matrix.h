// Matrices as the kernels read them, and the table of functions that multiply them.
//
// A matrix [rows, columns] is cut into panels of 16 rows. Inside a panel the rows are interleaved, four neighbouring columns
// of a row side by side, so that one 64-byte read holds 16 rows x 4 columns:
//
//   panel = [ group of 32 columns ] * columns / 32          group = codes | scales of 16 rows | minima of 16 rows
//
// `layout.h` says how each storage format fills a group. A panel is one sequential stream of bytes.
//
// How the bits of y[t, r] come about, whatever the instruction set, the number of tokens or the split into panels:
//
//   Int8     x is rounded to int8 in groups of 32 columns (quantise.cpp). In order of groups, and inside a group in order of the
//            weight's own sub-groups (one of 32 or two of 16 columns):
//                acc = fma(float(sum of code * x8), x_scale * weight_scale, acc)          the sum is an exact integer
//                acc = fma(minimum, x_scale * float(sum of x8), acc)                      formats that have a minimum
//   Float32  weights are dequantised exactly; for each group of 32 columns a sum of fma in order of columns, from zero; the
//            sums of the groups are added in order. Plain formats (F32, F16, BF16) go the same way.
//   BF16     where the processor has a bf16 dot product, BF16 weights meet bf16 activations: fma of the second, then of the first column of
//            each pair, even pairs in one sum and odd pairs in another, which are then added.
//   Then y = acc + bias, and with `accumulate` y = (acc + bias) + old y.
//
// The portable build multiplies and adds in two roundings where the compiler has no fused instruction.
#pragma once

#include <cstdint>

#include "base/cpu.h"
#include "base/memory.h"

namespace herd {

// How a weight is stored in its file. The numbers are ggml's.
enum class Storage : int32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    IQ4_XS = 23,
    BF16 = 30
};

// What block formats are multiplied in. Plain formats ignore it.
enum class Arithmetic : int32_t { Int8, Float32 };

// Activations as `linear` wants them.
enum class Form : int32_t { F32, Int8, BF16 };

constexpr int64_t kPanelRows = 16;
constexpr int64_t panels_of(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

// The rows of a matrix as a file has them, one after the other. `head_width` > 0: the file keeps the two halves of each head of so
// many rows apart (Hugging Face), and row i and i + half of it are our rows 2i and 2i + 1.
struct FileRows {
    const uint8_t* data;
    int64_t head_width;

    FileRows(const uint8_t* data, int64_t head_width = 0) : data(data), head_width(head_width) {}
    // Which row of the file is our row.
    int64_t place(int64_t row) const {
        if (head_width == 0) return row;
        const int64_t inside = row % head_width;
        return row - inside + inside % 2 * (head_width / 2) + inside / 2;
    }
};

// A matrix for one instruction set: packed, or of a plain format and still as its file has it, and then packed panel by panel into
// scratch whenever it is multiplied (the same bits). Rows beyond `rows` in the last panel are zero and never written to y.
struct Matrix {
    Storage storage = Storage::F32;
    Arithmetic arithmetic = Arithmetic::Int8;
    int64_t rows = 0;
    int64_t columns = 0;
    int64_t panels = 0;  // panels_of(rows)
    int64_t head_width = 0;  // of FileRows, if it is in place
    bool is_in_place = false;
    AlignedBytes data;   // panels * panel_bytes; in place, the rows of the file

    FileRows file_rows() const { return {data.data(), head_width}; }
};

struct LinearCall;  // linear.h

// One table per instruction set. No function allocates; every one may run in several threads on different panels or rows.
struct LinearKernels {
    // Bytes from one prepared row to the next, a multiple of 64.
    int64_t (*prepared_bytes)(Form, int64_t columns);
    // One token's activations [columns] into a prepared row. A NaN or infinity in x makes the results NaN or infinite.
    void (*prepare)(Form, const float* x, int64_t columns, uint8_t* prepared_row);

    // Columns must be a multiple of this: 1, 32 or 256.
    int64_t (*block_columns)(Storage);
    // Bytes of one row in the file's own format.
    int64_t (*row_bytes)(Storage, int64_t columns);
    int64_t (*panel_bytes)(Storage, Arithmetic, int64_t columns);
    // Panel `p` of the `rows` rows at `rows_of_file` (row after row, as in the file), to `panel`.
    void (*pack_panel)(Storage, FileRows rows_of_file, int64_t rows, int64_t columns, int64_t p, uint8_t* panel);
    // One row [columns], exactly the file's values.
    void (*unpack_row)(const Matrix&, int64_t row, float* out);

    // The products that `linear` chooses from, by the form of activations, and the scratch that they need. `linear_bf16` is null where
    // there is no dot product of bf16: those weights then multiply float32.
    void (*linear_int8)(const LinearCall&);
    void (*linear_float)(const LinearCall&);
    void (*linear_bf16)(const LinearCall&);
    int64_t (*int8_scratch_bytes)(const Matrix&, int64_t tokens);
    int64_t (*float_scratch_bytes)(const Matrix&, int64_t tokens);

    // What follows is the same for every instruction set (linear.cpp).

    // The form of activations that this matrix multiplies.
    Form form(const Matrix&) const;
    // panels_of(rows) * panel_bytes.
    int64_t packed_bytes(Storage, Arithmetic, int64_t rows, int64_t columns) const;
    // Packs panels [panel_begin, panel_end) of the `rows` rows at `rows_of_file` (row after row, as in the file) to `packed`, where
    // panel 0 of this source begins. Several tensors share one matrix by packing each to its own first panel; only the last of them
    // may have a number of rows that is not a multiple of 16.
    void pack(Storage, Arithmetic, FileRows rows_of_file, int64_t rows, int64_t columns, uint8_t* packed, int64_t panel_begin,
              int64_t panel_end) const;
    // Bytes of scratch, 64-byte aligned, that one thread needs in `linear`.
    int64_t scratch_bytes(const Matrix&, int64_t tokens) const;
    // y[t, r] for all `tokens` and the rows r of panels [panel_begin, panel_end); y is row-major, `y_stride` floats a row.
    // `prepared` has `tokens` rows, `prepared_stride` bytes apart, in form(matrix). `bias` is [rows] or null. `accumulate` adds to y.
    // From about 5 tokens on a call costs less per panel when it is given at least 4 panels.
    void linear(const Matrix&, const uint8_t* prepared, int64_t prepared_stride, int64_t tokens, const float* bias, bool accumulate,
                float* y, int64_t y_stride, int64_t panel_begin, int64_t panel_end, uint8_t* scratch) const;
};

// The table of an instruction set that this build and this processor have.
const LinearKernels& linear_kernels(Isa isa);

}  // namespace herd
