// How the codes of a group lie in a panel of this instruction set and are multiplied: packing, products and the activations they take.
#pragma once

#if defined(HERD_ISA_AVX512) || defined(HERD_ISA_AVX2) || defined(HERD_ISA_NEON)
#include "kernels/codes_bytes.h"
#else
#include "kernels/codes_words.h"
#endif
