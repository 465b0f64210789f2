// soft_cap: y = cap * tanh(factor * x / cap), elementwise
//
// tanh z is z + z^3 p(z^2) up to |z| = 0.625 (the error stays relative to z), beyond it 1 - 2 / (e^2|z| + 1) with the sign of z.
// Coefficients: least squares on the relative error at Chebyshev points, then rounded to float32.
// Reference: backends/reference/ops.py:soft_cap.
#include "kernels/elementwise.h"
#include "kernels/operations.h"

namespace herd::HERD_ISA {

namespace {

constexpr float kNear = 0.625f;

Vector tanh_of(Vector z) {
    const Vector size = magnitude(z);
    // For |z| below the limit: odd polynomial. Above it z is held at the limit, so that nothing overflows.
    const Vector near = smallest(broadcast(kNear), largest(broadcast(-kNear), z));
    const Vector square = near * near;
    Vector p = broadcast(-0.0057040425f);
    p = fused(p, square, broadcast(0.0206378624f));
    p = fused(p, square, broadcast(-0.0537391566f));
    p = fused(p, square, broadcast(0.133314312f));
    p = fused(p, square, broadcast(-0.333332807f));
    const Vector low = fused(near * square, p, near);
    const Vector one = broadcast(1.0f), two = broadcast(2.0f);
    const Vector far = one - two / (exponential(smallest(broadcast(80.0f), two * size)) + one);
    const Vector sign = zero_below(two, z, 0.0f) - one;  // not a number counts as positive; `far` carries it
    return low + zero_below(far * sign - low, size, kNear);
}

}  // namespace

void soft_cap(const float* x, float factor, float cap, int64_t count, float* y) {
    const Vector inside = broadcast(factor / cap), outside = broadcast(cap);
    elementwise(x, x, count, y, [=](Vector value, Vector) { return outside * tanh_of(value * inside); });
}

}  // namespace herd::HERD_ISA
