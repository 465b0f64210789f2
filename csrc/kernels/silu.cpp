// silu_gate: y = gate / (1 + exp(-gate)) * up, elementwise (arXiv 2002.05202); add; all_finite; exponential
//
// An element's bits do not depend on its place: what does not fill a register is computed in one that is padded.
// Reference: backends/reference/ops.py:silu_gate. The exponential is vector.h's; its error is tested there and in csrc/tests.
#include "kernels/elementwise.h"
#include "kernels/operations.h"

namespace herd::HERD_ISA {

namespace {

constexpr int64_t kW = Vector::kWidth;

Vector silu(Vector z, Vector up) {
    const Vector one = broadcast(1.0f);
    const Vector exponent = smallest(broadcast(88.0f), broadcast(0.0f) - z);  // not a number passes through
    return z / (one + exponential(exponent)) * up;
}

}  // namespace

void silu_gate(const float* gate, const float* up, int64_t count, float* y) { elementwise(gate, up, count, y, silu); }

void add(const float* x, const float* y, int64_t count, float* z) {
    for (int64_t i = 0; i < count; ++i) z[i] = x[i] + y[i];
}

bool all_finite(const float* x, int64_t count) {
    // x - x is 0 for a finite number and not a number for the others, and sums keep that.
    Vector nothing = broadcast(0.0f);
    int64_t i = 0;
    for (; i + kW <= count; i += kW) {
        const Vector value = load(x + i);
        nothing = nothing + (value - value);
    }
    float total = sum(nothing);
    for (; i < count; ++i) total += x[i] - x[i];
    return total == 0.0f;
}

void exponential(const float* x, int64_t count, float* y) {
    elementwise(x, x, count, y, [](Vector value, Vector) { return exponential(value); });
}

}  // namespace herd::HERD_ISA
