// Sixteen rows at once, in plain C++. The same names exist for AVX2, AVX-512 and NEON; linear.cpp is written in them.
//
//   F32      16 floats, one per row
//   Quad<C>  the codes of 4 columns of 16 rows, ready to be multiplied; C tells their range (Nibbles 0..15, SixBits 0..63,
//            Table and Bytes -128..127)
//   Sums<C>  16 running integer sums of code * activation; exact over a group of 32 columns
#pragma once

#include "kernels/half.h"
#include "kernels/layout.h"

#define HERD_INLINE inline __attribute__((always_inline))
#define HERD_UNROLL  // loops over tokens and quads stay loops: sixteen lanes are loops themselves

namespace herd::HERD_ISA::lanes {

// Token counts of the tiles that keep their sums in registers.
inline constexpr int kTileTokens = 2;
inline constexpr int kFloatTileTokens = 4;

struct F32 {
    float v[16];
};

HERD_INLINE F32 broadcast(float x) {
    F32 out;
    for (float& v : out.v) v = x;
    return out;
}
HERD_INLINE F32 load(const float* p) {
    F32 out;
    std::memcpy(out.v, p, 64);
    return out;
}
HERD_INLINE void store(float* p, F32 x) { std::memcpy(p, x.v, 64); }
HERD_INLINE F32 load_half(const uint8_t* p) {
    F32 out;
    for (int i = 0; i < 16; ++i) out.v[i] = half_to_float(static_cast<uint16_t>(p[2 * i] | p[2 * i + 1] << 8));
    return out;
}
HERD_INLINE F32 load_bf16(const uint8_t* p) {
    F32 out;
    for (int i = 0; i < 16; ++i) {
        out.v[i] = bits_to_float(static_cast<uint32_t>(p[2 * i]) << 16 | static_cast<uint32_t>(p[2 * i + 1]) << 24);
    }
    return out;
}
HERD_INLINE F32 load_uint8(const uint8_t* p) {
    F32 out;
    for (int i = 0; i < 16; ++i) out.v[i] = static_cast<float>(p[i]);
    return out;
}
HERD_INLINE F32 load_int8(const uint8_t* p) {
    F32 out;
    for (int i = 0; i < 16; ++i) out.v[i] = static_cast<float>(static_cast<int8_t>(p[i]));
    return out;
}
HERD_INLINE F32 add(F32 a, F32 b) {
    for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
    return a;
}
HERD_INLINE F32 mul(F32 a, F32 b) {
    for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
    return a;
}
HERD_INLINE F32 negate(F32 a) {
    for (float& v : a.v) v = -v;
    return a;
}
// a * b + c
HERD_INLINE F32 fma(F32 a, F32 b, F32 c) {
    for (int i = 0; i < 16; ++i) {
#if defined(__FP_FAST_FMAF)
        c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
#else
        c.v[i] += a.v[i] * b.v[i];
#endif
    }
    return c;
}

template <Codes C>
struct Quad {
    int8_t v[64];
};

template <Codes C>
HERD_INLINE Quad<C> load_quad(const uint8_t* p) {
    Quad<C> out;
    std::memcpy(out.v, p, 64);
    return out;
}
template <Codes C>
HERD_INLINE void store_quad(uint8_t* p, const Quad<C>& w) {
    std::memcpy(p, w.v, 64);
}

// Quad q of a packed group.
template <Codes C>
HERD_INLINE Quad<C> unpack_quad(const uint8_t* group, int q) {
    if constexpr (C == Codes::Bytes) return load_quad<C>(group + 64 * q);
    Quad<C> out;
    for (int i = 0; i < 64; ++i) {
        const int byte = group[64 * (q & 3) + i];
        int code = q < 4 ? byte & 15 : byte >> 4;
        if constexpr (C == Codes::SixBits) code |= (group[256 + 64 * (q >> 2) + i] >> (2 * (q & 3)) & 3) << 4;
        if constexpr (C == Codes::Table) code = kTable[code];
        out.v[i] = static_cast<int8_t>(code);
    }
    return out;
}

// Column j of a quad as floats.
template <Codes C>
HERD_INLINE F32 column(const Quad<C>& w, int j) {
    F32 out;
    for (int i = 0; i < 16; ++i) out.v[i] = static_cast<float>(w.v[4 * i + j]);
    return out;
}

template <Codes C>
struct Sums {
    int32_t v[16] = {};

    // Two neighbouring quads times 8 activations.
    HERD_INLINE void add(const Quad<C>& w0, const Quad<C>& w1, const int8_t* x) {
        for (int i = 0; i < 16; ++i) {
            for (int j = 0; j < 4; ++j) v[i] += w0.v[4 * i + j] * x[j] + w1.v[4 * i + j] * x[4 + j];
        }
    }
    // The sums as floats; `x_sum` is the sum of the activations, of which 2^Shift copies are taken off (none when Shift < 0).
    template <int Shift>
    HERD_INLINE F32 value(const int32_t* x_sum) const {
        F32 out;
        for (int i = 0; i < 16; ++i) out.v[i] = static_cast<float>(Shift < 0 ? v[i] : v[i] - *x_sum * (1 << (Shift < 0 ? 0 : Shift)));
        return out;
    }
};

}  // namespace herd::HERD_ISA::lanes
