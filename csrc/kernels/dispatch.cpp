// From an instruction set to its tables. Built once, without the flags of any instruction set.
//
// Every instruction set defines `kernel_table()` and `linear_table()` (table.cpp, or its own where most functions are another's:
// table_avxvnni.cpp, table_avx512bf16.cpp). `sample_table()` (sample.cpp) and `learn_row_table()` (learn_rows.cpp) are defined by those that compile every
// kernel, `learn_table()` (learn_attention.cpp) also by avx512bf16.
#include "kernels/kernels.h"
#include "kernels/learn.h"
#include "kernels/matrix.h"
#include "kernels/sample.h"

// X(name of the set, of the set that compiles every kernel for it, of the set that its attention for training is from, in Isa).
#if defined(HERD_HAVE_AVX2)
#define HERD_IF_AVX2(X) X(avx2, avx2, avx2, Avx2)
#else
#define HERD_IF_AVX2(X)
#endif
#if defined(HERD_HAVE_AVXVNNI)
#define HERD_IF_AVXVNNI(X) X(avxvnni, avx2, avx2, AvxVnni)
#else
#define HERD_IF_AVXVNNI(X)
#endif
#if defined(HERD_HAVE_AVX512)
#define HERD_IF_AVX512(X) X(avx512, avx512, avx512, Avx512)
#else
#define HERD_IF_AVX512(X)
#endif
#if defined(HERD_HAVE_AVX512BF16)
#define HERD_IF_AVX512BF16(X) X(avx512bf16, avx512, avx512bf16, Avx512Bf16)
#else
#define HERD_IF_AVX512BF16(X)
#endif
#if defined(HERD_HAVE_NEON)
#define HERD_IF_NEON(X) X(neon, neon, neon, Neon)
#else
#define HERD_IF_NEON(X)
#endif
#define HERD_EACH_ISA(X) \
    X(portable, portable, portable, Portable) HERD_IF_AVX2(X) HERD_IF_AVXVNNI(X) HERD_IF_AVX512(X) HERD_IF_AVX512BF16(X) HERD_IF_NEON(X)

namespace herd {

#define HERD_DECLARE(space, full, learning, isa) \
    namespace space {                      \
    const Kernels& kernel_table();         \
    const LinearKernels& linear_table();   \
    }                                      \
    namespace full {                   \
    const SampleKernels& sample_table();      \
    const LearnRowKernels& learn_row_table(); \
    }                                         \
    namespace learning {                   \
    const LearnKernels& learn_table();     \
    }
HERD_EACH_ISA(HERD_DECLARE)

const Kernels& kernels(Isa isa) {
#define HERD_CHOOSE(space, full, learning, name) \
    if (isa == Isa::name) return space::kernel_table();
    HERD_EACH_ISA(HERD_CHOOSE)
#undef HERD_CHOOSE
    return portable::kernel_table();
}

const LinearKernels& linear_kernels(Isa isa) {
#define HERD_CHOOSE(space, full, learning, name) \
    if (isa == Isa::name) return space::linear_table();
    HERD_EACH_ISA(HERD_CHOOSE)
#undef HERD_CHOOSE
    return portable::linear_table();
}

const SampleKernels& sample_kernels(Isa isa) {
#define HERD_CHOOSE(space, full, learning, name) \
    if (isa == Isa::name) return full::sample_table();
    HERD_EACH_ISA(HERD_CHOOSE)
#undef HERD_CHOOSE
    return portable::sample_table();
}

const LearnRowKernels& learn_row_kernels(Isa isa) {
#define HERD_CHOOSE(space, full, learning, name) \
    if (isa == Isa::name) return full::learn_row_table();
    HERD_EACH_ISA(HERD_CHOOSE)
#undef HERD_CHOOSE
    return portable::learn_row_table();
}

const LearnKernels& learn_kernels(Isa isa) {
#define HERD_CHOOSE(space, full, learning, name) \
    if (isa == Isa::name) return learning::learn_table();
    HERD_EACH_ISA(HERD_CHOOSE)
#undef HERD_CHOOSE
    return portable::learn_table();
}

}  // namespace herd
