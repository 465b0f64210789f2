// pack.cpp: a file's rows into panels and back.
#pragma once

#include "kernels/layout.h"

namespace herd::HERD_ISA {

// Whether BF16 is packed in pairs of columns, as a dot product of bf16 wants them.
#if defined(HERD_ISA_AVX512)
inline constexpr bool kBf16Pairs = true;
#else
inline constexpr bool kBf16Pairs = false;
#endif

int64_t block_columns(Storage storage);
int64_t row_bytes(Storage storage, int64_t columns);
int64_t panel_bytes(Storage storage, Arithmetic arithmetic, int64_t columns);
void pack_panel(Storage storage, FileRows rows_of_file, int64_t rows, int64_t columns, int64_t p, uint8_t* panel);
void unpack_row(const Matrix& matrix, int64_t row, float* out);

}  // namespace herd::HERD_ISA
