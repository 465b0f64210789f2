// Sixteen rows at once, in vectors of 16 bytes, which compilers make of whatever the processor has (SSE2 on any x86-64). The same names
// exist for AVX2, AVX-512 and NEON; the products are written in them.
//
//   F32      16 floats, one per row
//   Quad<C>  the codes of 4 columns of 16 rows, a byte each; C tells their range (Nibbles 0..15, SixBits 0..63,
//            Table and Bytes -128..127)
//   Sums<C>  16 running integer sums of code * activation; exact over a group of 32 columns
//
// How codes lie and how sums come about here: codes_words.h.
#pragma once

#include "kernels/half.h"
#include "kernels/layout.h"
#include "kernels/words.h"

#define HERD_INLINE inline __attribute__((always_inline))
#if defined(__SANITIZE_ADDRESS__)
#define HERD_UNROLL  // checked a thousand times in one function, loads take compilers many minutes
#elif defined(__clang__)
#define HERD_UNROLL _Pragma("unroll")
#else
#define HERD_UNROLL _Pragma("GCC unroll 8")
#endif
#define HERD_EACH_FOUR HERD_UNROLL for (int i = 0; i < 4; ++i)

namespace herd::HERD_ISA::lanes {

// Token counts of the tiles that keep their sums in registers.
inline constexpr int kTileTokens = 2;
inline constexpr int kFloatTileTokens = 2;

struct F32 {
    Floats v[4];
};

HERD_INLINE F32 broadcast(float x) {
    const Floats v = {x, x, x, x};
    return {{v, v, v, v}};
}
HERD_INLINE F32 load(const float* p) {
    F32 out;
    HERD_EACH_FOUR out.v[i] = read_words<Floats>(p + 4 * i);
    return out;
}
HERD_INLINE void store(float* p, F32 x) {
    HERD_EACH_FOUR std::memcpy(p + 4 * i, &x.v[i], 16);
}
HERD_INLINE F32 load_half(const uint8_t* p) {
    F32 out;
    halves_to_floats(p, out.v);
    return out;
}
HERD_INLINE F32 load_bf16(const uint8_t* p) {
    F32 out;
    for (int h = 0; h < 2; ++h) {
        const Unsigned16 high = read_words<Unsigned16>(p + 16 * h), low = {};
        out.v[2 * h] = reinterpret_cast<Floats>(HERD_SHUFFLE(low, high, 0, 8, 1, 9, 2, 10, 3, 11));
        out.v[2 * h + 1] = reinterpret_cast<Floats>(HERD_SHUFFLE(low, high, 4, 12, 5, 13, 6, 14, 7, 15));
    }
    return out;
}

// Bytes, of which `high` is what stands above each of them in 16 bits.
HERD_INLINE F32 bytes_to_floats(Bytes bytes, Bytes high) {
    const Words words[2] = {reinterpret_cast<Words>(HERD_SHUFFLE(bytes, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)),
                            reinterpret_cast<Words>(HERD_SHUFFLE(bytes, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31))};
    F32 out;
    for (int h = 0; h < 2; ++h) {
        const Words sign = words[h] >> 15;
        out.v[2 * h] = to_floats(reinterpret_cast<Signed32>(HERD_SHUFFLE(words[h], sign, 0, 8, 1, 9, 2, 10, 3, 11)));
        out.v[2 * h + 1] = to_floats(reinterpret_cast<Signed32>(HERD_SHUFFLE(words[h], sign, 4, 12, 5, 13, 6, 14, 7, 15)));
    }
    return out;
}
HERD_INLINE F32 load_uint8(const uint8_t* p) { return bytes_to_floats(read_words<Bytes>(p), Bytes{}); }
HERD_INLINE F32 load_int8(const uint8_t* p) {
    const auto bytes = read_words<Bytes>(p);
    return bytes_to_floats(bytes, bytes < 0);
}
HERD_INLINE F32 add(F32 a, F32 b) {
    HERD_EACH_FOUR a.v[i] += b.v[i];
    return a;
}
HERD_INLINE F32 mul(F32 a, F32 b) {
    HERD_EACH_FOUR a.v[i] *= b.v[i];
    return a;
}
HERD_INLINE F32 negate(F32 a) {
    HERD_EACH_FOUR a.v[i] = -a.v[i];
    return a;
}
// a * b + c
HERD_INLINE F32 fma(F32 a, F32 b, F32 c) {
#if defined(__FP_FAST_FMAF)
    for (int i = 0; i < 16; ++i) c.v[i / 4][i % 4] = __builtin_fmaf(a.v[i / 4][i % 4], b.v[i / 4][i % 4], c.v[i / 4][i % 4]);
#else
    HERD_EACH_FOUR c.v[i] += a.v[i] * b.v[i];
#endif
    return c;
}

template <Codes C>
struct Quad {
    Unsigned16 v[4];
};

// Column j of a quad as floats.
template <Codes C>
HERD_INLINE F32 column(const Quad<C>& w, int j) {
    F32 out;
    HERD_EACH_FOUR out.v[i] = to_floats(reinterpret_cast<Signed32>(w.v[i]) << (24 - 8 * j) >> 24);
    return out;
}

template <Codes C>
struct Sums {
    Signed32 v[4] = {};
};

#undef HERD_EACH_FOUR

}  // namespace herd::HERD_ISA::lanes
