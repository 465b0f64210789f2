// Single operations at once, outside of a program, on all threads of a machine: what encoders of pictures are made of.
#pragma once

#include "program/key_values.h"
#include "program/program.h"

namespace herd {

// y [rows][matrix.rows] = x [rows][matrix.columns] w^T + bias; bias may be null. The bits of a program's product.
void multiply_rows(Machine& machine, const Matrix& matrix, const float* bias, const float* x, int64_t rows, float* y);

// y [rows][heads][head width] = softmax(scale q k^T) v over all of one layer of `seen`, each query head with the kv head of its group.
void attend_rows(Machine& machine, const float* q, int64_t rows, int64_t heads, const KeyValues& seen, int64_t layer, float scale, float* y);

void layer_norm_rows(Machine& machine, const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t width, float* y);
void gelu_all(Machine& machine, const float* x, int64_t count, float* y);

}  // namespace herd
