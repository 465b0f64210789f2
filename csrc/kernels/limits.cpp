// Loops that reach a limit of the machine: float32 multiply-adds, int8 and bf16 products, reading memory. Nothing of the model is here.
//
// Each peak loop keeps enough independent sums in registers to hide the latency of its instruction, and touches no memory.
#include "kernels/operations.h"
#include "kernels/vector.h"

namespace herd::HERD_ISA {

namespace {

constexpr int kChains = 12;
constexpr int64_t kAhead = 4096;  // bytes that are asked for before they are read, as products do

#if defined(HERD_ISA_AVX2)
// A number that depends on all of the sums.
int32_t any_of(const __m256i (&sums)[kChains]) {
    int32_t lanes[8], total = 0;
    for (int i = 0; i < kChains; ++i) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sums[i]);
        for (int32_t lane : lanes) total ^= lane;
    }
    return total;
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

#if defined(HERD_ISA_AVX512)

const int64_t kInt8PeakOperations = kChains * 64 * 2;
int32_t int8_peak(int64_t rounds) {
    __m512i sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_epi32(i);
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
    for (int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
    }
    __m512i total = sums[0];
    for (int i = 1; i < kChains; ++i) total = _mm512_add_epi32(total, sums[i]);
    return _mm512_reduce_add_epi32(total);
}

#elif defined(HERD_ISA_AVXVNNI)

const int64_t kInt8PeakOperations = kChains * 32 * 2;
int32_t int8_peak(int64_t rounds) {
    __m256i sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = _mm256_set1_epi32(i);
    const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(-5);
    for (int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < kChains; ++i) sums[i] = _mm256_dpbusd_avx_epi32(sums[i], a, b);
    }
    return any_of(sums);
}

#elif defined(HERD_ISA_AVX2)

// Without a dot product instruction: bytes to pairs, four of them summed in 16 bits (which 4-bit weights allow), those to 32-bit
// sums, and the addition.
const int64_t kInt8PeakOperations = kChains * 4 * 32 * 2;
int32_t int8_peak(int64_t rounds) {
    __m256i sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = _mm256_set1_epi32(i);
    __m256i a = _mm256_set1_epi8(3);
    const __m256i b = _mm256_set1_epi8(-5), one = _mm256_set1_epi16(1);
    const auto product = [&] {
        asm("" : "+x"(a));  // or the product would be computed once
        return _mm256_maddubs_epi16(a, b);
    };
    for (int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < kChains; ++i) {
            const __m256i pairs = _mm256_add_epi16(_mm256_add_epi16(product(), product()), _mm256_add_epi16(product(), product()));
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, one));
        }
    }
    return any_of(sums);
}

#elif defined(HERD_ISA_NEON)

const int64_t kInt8PeakOperations = kChains * 16 * 2;
int32_t int8_peak(int64_t rounds) {
    int32x4_t sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = vdupq_n_s32(i);
    const int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(-5);
    for (int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < kChains; ++i) sums[i] = vdotq_s32(sums[i], a, b);
    }
    int32x4_t total = sums[0];
    for (int i = 1; i < kChains; ++i) total = veorq_s32(total, sums[i]);
    return vgetq_lane_s32(total, 0) ^ vgetq_lane_s32(total, 1) ^ vgetq_lane_s32(total, 2) ^ vgetq_lane_s32(total, 3);
}

#else

const int64_t kInt8PeakOperations = 64 * 2;
int32_t int8_peak(int64_t rounds) {
    int8_t a[64], b[64];
    uint32_t total = 0;
    for (int i = 0; i < 64; ++i) {
        a[i] = static_cast<int8_t>(i);
        b[i] = static_cast<int8_t>(3 - i);
    }
    for (int64_t round = 0; round < rounds; ++round) {
        asm volatile("" : : "r"(a), "r"(b) : "memory");  // or the sum would be computed once
        int32_t sum = 0;
        for (int i = 0; i < 64; ++i) sum += a[i] * b[i];
        total += static_cast<uint32_t>(sum);
    }
    return static_cast<int32_t>(total);
}

#endif

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
