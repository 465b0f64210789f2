// The tables of avxvnni: those of avx2, but for what is made of its dot product of bytes.
#include "kernels/linear.h"
#include "kernels/operations.h"

namespace herd {

namespace avx2 {
const Kernels& kernel_table();
const LinearKernels& linear_table();
}  // namespace avx2

namespace avxvnni {

const Kernels& kernel_table();
const LinearKernels& linear_table();

const Kernels& kernel_table() {
    static const Kernels table = [] {
        Kernels changed = avx2::kernel_table();
        changed.int8_peak = int8_peak;
        changed.int8_peak_operations = kInt8PeakOperations;
        return changed;
    }();
    return table;
}

const LinearKernels& linear_table() {
    static const LinearKernels table = [] {
        LinearKernels changed = avx2::linear_table();
        changed.linear_int8 = linear_int8;
        changed.int8_scratch_bytes = int8_scratch_bytes;
        return changed;
    }();
    return table;
}

}  // namespace avxvnni

}  // namespace herd
