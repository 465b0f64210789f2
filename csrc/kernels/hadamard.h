// hadamard: the orthonormal Walsh-Hadamard transform of a head, in blocks of the largest power of two that divides its width
//
//   x <- H x / sqrt(n)     of each run of n values; its own inverse
//
// A key and a query that are both transformed have the same product. What few components had is spread over all, so that four bits
// a component lose less (arXiv 2404.00456). Sums in the order of `backends/reference/integer_cache.py`.
#pragma once

#include <cmath>
#include <cstdint>

namespace herd::HERD_ISA {

inline void hadamard(float* x, int64_t width) {
    const int64_t block = width & -width;
    const float factor = 1.0f / std::sqrt(static_cast<float>(block));
    for (int64_t half = 1; half < block; half *= 2) {
        for (int64_t first = 0; first < width; first += 2 * half) {
            for (int64_t i = first; i < first + half; ++i) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    }
    for (int64_t i = 0; i < width; ++i) x[i] *= factor;
}

}  // namespace herd::HERD_ISA
