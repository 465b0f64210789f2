// The sixteen-row vocabulary of this instruction set (lanes_portable.h explains the names).
#pragma once

#if defined(HERD_ISA_AVX512)
#include "kernels/lanes_avx512.h"
#elif defined(HERD_ISA_AVX2)
#include "kernels/lanes_avx2.h"
#elif defined(HERD_ISA_NEON)
#include "kernels/lanes_neon.h"
#else
#include "kernels/lanes_portable.h"
#endif
