// From an instruction set to its tables. Built once, without the flags of any instruction set.
//
// Every instruction set defines `kernel_table()` (table.cpp) and `linear_table()` (linear.cpp).
#include "kernels/kernels.h"
#include "kernels/matrix.h"

#if defined(HERD_HAVE_AVX2)
#define HERD_IF_AVX2(X) X(avx2, Avx2)
#else
#define HERD_IF_AVX2(X)
#endif
#if defined(HERD_HAVE_AVX512)
#define HERD_IF_AVX512(X) X(avx512, Avx512)
#else
#define HERD_IF_AVX512(X)
#endif
#if defined(HERD_HAVE_NEON)
#define HERD_IF_NEON(X) X(neon, Neon)
#else
#define HERD_IF_NEON(X)
#endif
#define HERD_EACH_ISA(X) X(portable, Portable) HERD_IF_AVX2(X) HERD_IF_AVX512(X) HERD_IF_NEON(X)

namespace herd {

#define HERD_DECLARE(space, isa)            \
    namespace space {                       \
    const Kernels& kernel_table();          \
    const LinearKernels& linear_table();    \
    }
HERD_EACH_ISA(HERD_DECLARE)

const Kernels& kernels(Isa isa) {
#define HERD_CHOOSE(space, name) \
    if (isa == Isa::name) return space::kernel_table();
    HERD_EACH_ISA(HERD_CHOOSE)
#undef HERD_CHOOSE
    return portable::kernel_table();
}

const LinearKernels& linear_kernels(Isa isa) {
#define HERD_CHOOSE(space, name) \
    if (isa == Isa::name) return space::linear_table();
    HERD_EACH_ISA(HERD_CHOOSE)
#undef HERD_CHOOSE
    return portable::linear_table();
}

}  // namespace herd
