// The parts of linear: linear_int8.cpp and linear_float.cpp multiply, linear.cpp chooses between them.
#pragma once

#include "kernels/layout.h"

namespace herd::HERD_ISA {

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

void linear_int8(const LinearCall& call);
int64_t linear_int8_scratch_bytes(const Matrix& matrix, int64_t tokens);

void linear_float(const LinearCall& call);
int64_t linear_float_scratch_bytes(const Matrix& matrix, int64_t tokens);

}  // namespace herd::HERD_ISA
