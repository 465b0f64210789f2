// rms_norm: y = x / sqrt(mean(x^2) + eps) * weight, one row
//
//   x       [D] f32      y [D] f32, may be x      weight [D] f32 or absent
//
// One row is one thread's, so the bits depend neither on the number of rows nor on threads. The sum of squares runs in four
// registers that are joined in a fixed order: each lane adds D / 32 numbers or fewer.
// Reference: backends/reference/ops.py:rms_norm.
#include <cmath>

#include "kernels/operations.h"
#include "kernels/vector.h"

namespace herd::HERD_ISA {

void rms_norm(const float* x, const float* weight, float eps, int64_t width, float* y) {
    constexpr int64_t kW = Vector::kWidth;
    Vector sums[4] = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
    int64_t i = 0;
    for (; i + 4 * kW <= width; i += 4 * kW) {
        for (int part = 0; part < 4; ++part) {
            const Vector value = load(x + i + part * kW);
            sums[part] = fused(value, value, sums[part]);
        }
    }
    float total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < width; ++i) total += x[i] * x[i];
    const float factor = 1.0f / std::sqrt(total / static_cast<float>(width) + eps);
    for (i = 0; i < width; ++i) y[i] = x[i] * factor;
    if (weight != nullptr) {
        for (i = 0; i < width; ++i) y[i] *= weight[i];
    }
}

}  // namespace herd::HERD_ISA
