// Elementwise operations: an element's bits do not depend on its place, what does not fill a register is computed in one that is
// padded.
#pragma once

#include "kernels/vector.h"

namespace herd::HERD_ISA {

// z = operation(x, y) by registers; z may be x or y.
template <typename Operation>
inline void elementwise(const float* x, const float* y, int64_t count, float* z, Operation operation) {
    constexpr int64_t kW = Vector::kWidth;
    int64_t i = 0;
    for (; i + kW <= count; i += kW) store(z + i, operation(load(x + i), load(y + i)));
    if (i == count) return;
    float rest[3][kW] = {};
    const auto bytes = static_cast<size_t>(count - i) * sizeof(float);
    std::memcpy(rest[0], x + i, bytes);
    std::memcpy(rest[1], y + i, bytes);
    store(rest[2], operation(load(rest[0]), load(rest[1])));
    std::memcpy(z + i, rest[2], bytes);
}

// 1 / (1 + e^-z); not a number stays one.
inline Vector sigmoid(Vector z) {
    return broadcast(1.0f) / (broadcast(1.0f) + exponential(smallest(broadcast(88.0f), broadcast(0.0f) - z)));
}

inline Vector magnitude(Vector x) { return largest(broadcast(0.0f) - x, x); }

}  // namespace herd::HERD_ISA
