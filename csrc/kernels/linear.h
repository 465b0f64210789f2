// The parts of linear: linear_int8.cpp, linear_float.cpp and linear_bf16.cpp multiply, linear.cpp chooses between them.
#pragma once

#include "kernels/layout.h"

namespace herd {

// One call of `linear` (matrix.h).
struct LinearCall {
    const Matrix& matrix;
    const uint8_t* x;        // prepared rows
    int64_t x_stride;        // bytes
    int64_t tokens;
    const float* bias;
    bool accumulate;
    float* y;
    int64_t y_stride;        // floats
    int64_t panel_begin, panel_end;
    int64_t panel_bytes;
    uint8_t* scratch;
    const uint8_t* first_panel;  // panel_begin

    const uint8_t* panel(int64_t p) const { return first_panel + (p - panel_begin) * panel_bytes; }
};

#if defined(HERD_ISA)
namespace HERD_ISA {

void linear_int8(const LinearCall& call);
int64_t int8_scratch_bytes(const Matrix& matrix, int64_t tokens);

void linear_float(const LinearCall& call);
int64_t float_scratch_bytes(const Matrix& matrix, int64_t tokens);

void linear_bf16(const LinearCall& call);

}  // namespace HERD_ISA
#endif

}  // namespace herd
