// sample: what is done to all logits of a row on the way to the next token. What is done to the few candidates that are left
// is the same on every instruction set (program/choose.h).
#pragma once

#include <cstdint>

namespace herd {

// The largest of a row, and the lowest index that has it. `has_nan` says that there is a NaN; the rest is then undefined.
struct Largest {
    double value;
    int64_t index;
    bool has_nan;
};

// One table of functions per instruction set. n is the length of the row; it may be any number from 1.
struct SampleKernels {
    Largest (*largest)(const float* x, int64_t n);
    Largest (*largest_double)(const double* x, int64_t n);

    // weights[i] = exp((x[i] - largest) / temperature), 0 below exp(-700); returns their sum. A weight's relative error
    // is below 1e-14. The order of the sum is fixed.
    double (*weigh)(const float* x, int64_t n, double largest, double temperature, double* weights);
    double (*weigh_double)(const double* x, int64_t n, double largest, double temperature, double* weights);
    // The sum of exp(x[i] - largest), without the weights: bit-equal to `weigh` with temperature 1.
    double (*sum)(const float* x, int64_t n, double largest);

    // The indices, rising, of weights that are above zero and at least `threshold`. Returns how many.
    int64_t (*collect)(const double* weights, int64_t n, double threshold, int32_t* indices);
    // The indices of the `count` largest, falling; equal ones by rising index. Returns how many (fewer if n is).
    int64_t (*most)(const float* x, int64_t n, int64_t count, int32_t* indices);
};

}  // namespace herd
