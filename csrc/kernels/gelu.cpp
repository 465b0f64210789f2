// gelu: y = x * Phi(x) with the exact error function, elementwise (arXiv 1606.08415)
//
// With e(z) = erfc(z / sqrt 2): x Phi(x) = max(x, 0) - |x| e(|x|) / 2, which loses nothing where x is far below zero.
// erfc(z) = t exp(-z^2 + p(t)) with t = 1 / (1 + z / 2); p: least squares at Chebyshev points against the exact function,
// off by 1e-7 of e at most.
// Reference: backends/reference/picture_ops.py:gelu.
#include "kernels/elementwise.h"
#include "kernels/operations.h"

namespace herd::HERD_ISA {

namespace {

Vector gelu_of(Vector x) {
    const Vector size = smallest(broadcast(13.0f), magnitude(x));  // beyond, e is 0 in float32
    const Vector z = size * broadcast(0.70710678118654752f);
    const Vector t = broadcast(1.0f) / fused(broadcast(0.5f), z, broadcast(1.0f));
    constexpr float kPowers[] = {0.138559341f,  -0.645911336f, 1.0739913f,   -0.585266888f, -0.172871485f,
                                 0.0509365611f, 0.0175261684f, 0.39025715f, 0.9982059f,    -1.26542664f};
    Vector p = broadcast(kPowers[0]);
    for (size_t i = 1; i < sizeof(kPowers) / sizeof(float); ++i) p = fused(p, t, broadcast(kPowers[i]));
    const Vector e = t * exponential(p - z * z);
    return largest(broadcast(0.0f), x) - size * (broadcast(0.5f) * e);
}

}  // namespace

void gelu(const float* x, int64_t count, float* y) {
    elementwise(x, x, count, y, [](Vector value, Vector) { return gelu_of(value); });
}

}  // namespace herd::HERD_ISA
