// A register of floats, the same words on every instruction set, and the exponential built from them.
//
// Only for csrc/kernels/*.cpp: everything is in the namespace of the instruction set that is being built. Multiply-adds are
// fused where the processor has them (`fused`), which is the reason why bits may differ between instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(HERD_ISA_AVX2) || defined(HERD_ISA_AVX512)
#include <immintrin.h>
#elif defined(HERD_ISA_NEON)
#include <arm_neon.h>
#else
#include "kernels/words.h"
#endif

namespace herd::HERD_ISA {

#if defined(HERD_ISA_AVX512)

struct Vector {
    static constexpr int kWidth = 16;
    __m512 v;
};
inline Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vector load(const uint16_t* half) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)))}; }
inline void store(float* p, Vector a) { _mm512_storeu_ps(p, a.v); }
inline void store(uint16_t* half, Vector a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(half), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Vector broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vector fused(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vector largest(Vector a, Vector b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vector smallest(Vector a, Vector b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vector round_even(Vector a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vector times_power_of_two(Vector a, Vector whole) {
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(_mm512_cvtps_epi32(whole.v), 23)))};
}
inline Vector zero_below(Vector a, Vector x, float limit) {
    return {_mm512_maskz_mov_ps(static_cast<__mmask16>(~_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_LT_OQ)), a.v)};
}
inline Vector keep_first(Vector a, int64_t count, float other) {
    const __mmask16 keep = count >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count < 0 ? 0 : count)) - 1);
    return {_mm512_mask_mov_ps(_mm512_set1_ps(other), keep, a.v)};
}
inline float sum(Vector a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float largest(Vector a) {
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

#elif defined(HERD_ISA_AVX2)

struct Vector {
    static constexpr int kWidth = 8;
    __m256 v;
};
inline Vector load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vector load(const uint16_t* half) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)))}; }
inline void store(float* p, Vector a) { _mm256_storeu_ps(p, a.v); }
inline void store(uint16_t* half, Vector a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(half), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Vector broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vector fused(Vector a, Vector b, Vector c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vector largest(Vector a, Vector b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vector smallest(Vector a, Vector b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vector round_even(Vector a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vector times_power_of_two(Vector a, Vector whole) {
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), _mm256_slli_epi32(_mm256_cvtps_epi32(whole.v), 23)))};
}
inline Vector zero_below(Vector a, Vector x, float limit) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.v, _mm256_set1_ps(limit), _CMP_LT_OQ), a.v)};
}
inline Vector keep_first(Vector a, int64_t count, float other) {
    const int32_t n = count > 8 ? 8 : static_cast<int32_t>(count);
    const __m256i keep = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return {_mm256_blendv_ps(_mm256_set1_ps(other), a.v, _mm256_castsi256_ps(keep))};
}
inline float sum(Vector a) {
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float largest(Vector a) {
    const __m128 q = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}

#elif defined(HERD_ISA_NEON)

struct Vector {
    static constexpr int kWidth = 4;
    float32x4_t v;
};
inline Vector load(const float* p) { return {vld1q_f32(p)}; }
inline Vector load(const uint16_t* half) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half)))}; }
inline void store(float* p, Vector a) { vst1q_f32(p, a.v); }
inline void store(uint16_t* half, Vector a) { vst1_u16(half, vreinterpret_u16_f16(vcvt_f16_f32(a.v))); }
inline Vector broadcast(float x) { return {vdupq_n_f32(x)}; }
inline Vector operator+(Vector a, Vector b) { return {vaddq_f32(a.v, b.v)}; }
inline Vector operator-(Vector a, Vector b) { return {vsubq_f32(a.v, b.v)}; }
inline Vector operator*(Vector a, Vector b) { return {vmulq_f32(a.v, b.v)}; }
inline Vector operator/(Vector a, Vector b) { return {vdivq_f32(a.v, b.v)}; }
inline Vector fused(Vector a, Vector b, Vector c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Vector largest(Vector a, Vector b) { return {vmaxq_f32(a.v, b.v)}; }
inline Vector smallest(Vector a, Vector b) { return {vminq_f32(a.v, b.v)}; }
inline Vector round_even(Vector a) { return {vrndnq_f32(a.v)}; }
inline Vector times_power_of_two(Vector a, Vector whole) {
    return {vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.v), vshlq_n_s32(vcvtq_s32_f32(whole.v), 23)))};
}
inline Vector zero_below(Vector a, Vector x, float limit) {
    return {vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a.v), vcltq_f32(x.v, vdupq_n_f32(limit))))};
}
inline Vector keep_first(Vector a, int64_t count, float other) {
    const int32_t lanes[4] = {0, 1, 2, 3};
    const int32_t n = count > 4 ? 4 : static_cast<int32_t>(count);
    return {vbslq_f32(vcgtq_s32(vdupq_n_s32(n), vld1q_s32(lanes)), a.v, vdupq_n_f32(other))};
}
inline float sum(Vector a) { return vaddvq_f32(a.v); }
inline float largest(Vector a) { return vmaxvq_f32(a.v); }

#else

struct Vector {
    static constexpr int kWidth = 4;
    Floats v;
};
inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or beyond
    if (magnitude < 0x38800000u) {                                               // below the smallest normal half
        float absolute;
        std::memcpy(&absolute, &magnitude, 4);
        const float shifted = absolute + 0.5f;  // the sum rounds at 2^-24, which is a half's last place there
        uint32_t rounded;
        std::memcpy(&rounded, &shifted, 4);
        return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
    }
    const uint32_t odd = (magnitude >> 13) & 1u;
    return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}
inline Vector load(const float* p) { return {read_words<Floats>(p)}; }
inline Vector load(const uint16_t* half) {
    uint64_t four;
    std::memcpy(&four, half, 8);
    const auto halves = reinterpret_cast<Words>(Unsigned64{four, four});
    return {any_halves_to_floats(reinterpret_cast<Signed32>(HERD_SHUFFLE(Words{}, halves, 0, 8, 1, 9, 2, 10, 3, 11)))};
}
inline void store(float* p, Vector a) { std::memcpy(p, &a.v, 16); }
inline void store(uint16_t* half, Vector a) {
    for (int i = 0; i < 4; ++i) half[i] = to_half(a.v[i]);
}
inline Vector broadcast(float x) { return {Floats{x, x, x, x}}; }
inline Vector operator+(Vector a, Vector b) { return {a.v + b.v}; }
inline Vector operator-(Vector a, Vector b) { return {a.v - b.v}; }
inline Vector operator*(Vector a, Vector b) { return {a.v * b.v}; }
inline Vector operator/(Vector a, Vector b) { return {a.v / b.v}; }
inline Vector fused(Vector a, Vector b, Vector c) { return {a.v * b.v + c.v}; }
inline Vector largest(Vector a, Vector b) { return {a.v > b.v ? a.v : b.v}; }
inline Vector smallest(Vector a, Vector b) { return {a.v < b.v ? a.v : b.v}; }
// For |a| < 2^22, which is all that is asked of it.
inline Vector round_even(Vector a) { return {round_even(a.v)}; }
inline Vector times_power_of_two(Vector a, Vector whole) {
    const Signed32 is_in_range = (whole.v > -200.0f) & (whole.v < 200.0f);  // not a number stays one
    const auto in_range = reinterpret_cast<Floats>(reinterpret_cast<Signed32>(whole.v) & is_in_range);
    return {reinterpret_cast<Floats>(reinterpret_cast<Unsigned32>(a.v) + (reinterpret_cast<Unsigned32>(__builtin_convertvector(in_range, Signed32)) << 23))};
}
inline Vector zero_below(Vector a, Vector x, float limit) { return {reinterpret_cast<Floats>(reinterpret_cast<Signed32>(a.v) & ~(x.v < limit))}; }
inline Vector keep_first(Vector a, int64_t count, float other) {
    const int32_t n = count > 4 ? 4 : static_cast<int32_t>(count);
    const Signed32 lanes = {0, 1, 2, 3};
    return {lanes < n ? a.v : broadcast(other).v};
}
inline float sum(Vector a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline float largest(Vector a) {
    const float even = a.v[0] > a.v[2] ? a.v[0] : a.v[2], odd = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
    return even > odd ? even : odd;
}

#endif

// e^x for x <= 88, at most 2 units in the last place from exact; 0 below -87, where results leave the normal numbers;
// e^0 is exactly 1; not a number stays so. x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7.
inline Vector exponential(Vector x) {
    const Vector n = round_even(largest(broadcast(-130.0f), smallest(broadcast(130.0f), x)) * broadcast(1.44269504f));
    Vector r = fused(n, broadcast(-0.693359375f), x);           // the product is exact: 9 bits times 9
    r = fused(n, broadcast(2.12194440e-4f), r);
    Vector p = broadcast(1.0f / 5040);
    p = fused(p, r, broadcast(1.0f / 720));
    p = fused(p, r, broadcast(1.0f / 120));
    p = fused(p, r, broadcast(1.0f / 24));
    p = fused(p, r, broadcast(1.0f / 6));
    p = fused(p, r, broadcast(0.5f));
    p = fused(p * r, r, r) + broadcast(1.0f);
    return zero_below(times_power_of_two(p, n), x, -87.0f);
}

}  // namespace herd::HERD_ISA
