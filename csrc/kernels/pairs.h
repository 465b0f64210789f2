// Registers of pairs of 16-bit integers, and the exact dot products of pairs: what attention over an integer cache multiplies with.
//
// Only for csrc/kernels/*.cpp, as vector.h. A register has Vector::kWidth pairs and as many 32-bit sums.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/layout.h"
#include "kernels/vector.h"

namespace herd::HERD_ISA {

#if defined(HERD_ISA_AVX512)

struct Integers {
    __m512i v;
};
struct Pairs {
    __m512i v;
};
inline Integers no_integers() { return {_mm512_setzero_si512()}; }
inline Pairs load_pairs(const int8_t* p) { return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline Pairs broadcast_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return {_mm512_set1_epi32(pair)};
}
inline Integers dot(Integers sum, Pairs a, Pairs b) { return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)}; }
inline Vector to_float(Integers a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Rounded to the nearest integer, ties to even; they fit.
inline void store_rounded(int16_t* p, Vector a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a.v)));
}
inline Vector magnitude(Vector a) { return {_mm512_abs_ps(a.v)}; }
inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

#elif defined(HERD_ISA_AVX2)

struct Integers {
    __m256i v;
};
struct Pairs {
    __m256i v;
};
inline Integers no_integers() { return {_mm256_setzero_si256()}; }
inline Pairs load_pairs(const int8_t* p) { return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline Pairs broadcast_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return {_mm256_set1_epi32(pair)};
}
inline Integers dot(Integers sum, Pairs a, Pairs b) { return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v))}; }
inline Vector to_float(Integers a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline void store_rounded(int16_t* p, Vector a) {
    const __m256i whole = _mm256_cvtps_epi32(a.v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
}
inline Vector magnitude(Vector a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

#elif defined(HERD_ISA_NEON)

struct Integers {
    int32x4_t v;
};
struct Pairs {
    int16x4_t first, second;
};
inline Integers no_integers() { return {vdupq_n_s32(0)}; }
inline Pairs load_pairs(const int8_t* p) {
    const int16x8_t both = vmovl_s8(vld1_s8(p));
    return {vget_low_s16(vuzp1q_s16(both, both)), vget_low_s16(vuzp2q_s16(both, both))};
}
inline Pairs broadcast_pair(const int16_t* p) { return {vdup_n_s16(p[0]), vdup_n_s16(p[1])}; }
inline Integers dot(Integers sum, Pairs a, Pairs b) { return {vmlal_s16(vmlal_s16(sum.v, a.first, b.first), a.second, b.second)}; }
inline Vector to_float(Integers a) { return {vcvtq_f32_s32(a.v)}; }
inline void store_rounded(int16_t* p, Vector a) { vst1_s16(p, vqmovn_s32(vcvtnq_s32_f32(a.v))); }
inline Vector magnitude(Vector a) { return {vabsq_f32(a.v)}; }
inline void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

#else

struct Integers {
    Signed32 v;
};
struct Pairs {
    Words v;
};
inline Integers no_integers() { return {Signed32{}}; }
inline Pairs load_pairs(const int8_t* p) {
    uint64_t eight;
    std::memcpy(&eight, p, 8);
    const auto bytes = reinterpret_cast<Bytes>(Unsigned64{eight, eight});
    return {reinterpret_cast<Words>(HERD_SHUFFLE(bytes, bytes, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7)) >> 8};
}
inline Pairs broadcast_pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, 4);
    return {reinterpret_cast<Words>(Signed32{pair, pair, pair, pair})};
}
inline Integers dot(Integers sum, Pairs a, Pairs b) { return {sum.v + add_products(a.v, b.v)}; }
inline Vector to_float(Integers a) { return {to_floats(a.v)}; }
inline void store_rounded(int16_t* p, Vector a) {
    const auto words = reinterpret_cast<Words>(round_within(a.v, 32767.0f));
    const Words rounded = HERD_SHUFFLE(words, words, 0, 2, 4, 6, 0, 2, 4, 6);
    std::memcpy(p, &rounded, 8);
}
inline Vector magnitude(Vector a) { return {reinterpret_cast<Floats>(reinterpret_cast<Signed32>(a.v) & 0x7fffffff)}; }
inline void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

#endif

// 16 numbers.
inline void store_rounded(const Vector (&parts)[16 / Vector::kWidth], int16_t* p) {
#if defined(HERD_ISA_AVX2)
    const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(parts[0].v), _mm256_cvtps_epi32(parts[1].v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
#else
    for (int part = 0; part < 16 / Vector::kWidth; ++part) store_rounded(p + part * Vector::kWidth, parts[part]);
#endif
}

// Units of 32 bytes of Int4 codes, each to 32 values by their low and 32 by their high halves, `apart` bytes behind; units
// follow each other `step` bytes apart in `low`. What comes `ahead` bytes further on is fetched.
inline void unpack_codes(const uint8_t* codes, int64_t units, int64_t step, int64_t apart, int64_t ahead, int8_t* low) {
    for (int64_t line = 0; line < 32 * units; line += 64) prefetch(codes + line + ahead);
#if defined(HERD_ISA_AVX512) || defined(HERD_ISA_AVX2)
    const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kTable))), mask = _mm256_set1_epi8(15);
    for (int64_t unit = 0; unit < units; ++unit, low += step) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * unit));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), _mm256_shuffle_epi8(table, _mm256_and_si256(both, mask)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + apart), _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)));
    }
#elif defined(HERD_ISA_NEON)
    const int8x16_t table = vld1q_s8(kTable);
    for (int64_t at = 0; at < 2 * units; ++at) {
        const uint8x16_t both = vld1q_u8(codes + 16 * at);
        int8_t* to = low + at / 2 * step + at % 2 * 16;
        vst1q_s8(to, vqtbl1q_s8(table, vandq_u8(both, vdupq_n_u8(15))));
        vst1q_s8(to + apart, vqtbl1q_s8(table, vshrq_n_u8(both, 4)));
    }
#else
    for (int64_t unit = 0; unit < units; ++unit, low += step) {
        for (int64_t i = 0; i < 32; ++i) {
            const uint8_t both = codes[32 * unit + i];
            low[i] = kTable[both & 15];
            low[apart + i] = kTable[both >> 4];
        }
    }
#endif
}

}  // namespace herd::HERD_ISA
