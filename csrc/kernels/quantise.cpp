// prepare: one token's activations in the form that a matrix multiplies.
//
//   F32    a copy
//   Int8   per group of 32: scale = max|x| / 127, value = round to even (x * (1 / scale)), and the sums of the values that formats with
//          an offset or a minimum need, one cache line (ActivationGroup). A group whose scale has no finite inverse is zero.
//   BF16   rounded to nearest even, one zero added to an odd row
//
// A NaN or an infinity makes the group's scale NaN or infinite, and with it every result. Reference: herd.quant.quantize_activations.
#include "kernels/quantise.h"

#include <cstring>

#include "kernels/codes.h"
#include "kernels/half.h"

#if defined(HERD_ISA_AVX2) || defined(HERD_ISA_AVX512)
#include <immintrin.h>
#endif

namespace herd::HERD_ISA {

namespace {

using namespace lanes;

// Scale and its inverse from the bits of the largest magnitude: as integers, so that a NaN is the largest of all.
struct Scale {
    float scale, inverse;
};
Scale scale_of(uint32_t largest_bits) {
    const float scale = bits_to_float(largest_bits) / 127.0f;
    const float inverse = 1.0f / scale;
    if ((float_to_bits(inverse) & 0x7fffffffu) == 0x7f800000u) return {0.0f, 0.0f};
    return {scale, inverse};
}

void finish_group(ActivationGroup& out, float scale, int32_t first, int32_t last) {
    out.scale = scale;
    out.halves[0] = first;
    out.halves[1] = last;
    out.sum = first + last;
    out.scaled_sum = scale * static_cast<float>(out.sum);
    out.scaled_halves[0] = scale * static_cast<float>(first);
    out.scaled_halves[1] = scale * static_cast<float>(last);
    out.unused = 0;
}

#if defined(HERD_ISA_AVX2) || defined(HERD_ISA_AVX512)

uint32_t largest_lane(__m256i v) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

void quantise_group(const float* x, ActivationGroup& out) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256 v[4];
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
    const Scale s = scale_of(largest_lane(largest));
    const __m256 inverse = _mm256_set1_ps(s.inverse);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out.values), ordered);
    // Sums of eight values at once: bytes moved to 0..255, so that the sum of absolute differences adds them.
    const __m256i eights = _mm256_sad_epu8(_mm256_xor_si256(ordered, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    const __m128i low = _mm256_castsi256_si128(eights), high = _mm256_extracti128_si256(eights, 1);
    const int first = _mm_cvtsi128_si32(low) + _mm_extract_epi32(low, 2) - 16 * 128;
    const int last = _mm_cvtsi128_si32(high) + _mm_extract_epi32(high, 2) - 16 * 128;
    finish_group(out, s.scale, first, last);
}

#else

void quantise_group(const float* x, Activations& out) {
    Floats v[8];
    Signed32 largest = {};
    for (int i = 0; i < 8; ++i) {
        v[i] = read_words<Floats>(x + 4 * i);
        const Signed32 bits = reinterpret_cast<Signed32>(v[i]) & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    int32_t top = 0;
    for (int i = 0; i < 4; ++i) top = largest[i] > top ? largest[i] : top;
    const Scale s = scale_of(static_cast<uint32_t>(top));
    Words values[4];
    for (int i = 0; i < 4; ++i) {
        // Beyond 127 are only numbers beside a NaN or infinity.
        const auto low = reinterpret_cast<Words>(round_within(v[2 * i] * s.inverse, 127.0f));
        const auto high = reinterpret_cast<Words>(round_within(v[2 * i + 1] * s.inverse, 127.0f));
        values[i] = HERD_SHUFFLE(low, high, 0, 2, 4, 6, 8, 10, 12, 14);
    }
    for (int i = 0; i < 32; ++i) out.values[i] = static_cast<int8_t>(values[i / 8][i % 8]);
    const Halves sums = write_factors(values, out);
    finish_group(out, s.scale, sums.first, sums.last);
}

#endif

void prepare_bf16(const float* x, int64_t columns, uint8_t* row) {
    auto* out = reinterpret_cast<uint16_t*>(row);
    for (int64_t k = 0; k < columns; ++k) out[k] = float_to_bf16(x[k]);
    if (columns % 2) out[columns] = 0;
}

}  // namespace

int64_t prepared_bytes(Form form, int64_t columns) {
    const int64_t bytes = form == Form::F32 ? 4 * columns : form == Form::BF16 ? 2 * (columns + 1) : columns / 32 * static_cast<int64_t>(sizeof(Activations));
    const int64_t lines = (bytes + 63) / 64;
    // A multiple of 1 KiB would put the rows of a tile into the same few cache sets.
    return 64 * (lines % 16 == 0 ? lines + 1 : lines);
}

void prepare(Form form, const float* x, int64_t columns, uint8_t* prepared_row) {
    if (form == Form::F32) {
        std::memcpy(prepared_row, x, static_cast<size_t>(columns) * 4);
    } else if (form == Form::BF16) {
        prepare_bf16(x, columns, prepared_row);
    } else {
        auto* groups = reinterpret_cast<Activations*>(prepared_row);
        for (int64_t g = 0; g < columns / 32; ++g) quantise_group(x + 32 * g, groups[g]);
    }
}

}  // namespace herd::HERD_ISA
