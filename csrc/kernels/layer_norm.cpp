// layer_norm: y = (x - mean) / sqrt(variance + eps) * weight + bias, one row (arXiv 1607.06450)
//
//   x       [D] f32      y [D] f32, may be x      weight, bias [D] f32
//
// Mean first, then the squares of what is left: no cancellation. Sums in double: a row is short and read three times.
// Reference: backends/reference/picture_ops.py:layer_norm.
#include <cmath>

#include "kernels/operations.h"

namespace herd::HERD_ISA {

namespace {

// In four chains, joined in a fixed order.
template <typename Term>
double sum_of(int64_t count, Term term) {
    double sums[4] = {};
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        for (int64_t part = 0; part < 4; ++part) sums[part] += term(i + part);
    }
    for (; i < count; ++i) sums[0] += term(i);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* y) {
    const double mean = sum_of(width, [x](int64_t i) { return static_cast<double>(x[i]); }) / static_cast<double>(width);
    const double squares = sum_of(width, [x, mean](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
    const auto factor = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(width) + static_cast<double>(eps)));
    const auto centre = static_cast<float>(mean);
    for (int64_t i = 0; i < width; ++i) y[i] = (x[i] - centre) * factor * weight[i] + bias[i];
}

}  // namespace herd::HERD_ISA
