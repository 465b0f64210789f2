// sample: what is done to all logits of a row on the way to the next token. What is done to the few candidates that are left
// is the same on every instruction set (program/choose.h).
#pragma once

#include <cstdint>

#include "base/cpu.h"

namespace herd {

// The largest of a row, and the lowest index that has it. `has_nan` says that there is a NaN; the rest is then undefined.
struct Largest {
    double value;
    int64_t index;
    bool has_nan;
};

// Passes leave the largest of every run of so many elements, so that later ones can skip most of the row.
constexpr int64_t kRun = 128;

// One table of functions per instruction set. n is the length of the row; it may be any number from 1. `runs` has
// ceil(n / kRun) elements.
struct SampleKernels {
    Largest (*largest)(const float* x, int64_t n, float* runs);
    Largest (*largest_double)(const double* x, int64_t n);

    // weights[i] = exp((x[i] - largest) * factor), 0 below exp(-700); returns their sum. A weight's relative error
    // is below 1e-14. The order of the sum is fixed.
    double (*weigh)(const float* x, int64_t n, double largest, double factor, double* weights, double* runs);
    double (*weigh_double)(const double* x, int64_t n, double largest, double factor, double* weights, double* runs);
    // The sum of exp(x[i] - largest), without the weights: bit-equal to `weigh` with factor 1.
    double (*sum)(const float* x, int64_t n, double largest);

    // The indices, rising, of weights that are above zero and at least `threshold`. Returns how many.
    int64_t (*collect)(const double* weights, const double* runs, int64_t n, double threshold, int32_t* indices);
    // The indices of the `count` largest, falling; equal ones by rising index. Returns how many (fewer if n is).
    int64_t (*most)(const float* x, const float* runs, int64_t n, int64_t count, int32_t* indices);
};

// The table of an instruction set that this build and this processor have.
const SampleKernels& sample_kernels(Isa isa);

}  // namespace herd
