// Sixteen rows at once with AVX2 and FMA: two registers of eight rows. The names are explained in lanes_portable.h.
//
// Without a four-way dot product, `vpmaddubsw` multiplies unsigned codes by signed activations and adds pairs into 16 bits:
//   Nibbles   a whole group of 32 columns fits: 8 quads * 2 * 15 * 127 = 30480 < 32768; one `vpmaddwd` by ones per sub-group
//   SixBits   two quads fit: 2 * 2 * 63 * 127 = 32004
//   signed    |code| times the activation with the code's sign; one quad fits: 2 * 128 * 127 = 32512
// AVX-VNNI has the dot product: unsigned codes by signed activations, four added into 32 bits. Signed codes are moved up by 128 when they
// are unpacked, as in lanes_avx512.h.
#pragma once

#include <immintrin.h>

#include "kernels/half.h"
#include "kernels/layout.h"

#define HERD_INLINE inline __attribute__((always_inline))
#define HERD_UNROLL _Pragma("GCC unroll 8")

namespace herd::HERD_ISA::lanes {

inline constexpr int kTileTokens = 4;
inline constexpr int kFloatTileTokens = 6;

struct F32 {
    __m256 a, b;
};

HERD_INLINE F32 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
HERD_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
HERD_INLINE void store(float* p, F32 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
HERD_INLINE __m128i load_16_bytes(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
HERD_INLINE __m256i load_32_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
HERD_INLINE F32 load_half(const uint8_t* p) { return {_mm256_cvtph_ps(load_16_bytes(p)), _mm256_cvtph_ps(load_16_bytes(p + 16))}; }
HERD_INLINE F32 load_bf16(const uint8_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16_bytes(p)), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16_bytes(p + 16)), 16))};
}
HERD_INLINE F32 load_uint8(const uint8_t* p) {
    const __m128i bytes = load_16_bytes(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
HERD_INLINE F32 load_int8(const uint8_t* p) {
    const __m128i bytes = load_16_bytes(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
HERD_INLINE F32 add(F32 x, F32 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
HERD_INLINE F32 mul(F32 x, F32 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
HERD_INLINE F32 negate(F32 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}
HERD_INLINE F32 fma(F32 x, F32 y, F32 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }

#if defined(HERD_ISA_AVXVNNI)
template <Codes C>
inline constexpr bool kIsMoved = C == Codes::Table || C == Codes::Bytes;
#else
template <Codes C>
inline constexpr bool kIsMoved = false;
#endif

// Between signed codes and how they are multiplied.
template <Codes C>
HERD_INLINE __m256i moved(__m256i codes) {
    return kIsMoved<C> ? _mm256_xor_si256(codes, _mm256_set1_epi8(-128)) : codes;
}

template <Codes C>
struct Quad {
    __m256i a, b;
};

template <Codes C>
HERD_INLINE Quad<C> load_quad(const uint8_t* p) {
    return {load_32_bytes(p), load_32_bytes(p + 32)};
}
template <Codes C>
HERD_INLINE void store_quad(uint8_t* p, const Quad<C>& w) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), w.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), w.b);
}

template <Codes C>
HERD_INLINE __m256i unpack_half_quad(const uint8_t* group, int q) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i raw = load_32_bytes(group + 64 * (q & 3));
    const __m256i code = _mm256_and_si256(q < 4 ? raw : _mm256_srli_epi16(raw, 4), nibble);
    if constexpr (C == Codes::Table) {
        const __m128i table = load_16_bytes(reinterpret_cast<const uint8_t*>(kTable));
        return _mm256_shuffle_epi8(moved<C>(_mm256_broadcastsi128_si256(table)), code);
    }
    if constexpr (C == Codes::SixBits) {
        const __m256i plane = load_32_bytes(group + 256 + 64 * (q >> 2));
        const int up = 4 - 2 * (q & 3);  // from bits 2i of the plane to bits 4 and 5
        const __m256i moved = up >= 0 ? _mm256_slli_epi16(plane, up) : _mm256_srli_epi16(plane, -up);
        return _mm256_or_si256(code, _mm256_and_si256(moved, _mm256_set1_epi8(48)));
    }
    return code;
}
template <Codes C>
HERD_INLINE Quad<C> unpack_quad(const uint8_t* group, int q) {
    if constexpr (C == Codes::Bytes) {
        const Quad<C> quad = load_quad<C>(group + 64 * q);
        return {moved<C>(quad.a), moved<C>(quad.b)};
    } else {
        return {unpack_half_quad<C>(group, q), unpack_half_quad<C>(group + 32, q)};
    }
}

template <Codes C>
HERD_INLINE F32 column(const Quad<C>& w, int j) {
    const int up = 24 - 8 * j;
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(moved<C>(w.a), up), 24)),
            _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(moved<C>(w.b), up), 24))};
}

HERD_INLINE __m256i broadcast_quad(const int8_t* x) {
    int32_t quad;
    std::memcpy(&quad, x, 4);
    return _mm256_set1_epi32(quad);
}
HERD_INLINE __m256i add_pairs(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

// Integer sums as floats, 2^Shift copies of the sum of the activations taken off (none when Shift < 0).
template <int Shift>
HERD_INLINE F32 without_offset(__m256i a, __m256i b, int32_t x_sum) {
    if constexpr (Shift >= 0) {
        const __m256i offset = _mm256_slli_epi32(_mm256_set1_epi32(x_sum), Shift);
        a = _mm256_sub_epi32(a, offset);
        b = _mm256_sub_epi32(b, offset);
    }
    return {_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)};
}

// Keeps a running sum in its register: otherwise the compiler makes trees of additions that spill.
HERD_INLINE void pin(__m256i& a, __m256i& b) { asm("" : "+x"(a), "+x"(b)); }

#if defined(HERD_ISA_AVXVNNI)

template <Codes C>
struct Sums {
    __m256i a = _mm256_setzero_si256(), b = _mm256_setzero_si256();

    HERD_INLINE void add(const Quad<C>& w0, const Quad<C>& w1, const int8_t* x) {
        const __m256i x0 = broadcast_quad(x), x1 = broadcast_quad(x + 4);
        a = _mm256_dpbusd_avx_epi32(a, w0.a, x0);
        b = _mm256_dpbusd_avx_epi32(b, w0.b, x0);
        a = _mm256_dpbusd_avx_epi32(a, w1.a, x1);
        b = _mm256_dpbusd_avx_epi32(b, w1.b, x1);
        pin(a, b);
    }
    template <int Shift>
    HERD_INLINE F32 value(const int32_t* x_sum) const {
        static_assert(!kIsMoved<C> || Shift < 0);
        return without_offset<kIsMoved<C> ? 7 : Shift>(a, b, *x_sum);
    }
};

#else

// Sums of codes in 16 bits until `value`, or in 32 bits.
template <Codes C>
struct Sums {
    __m256i a = _mm256_setzero_si256(), b = _mm256_setzero_si256();

    HERD_INLINE void add(const Quad<C>& w0, const Quad<C>& w1, const int8_t* x) {
        const __m256i x0 = broadcast_quad(x), x1 = broadcast_quad(x + 4);
        if constexpr (C == Codes::Nibbles) {
            a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w0.a, x0));
            b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w0.b, x0));
            pin(a, b);
            a = _mm256_add_epi16(a, _mm256_maddubs_epi16(w1.a, x1));
            b = _mm256_add_epi16(b, _mm256_maddubs_epi16(w1.b, x1));
        } else if constexpr (C == Codes::SixBits) {
            a = _mm256_add_epi32(a, add_pairs(_mm256_add_epi16(_mm256_maddubs_epi16(w0.a, x0), _mm256_maddubs_epi16(w1.a, x1))));
            b = _mm256_add_epi32(b, add_pairs(_mm256_add_epi16(_mm256_maddubs_epi16(w0.b, x0), _mm256_maddubs_epi16(w1.b, x1))));
        } else {
            a = _mm256_add_epi32(a, _mm256_add_epi32(signed_products(w0.a, x0), signed_products(w1.a, x1)));
            b = _mm256_add_epi32(b, _mm256_add_epi32(signed_products(w0.b, x0), signed_products(w1.b, x1)));
        }
        pin(a, b);
    }
    template <int Shift>
    HERD_INLINE F32 value(const int32_t* x_sum) const {
        return C == Codes::Nibbles ? without_offset<Shift>(add_pairs(a), add_pairs(b), *x_sum) : without_offset<Shift>(a, b, *x_sum);
    }

  private:
    static HERD_INLINE __m256i signed_products(__m256i w, __m256i x) {
        return add_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)));
    }
};

#endif

}  // namespace herd::HERD_ISA::lanes
