// The tables of avx512bf16: those of avx512, and products of bf16 weights by its dot product of pairs.
#include "kernels/linear.h"
#include "kernels/operations.h"

namespace herd {

namespace avx512 {
const Kernels& kernel_table();
const LinearKernels& linear_table();
}  // namespace avx512

namespace avx512bf16 {

const Kernels& kernel_table();
const LinearKernels& linear_table();

const Kernels& kernel_table() {
    static const Kernels table = [] {
        Kernels changed = avx512::kernel_table();
        changed.bf16_peak = bf16_peak;
        changed.bf16_peak_operations = kBf16PeakOperations;
        return changed;
    }();
    return table;
}

const LinearKernels& linear_table() {
    static const LinearKernels table = [] {
        LinearKernels changed = avx512::linear_table();
        changed.linear_bf16 = linear_bf16;
        return changed;
    }();
    return table;
}

}  // namespace avx512bf16

}  // namespace herd
