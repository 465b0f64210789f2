// Norms, rotations, gates and the softmax of the vocabulary over many rows, by several threads.
#pragma once

#include <cstdint>

#include "kernels/learn.h"

namespace herd {

// Rows of numbers, `stride` elements from one to the next.
struct Matrix2 {
    void* data;
    int64_t stride;
};

// Who does the work, and on what: `rows` rows of `width` numbers.
struct RowWork {
    const LearnRowKernels& kernels;
    int threads;
    Element element;
    int64_t rows, width;
};

constexpr int64_t kScaleRows = 16;  // rows whose slopes of a norm's scales are one part

void rms_norm_rows(const RowWork& work, Matrix2 x, const float* scales, float eps, Matrix2 y, float* factors);
// `for_scales`, if not null: [ceil(rows / 16)][width], to which what comes from 16 rows each is added.
void rms_norm_rows_backward(const RowWork& work, Matrix2 x, const float* scales, const float* factors, Matrix2 dy, Matrix2 dx, float* for_scales);
// Rows are tokens of `heads` heads, each `width` / `heads` wide; cosines and sines are [rows][width / heads / 2]; `back` turns the other way.
void rotate_rows(const RowWork& work, int64_t heads, Matrix2 x, const float* cosines, const float* sines, bool back, Matrix2 y);
void silu_gate_rows(const RowWork& work, Matrix2 gate, Matrix2 up, Matrix2 y);
void silu_gate_rows_backward(const RowWork& work, Matrix2 gate, Matrix2 up, Matrix2 dy, Matrix2 for_gate, Matrix2 for_up);
// log p(target) and log sum exp of each row of logits. `with_slopes`: the logits become (1 + 2 z_loss lse) softmax - 1[target].
void softmax_rows(const RowWork& work, Matrix2 logits, const int64_t* targets, float z_loss, bool with_slopes, float* logprobs, float* lse);

}  // namespace herd
