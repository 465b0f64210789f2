// Loops that reach a limit of the machine: float32 multiply-adds, int8 and bf16 products, reading memory. Nothing of the model is here.
//
// Each peak loop keeps enough independent sums in registers to hide the latency of its instruction, and touches no memory.
#include "kernels/operations.h"
#include "kernels/vector.h"
#include "kernels/words.h"

namespace herd::HERD_ISA {

namespace {

constexpr int kChains = 12;
constexpr int64_t kAhead = 4096;  // bytes that are asked for before they are read

// What a dot product of bytes adds to at a time, how many products that are, and one of them. `codes` are always the same, but where the
// product is apart from its sum the compiler must not know it: it would be computed once.
#if defined(HERD_ISA_AVX512)

using Sums = __m512i;
constexpr int64_t kProducts = 64;
inline Sums accumulate(Sums sums, Sums& codes) { return _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi8(-5)); }

#elif defined(HERD_ISA_AVXVNNI)

using Sums = __m256i;
constexpr int64_t kProducts = 32;
inline Sums accumulate(Sums sums, Sums& codes) { return _mm256_dpbusd_avx_epi32(sums, codes, _mm256_set1_epi8(-5)); }

#elif defined(HERD_ISA_AVX2)

// Without such an instruction: bytes to pairs, four of them summed in 16 bits (which 4-bit weights allow), those to 32-bit sums, and
// the addition.
using Sums = __m256i;
constexpr int64_t kProducts = 4 * 32;
inline Sums accumulate(Sums sums, Sums& codes) {
    const auto pairs = [&codes] {
        asm("" : "+x"(codes));
        return _mm256_maddubs_epi16(codes, _mm256_set1_epi8(-5));
    };
    const __m256i four = _mm256_add_epi16(_mm256_add_epi16(pairs(), pairs()), _mm256_add_epi16(pairs(), pairs()));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(four, _mm256_set1_epi16(1)));
}

#elif defined(HERD_ISA_NEON)

using Sums = int32x4_t;
constexpr int64_t kProducts = 16;
inline Sums accumulate(Sums sums, Sums& codes) { return vdotq_s32(sums, vreinterpretq_s8_s32(codes), vdupq_n_s8(-5)); }

#else

// Of 16-bit integers, which the portable products are made of.
using Sums = Signed32;
constexpr int64_t kProducts = 8;
inline Sums accumulate(Sums sums, Sums& codes) {
    settle(codes);
    return sums + add_products(reinterpret_cast<Words>(codes), Words{5, -5, 5, -5, 5, -5, 5, -5});
}

#endif

}  // namespace

extern const int64_t kFloatPeakOperations;
extern const int64_t kInt8PeakOperations;
extern const int64_t kBf16PeakOperations;
const int64_t kFloatPeakOperations = kChains * Vector::kWidth * 2;

float float_peak(int64_t rounds) {
    Vector sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = broadcast(static_cast<float>(i));
    const Vector a = broadcast(0.999f), b = broadcast(1e-3f);
    for (int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < kChains; ++i) sums[i] = fused(sums[i], a, b);
    }
    Vector total = sums[0];
    for (int i = 1; i < kChains; ++i) total = total + sums[i];
    return sum(total);
}

const int64_t kInt8PeakOperations = kChains * kProducts * 2;
int32_t int8_peak(int64_t rounds) {
    Sums sums[kChains], codes;
    std::memset(&codes, 3, sizeof(codes));
    int32_t lanes[sizeof(sums) / 4], total = 0;
    for (size_t i = 0; i < sizeof(sums) / 4; ++i) lanes[i] = static_cast<int32_t>(i);  // all different, or one chain would do
    std::memcpy(sums, lanes, sizeof(sums));
    for (int64_t round = 0; round < rounds; ++round) {
        for (Sums& sum : sums) sum = accumulate(sum, codes);
    }
    std::memcpy(lanes, sums, sizeof(sums));
    for (int32_t lane : lanes) total ^= lane;
    return total;
}

#if defined(HERD_ISA_AVX512BF16)

const int64_t kBf16PeakOperations = kChains * 32 * 2;
float bf16_peak(int64_t rounds) {
    __m512 sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
    // Two in each 32 bits: 2^-8 and 2^-9, whose products summed up stay small.
    const auto a = (__m512bh)_mm512_set1_epi32(0x3B803B00), b = (__m512bh)_mm512_set1_epi32(0x3B003B80);
    for (int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], a, b);
    }
    __m512 total = sums[0];
    for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, sums[i]);
    return _mm512_reduce_add_ps(total);
}

#else

const int64_t kBf16PeakOperations = 0;
float bf16_peak(int64_t) { return 0.0f; }

#endif

uint64_t read_bytes(const uint8_t* data, int64_t size) {
    uint64_t sums[16] = {};
    for (int64_t at = 0; at + 128 <= size; at += 128) {
        __builtin_prefetch(data + at + kAhead);
        __builtin_prefetch(data + at + kAhead + 64);
        uint64_t words[16];
        std::memcpy(words, data + at, 128);
        for (int i = 0; i < 16; ++i) sums[i] ^= words[i];
    }
    uint64_t total = 0;
    for (uint64_t part : sums) total ^= part;
    return total;
}

}  // namespace herd::HERD_ISA
