// Sixteen rows at once with AVX-512 (F, BW, DQ, VL, VNNI): one register. The names are explained in lanes_portable.h.
//
// `vpdpbusd` multiplies unsigned codes by signed activations and adds four into 32 bits, exactly. Signed codes (Table, Bytes) are moved
// up by 128 when they are unpacked; 128 times the sum of the activations comes off at the end.
#pragma once

#include <immintrin.h>

#include "kernels/half.h"
#include "kernels/layout.h"

#define HERD_INLINE inline __attribute__((always_inline))
#define HERD_UNROLL _Pragma("GCC unroll 8")

namespace herd::HERD_ISA::lanes {

inline constexpr int kTileTokens = 8;
inline constexpr int kFloatTileTokens = 8;

struct F32 {
    __m512 v;
};

HERD_INLINE F32 broadcast(float x) { return {_mm512_set1_ps(x)}; }
HERD_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
HERD_INLINE void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
HERD_INLINE __m128i load_16_bytes(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
HERD_INLINE __m256i load_32_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
HERD_INLINE __m512i load_64_bytes(const uint8_t* p) { return _mm512_loadu_si512(reinterpret_cast<const void*>(p)); }
HERD_INLINE F32 load_half(const uint8_t* p) { return {_mm512_cvtph_ps(load_32_bytes(p))}; }
// The first (`which` 0) or second (1) of 16 rows' pairs of bf16.
HERD_INLINE F32 load_bf16_of_pairs(const uint8_t* p, int64_t which) {
    const __m512i moved = _mm512_sll_epi32(load_64_bytes(p), _mm_cvtsi64_si128(16 - 16 * which));
    return {_mm512_castsi512_ps(_mm512_and_si512(moved, _mm512_set1_epi32(-65536)))};
}
HERD_INLINE F32 load_uint8(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_16_bytes(p)))}; }
HERD_INLINE F32 load_int8(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_16_bytes(p)))}; }
HERD_INLINE F32 add(F32 x, F32 y) { return {_mm512_add_ps(x.v, y.v)}; }
HERD_INLINE F32 mul(F32 x, F32 y) { return {_mm512_mul_ps(x.v, y.v)}; }
HERD_INLINE F32 negate(F32 x) { return {_mm512_xor_ps(x.v, _mm512_set1_ps(-0.0f))}; }
HERD_INLINE F32 fma(F32 x, F32 y, F32 z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }

#if defined(HERD_ISA_AVX512BF16)
// acc + the products of 16 rows' pairs of bf16 weights and one pair of bf16 activations.
HERD_INLINE F32 dot_bf16(const uint8_t* weights, const uint8_t* x, F32 acc) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)load_64_bytes(weights), (__m512bh)_mm512_set1_epi32(pair))};
}
#endif

template <Codes C>
inline constexpr bool kIsMoved = C == Codes::Table || C == Codes::Bytes;

template <Codes C>
struct Quad {
    __m512i v;
};

template <Codes C>
HERD_INLINE Quad<C> load_quad(const uint8_t* p) {
    return {load_64_bytes(p)};
}
template <Codes C>
HERD_INLINE void store_quad(uint8_t* p, const Quad<C>& w) {
    _mm512_storeu_si512(reinterpret_cast<void*>(p), w.v);
}

template <Codes C>
HERD_INLINE Quad<C> unpack_quad(const uint8_t* group, int q) {
    const __m512i moved = _mm512_set1_epi8(-128);
    if constexpr (C == Codes::Bytes) {
        return {_mm512_xor_si512(load_64_bytes(group + 64 * q), moved)};
    } else {
        const __m512i raw = load_64_bytes(group + 64 * (q & 3));
        const __m512i code = _mm512_and_si512(q < 4 ? raw : _mm512_srli_epi16(raw, 4), _mm512_set1_epi8(15));
        if constexpr (C == Codes::Table) {
            const __m512i table = _mm512_broadcast_i32x4(load_16_bytes(reinterpret_cast<const uint8_t*>(kTable)));
            return {_mm512_shuffle_epi8(_mm512_xor_si512(table, moved), code)};
        } else if constexpr (C == Codes::SixBits) {
            const __m512i plane = load_64_bytes(group + 256 + 64 * (q >> 2));
            const int up = 4 - 2 * (q & 3);  // from bits 2i of the plane to bits 4 and 5
            const auto shift = static_cast<unsigned>(up >= 0 ? up : -up);
            const __m512i upper = up >= 0 ? _mm512_slli_epi16(plane, shift) : _mm512_srli_epi16(plane, shift);
            return {_mm512_or_si512(code, _mm512_and_si512(upper, _mm512_set1_epi8(48)))};
        } else {
            return {code};
        }
    }
}

template <Codes C>
HERD_INLINE F32 column(const Quad<C>& w, int j) {
    const __m512i codes = kIsMoved<C> ? _mm512_xor_si512(w.v, _mm512_set1_epi8(-128)) : w.v;
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(codes, static_cast<unsigned>(24 - 8 * j)), 24))};
}

HERD_INLINE __m512i broadcast_quad(const int8_t* x) {
    int32_t quad;
    std::memcpy(&quad, x, 4);
    return _mm512_set1_epi32(quad);
}

template <Codes C>
struct Sums {
    __m512i v = _mm512_setzero_si512();

    HERD_INLINE void add(const Quad<C>& w0, const Quad<C>& w1, const int8_t* x) {
        v = _mm512_dpbusd_epi32(v, w0.v, broadcast_quad(x));
        v = _mm512_dpbusd_epi32(v, w1.v, broadcast_quad(x + 4));
    }
    template <int Shift>
    HERD_INLINE F32 value(const int32_t* x_sum) const {
        static_assert(!kIsMoved<C> || Shift < 0);
        constexpr int kShift = kIsMoved<C> ? 7 : Shift;
        if constexpr (kShift < 0) return {_mm512_cvtepi32_ps(v)};
        const __m512i offset = _mm512_slli_epi32(_mm512_set1_epi32(*x_sum), static_cast<unsigned>(kShift < 0 ? 0 : kShift));
        return {_mm512_cvtepi32_ps(_mm512_sub_epi32(v, offset))};
    }
};

}  // namespace herd::HERD_ISA::lanes
