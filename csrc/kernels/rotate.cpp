// rotate: rotary positions (arXiv 2104.09864) on interleaved pairs, one head, in place
//
//   (x[2i], x[2i+1]) <- (x[2i] c[i] - x[2i+1] s[i], x[2i] s[i] + x[2i+1] c[i])      i < pairs
//
// Reference: backends/reference/ops.py:rotate.
#include "kernels/operations.h"

namespace herd::HERD_ISA {

void rotate(float* x, const float* cosine, const float* sine, int64_t pairs) {
    for (int64_t i = 0; i < pairs; ++i) {
        const float even = x[2 * i], odd = x[2 * i + 1];
        x[2 * i] = even * cosine[i] - odd * sine[i];
        x[2 * i + 1] = even * sine[i] + odd * cosine[i];
    }
}

}  // namespace herd::HERD_ISA
