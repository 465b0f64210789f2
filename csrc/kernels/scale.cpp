// scale: y = factor * x; add_scaled: z = x + factor * y, in two roundings on every instruction set
//
// Reference: backends/reference/ops.py:temper, gated_add.
#include "kernels/operations.h"

namespace herd::HERD_ISA {

void scale(const float* x, float factor, int64_t count, float* y) {
    for (int64_t i = 0; i < count; ++i) y[i] = x[i] * factor;
}

void add_scaled(const float* x, const float* y, float factor, int64_t count, float* z) {
    for (int64_t i = 0; i < count; ++i) z[i] = x[i] + factor * y[i];
}

}  // namespace herd::HERD_ISA
