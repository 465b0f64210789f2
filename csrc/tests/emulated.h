// Instructions that a processor lacks, computed by those of AVX2: with HERD_EMULATE every kernel of avxvnni, avx512 and avx512bf16 runs
// on any processor with AVX2, and its results have the bits that the instructions themselves would give.
//
// Included before everything else. The names are declared in the namespace of the instruction set, where kernels find them before the
// compiler's own; each of 512 bits is its relative of 256 bits on both halves. What this cannot show is how a compiler encodes them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define HERD_EMULATED inline __attribute__((always_inline, unused))

// Compilers may have these as macros.
#undef _mm256_dpbusd_avx_epi32
#undef _mm512_cmp_ps_mask
#undef _mm512_cvtps_ph
#undef _mm512_extractf32x8_ps
#undef _mm512_roundscale_ps
#undef _mm512_slli_epi16
#undef _mm512_slli_epi32
#undef _mm512_srai_epi32
#undef _mm512_srli_epi16

namespace herd::HERD_ISA {

// sums + the products of four unsigned bytes of `codes` and four signed bytes of `x`: even and odd bytes as integers of 16 bits.
HERD_EMULATED __m256i _mm256_dpbusd_avx_epi32(__m256i sums, __m256i codes, __m256i x) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}

#if defined(HERD_ISA_AVX512)

template <class Whole, class Part>
HERD_EMULATED Whole join(Part low, Part high) {
    Whole whole;
    std::memcpy(&whole, &low, 32);
    std::memcpy(reinterpret_cast<char*>(&whole) + 32, &high, 32);
    return whole;
}
HERD_EMULATED __m512 both(__m256 low, __m256 high) { return join<__m512>(low, high); }
HERD_EMULATED __m512i both(__m256i low, __m256i high) { return join<__m512i>(low, high); }
template <class Part, class Whole>
HERD_EMULATED Part part(const Whole& whole, int which) {
    Part half;
    std::memcpy(&half, reinterpret_cast<const char*>(&whole) + 32 * which, 32);
    return half;
}
HERD_EMULATED __m256 half(__m512 a, int which) { return part<__m256>(a, which); }
HERD_EMULATED __m256i half(__m512i a, int which) { return part<__m256i>(a, which); }

// An instruction on two registers, on one, and on one register and a number of bits.
#define HERD_TWO(type, name, of_256) \
    HERD_EMULATED type name(type a, type b) { return both(of_256(half(a, 0), half(b, 0)), of_256(half(a, 1), half(b, 1))); }
#define HERD_ONE(result, type, name, of_256) \
    HERD_EMULATED result name(type a) { return both(of_256(half(a, 0)), of_256(half(a, 1))); }
#define HERD_SHIFT(name, of_256) \
    HERD_EMULATED __m512i name(__m512i a, unsigned bits) { \
        return both(of_256(half(a, 0), static_cast<int>(bits)), of_256(half(a, 1), static_cast<int>(bits))); \
    }
// From a smaller register, whose halves become the two of the result.
#define HERD_WIDEN(result, name, of_256) \
    HERD_EMULATED result name(__m256i a) { return both(of_256(_mm256_castsi256_si128(a)), of_256(_mm256_extracti128_si256(a, 1))); }
#define HERD_WIDEN_16_BYTES(name, of_256) \
    HERD_EMULATED __m512i name(__m128i a) { return both(of_256(a), of_256(_mm_srli_si128(a, 8))); }

HERD_TWO(__m512, _mm512_add_ps, _mm256_add_ps)
HERD_TWO(__m512, _mm512_sub_ps, _mm256_sub_ps)
HERD_TWO(__m512, _mm512_mul_ps, _mm256_mul_ps)
HERD_TWO(__m512, _mm512_div_ps, _mm256_div_ps)
HERD_TWO(__m512, _mm512_max_ps, _mm256_max_ps)
HERD_TWO(__m512, _mm512_min_ps, _mm256_min_ps)
HERD_TWO(__m512, _mm512_xor_ps, _mm256_xor_ps)
HERD_TWO(__m512i, _mm512_and_si512, _mm256_and_si256)
HERD_TWO(__m512i, _mm512_or_si512, _mm256_or_si256)
HERD_TWO(__m512i, _mm512_xor_si512, _mm256_xor_si256)
HERD_TWO(__m512i, _mm512_add_epi32, _mm256_add_epi32)
HERD_TWO(__m512i, _mm512_sub_epi32, _mm256_sub_epi32)
HERD_TWO(__m512i, _mm512_shuffle_epi8, _mm256_shuffle_epi8)
HERD_ONE(__m512, __m512i, _mm512_cvtepi32_ps, _mm256_cvtepi32_ps)
HERD_ONE(__m512i, __m512, _mm512_cvtps_epi32, _mm256_cvtps_epi32)
HERD_ONE(__m512, __m512i, _mm512_castsi512_ps, _mm256_castsi256_ps)
HERD_ONE(__m512i, __m512, _mm512_castps_si512, _mm256_castps_si256)
HERD_SHIFT(_mm512_slli_epi16, _mm256_slli_epi16)
HERD_SHIFT(_mm512_srli_epi16, _mm256_srli_epi16)
HERD_SHIFT(_mm512_slli_epi32, _mm256_slli_epi32)
HERD_SHIFT(_mm512_srai_epi32, _mm256_srai_epi32)
HERD_WIDEN(__m512, _mm512_cvtph_ps, _mm256_cvtph_ps)
HERD_WIDEN(__m512i, _mm512_cvtepi8_epi16, _mm256_cvtepi8_epi16)
HERD_WIDEN_16_BYTES(_mm512_cvtepu8_epi32, _mm256_cvtepu8_epi32)
HERD_WIDEN_16_BYTES(_mm512_cvtepi8_epi32, _mm256_cvtepi8_epi32)

HERD_EMULATED __m512 _mm512_set1_ps(float x) { return both(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
HERD_EMULATED __m512i _mm512_set1_epi8(int x) { return both(_mm256_set1_epi8(static_cast<char>(x)), _mm256_set1_epi8(static_cast<char>(x))); }
HERD_EMULATED __m512i _mm512_set1_epi32(int x) { return both(_mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
HERD_EMULATED __m512i _mm512_setzero_si512() { return _mm512_set1_epi32(0); }
HERD_EMULATED __m512i _mm512_broadcast_i32x4(__m128i a) { return both(_mm256_broadcastsi128_si256(a), _mm256_broadcastsi128_si256(a)); }
HERD_EMULATED __m512 _mm512_loadu_ps(const float* p) { return both(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
HERD_EMULATED __m512i _mm512_loadu_si512(const void* p) {
    const auto* halves = static_cast<const __m256i*>(p);
    return both(_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1));
}
HERD_EMULATED void _mm512_storeu_ps(float* p, __m512 a) {
    _mm256_storeu_ps(p, half(a, 0));
    _mm256_storeu_ps(p + 8, half(a, 1));
}
HERD_EMULATED void _mm512_storeu_si512(void* p, __m512i a) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), half(a, 0));
    _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, half(a, 1));
}
HERD_EMULATED __m256 _mm512_castps512_ps256(__m512 a) { return half(a, 0); }
template <int which>
HERD_EMULATED __m256 chosen_half(__m512 a) {
    static_assert(which == 0 || which == 1, "a register has two halves");
    return half(a, which);
}
HERD_EMULATED __m512 _mm512_abs_ps(__m512 a) { return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff))); }
HERD_EMULATED __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return both(_mm256_fmadd_ps(half(a, 0), half(b, 0), half(c, 0)), _mm256_fmadd_ps(half(a, 1), half(b, 1), half(c, 1)));
}

// Modes are part of an instruction: macros pass them as template parameters, and those that are not computed here do not compile.
#define _mm512_roundscale_ps(a, mode) to_nearest_integers<(mode)>(a)
#define _mm512_cvtps_ph(a, mode) to_nearest_halves<(mode)>(a)
#define _mm512_cmp_ps_mask(a, b, mode) compared<(mode)>(a, b)
#define _mm512_extractf32x8_ps(a, which) chosen_half<(which)>(a)

constexpr bool is_nearest(int mode) { return (mode & ~_MM_FROUND_NO_EXC) == _MM_FROUND_TO_NEAREST_INT; }
template <int mode>
HERD_EMULATED __m512 to_nearest_integers(__m512 a) {
    static_assert(is_nearest(mode), "only rounding to the nearest integers is emulated");
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return both(_mm256_round_ps(half(a, 0), kNearest), _mm256_round_ps(half(a, 1), kNearest));
}
template <int mode>
HERD_EMULATED __m256i to_nearest_halves(__m512 a) {
    static_assert(is_nearest(mode), "only rounding to the nearest number of 16 bits is emulated");
    return _mm256_setr_m128i(_mm256_cvtps_ph(half(a, 0), _MM_FROUND_TO_NEAREST_INT), _mm256_cvtps_ph(half(a, 1), _MM_FROUND_TO_NEAREST_INT));
}
HERD_EMULATED __m256i _mm512_cvtsepi32_epi16(__m512i a) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(half(a, 0), half(a, 1)), 0xd8); }
HERD_EMULATED __m512i _mm512_sll_epi32(__m512i a, __m128i bits) { return both(_mm256_sll_epi32(half(a, 0), bits), _mm256_sll_epi32(half(a, 1), bits)); }

// Whether a < b, a bit for each lane; and what masks of such bits keep.
template <int mode>
HERD_EMULATED __mmask16 compared(__m512 a, __m512 b) {
    static_assert(mode == _CMP_LT_OQ, "only whether a number is less than another is emulated");
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(half(a, 0), half(b, 0), _CMP_LT_OQ));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(half(a, 1), half(b, 1), _CMP_LT_OQ));
    return static_cast<__mmask16>(low | high << 8);
}
HERD_EMULATED __m512 _mm512_mask_mov_ps(__m512 other, __mmask16 keep, __m512 a) {
    float from[16], to[16];
    _mm512_storeu_ps(from, a);
    _mm512_storeu_ps(to, other);
    for (int i = 0; i < 16; ++i) to[i] = (keep >> i & 1) != 0 ? from[i] : to[i];
    return _mm512_loadu_ps(to);
}
HERD_EMULATED __m512 _mm512_maskz_mov_ps(__mmask16 keep, __m512 a) { return _mm512_mask_mov_ps(_mm512_set1_ps(0.0f), keep, a); }

HERD_EMULATED float _mm512_reduce_add_ps(__m512 a) {
    float lanes[16], total = 0;
    _mm512_storeu_ps(lanes, a);
    for (float lane : lanes) total += lane;
    return total;
}
HERD_EMULATED int _mm512_reduce_add_epi32(__m512i a) {
    uint32_t lanes[16], total = 0;
    _mm512_storeu_si512(lanes, a);
    for (uint32_t lane : lanes) total += lane;
    return static_cast<int>(total);
}

HERD_EMULATED __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) {
    return both(_mm256_dpbusd_avx_epi32(half(sums, 0), half(a, 0), half(b, 0)), _mm256_dpbusd_avx_epi32(half(sums, 1), half(a, 1), half(b, 1)));
}
HERD_EMULATED __m512i _mm512_dpwssd_epi32(__m512i sums, __m512i a, __m512i b) {
    return _mm512_add_epi32(sums, both(_mm256_madd_epi16(half(a, 0), half(b, 0)), _mm256_madd_epi16(half(a, 1), half(b, 1))));
}
// The products of the second, then of the first of each pair, each added with one rounding; numbers too small to be normal are zero, as
// the threads of ours have it (base/cpu.h).
HERD_EMULATED __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
    const __m512i upper = _mm512_set1_epi32(-65536), pairs_a = (__m512i)a, pairs_b = (__m512i)b;
    sums = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(pairs_a, upper)), _mm512_castsi512_ps(_mm512_and_si512(pairs_b, upper)), sums);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(pairs_a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(pairs_b, 16)), sums);
}

#endif

}  // namespace herd::HERD_ISA
