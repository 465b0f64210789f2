// The matrix products of attention: a tile of rows against blocks of 16 columns, floats or exact integers.
//
// Only for attention.cpp. Blocks lie one after another, each [depth][16], so that a page is read from front to back; meanwhile what
// comes next, `ahead` bytes further on, is fetched.
#pragma once

#include "kernels/kernels.h"
#include "kernels/pairs.h"

// Sums must live in registers: their loops have to disappear before the compiler decides where arrays live.
#if defined(__clang__)
#define HERD_UNROLL_SUMS _Pragma("unroll")
#else
#define HERD_UNROLL_SUMS _Pragma("GCC unroll 16")
#endif

// One sum after another: compilers that put off additions run out of registers. Emulated ones (CMakeLists.txt) are no registers.
#if defined(HERD_EMULATED)
#define HERD_SETTLE(x) (void)(x)
#elif defined(HERD_ISA_AVX512)
#define HERD_SETTLE(x) asm volatile("" : "+v"(x))
#elif defined(HERD_ISA_AVX2)
#define HERD_SETTLE(x) asm volatile("" : "+x"(x))
#elif defined(HERD_ISA_NEON)
#define HERD_SETTLE(x) asm volatile("" : "+w"(x))
#elif defined(__SSE2__)
#define HERD_SETTLE(x) asm volatile("" : "+x"(x))
#else
#define HERD_SETTLE(x) (void)(x)
#endif

namespace herd::HERD_ISA {

namespace {

constexpr int64_t kW = Vector::kWidth;
constexpr int kParts = static_cast<int>(16 / kW);  // registers of a block
constexpr int kDirectRows = 6;                     // rows of one pass over floats
#if defined(HERD_ISA_AVX512) || defined(HERD_ISA_NEON)
constexpr int kSums = 24;  // registers for sums
#else
constexpr int kSums = 12;
#endif

// Rows of a pass over integers, whose products need registers of their own.
#if defined(HERD_ISA_AVX512) || defined(HERD_ISA_NEON)
constexpr int kIntegerRows = 6;
#else
constexpr int kIntegerRows = 4;
#endif

// Blocks side by side in one pass: as many as there are registers for.
constexpr int blocks_for(int rows, int sums) {
    int blocks = 1;
    while (blocks < 4 && 2 * blocks * kParts * rows <= sums) blocks *= 2;
    return blocks;
}

// c[m][16 n ..] = sum over k in order of a[m][k] b[n][k][..], for kRows rows and kBlocks blocks.
template <int kRows, int kBlocks, typename Element>
__attribute__((noinline)) void float_tile(const float* a, int64_t a_stride, const Element* b, int64_t block_stride, int64_t depth, int64_t ahead, float* c, int64_t c_stride) {
    Vector sums[kRows][kBlocks * kParts];
    HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
        HERD_UNROLL_SUMS for (int n = 0; n < kBlocks * kParts; ++n) sums[m][n] = broadcast(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vector right[kBlocks * kParts];
        HERD_UNROLL_SUMS for (int n = 0; n < kBlocks * kParts; ++n) {
            const Element* from = b + n / kParts * block_stride + 16 * k + n % kParts * kW;
            if (n % kParts == 0) prefetch(reinterpret_cast<const uint8_t*>(from) + ahead);
            right[n] = load(from);
        }
        HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
            const Vector left = broadcast(a[m * a_stride + k]);
            HERD_UNROLL_SUMS for (int n = 0; n < kBlocks * kParts; ++n) {
                sums[m][n] = fused(left, right[n], sums[m][n]);
                HERD_SETTLE(sums[m][n].v);
            }
        }
    }
    HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
        HERD_UNROLL_SUMS for (int n = 0; n < kBlocks * kParts; ++n) store(c + m * c_stride + n * kW, sums[m][n]);
    }
}

template <int kRows, typename Element>
void float_rows(const float* a, int64_t a_stride, const Element* b, int64_t block_stride, int64_t depth, int64_t blocks, int64_t ahead, float* c,
                int64_t c_stride) {
    constexpr int kBlocks = blocks_for(kRows, kSums);
    int64_t n = 0;
    for (; n + kBlocks <= blocks; n += kBlocks) float_tile<kRows, kBlocks>(a, a_stride, b + n * block_stride, block_stride, depth, ahead, c + 16 * n, c_stride);
    for (; n < blocks; ++n) float_tile<kRows, 1>(a, a_stride, b + n * block_stride, block_stride, depth, ahead, c + 16 * n, c_stride);
}

// What integer sums of a block are multiplied with: of scores the scales of 16 keys, for each group of components; of values one
// factor a row and group of components.
struct KeyScales {
    const uint16_t* halves;  // [groups][64]
    Vector of(int64_t, int64_t group, int64_t column) const { return load(halves + group * kPageTokens + column); }
};
struct RowFactors {
    const float* factors;  // [rows][stride]
    int64_t stride;
    Vector of(int64_t row, int64_t, int64_t column) const { return broadcast(factors[row * stride + column / 32]); }
};

// c[m][16 n ..] = sum over groups g of scale(m, g, n) * the exact sum over the pairs of g of a[m][pair] . b[n][pair][..].
// Row m of `a` is at a + m * a_stride, block n of `b` at b + n * block_stride; `scales` gives scale(m, g, n) by `first_row` + m and
// `first_column` + 16 n.
template <int kRows, int kBlocks, typename Scales>
__attribute__((noinline)) void integer_tile(const int16_t* a, int64_t a_stride, const int8_t* b, int64_t block_stride, int64_t pairs, int64_t group_pairs, const Scales& scales,
                  int64_t first_row, int64_t first_column, int64_t ahead, float* c, int64_t c_stride) {
    for (int64_t group = 0; group * group_pairs < pairs; ++group) {
        const int64_t begin = group * group_pairs, end = begin + group_pairs < pairs ? begin + group_pairs : pairs;
        Integers sums[kRows][kBlocks * kParts];
        HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
            HERD_UNROLL_SUMS for (int n = 0; n < kBlocks * kParts; ++n) sums[m][n] = no_integers();
        }
        for (int64_t k = begin; k < end; ++k) {
            Pairs right[kBlocks * kParts];
            HERD_UNROLL_SUMS for (int n = 0; n < kBlocks * kParts; ++n) {
                const int8_t* from = b + n / kParts * block_stride + 32 * k + 2 * (n % kParts) * kW;
                if (n % kParts == 0) prefetch(reinterpret_cast<const uint8_t*>(from) + ahead);
                right[n] = load_pairs(from);
            }
            HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
                const Pairs left = broadcast_pair(a + m * a_stride + 2 * k);
                HERD_UNROLL_SUMS for (int n = 0; n < kBlocks * kParts; ++n) {
                    sums[m][n] = dot(sums[m][n], right[n], left);
                    HERD_SETTLE(sums[m][n].v);
                }
            }
        }
        HERD_UNROLL_SUMS for (int n = 0; n < kBlocks * kParts; ++n) {
            HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
                const Vector scaled = to_float(sums[m][n]) * scales.of(first_row + m, group, first_column + n * kW);
                float* to = c + m * c_stride + n * kW;
                store(to, group == 0 ? scaled : load(to) + scaled);
            }
        }
    }
}

// Calls `pass` with the rows of each pass, kMostRows at a time: its template argument is how many.
template <int kMostRows, typename Pass>
void in_passes(int64_t rows, Pass pass) {
    int64_t m = 0;
    for (; m + kMostRows <= rows; m += kMostRows) pass.template operator()<kMostRows>(m);
    switch (rows - m) {
        case 1: return pass.template operator()<1>(m);
        case 2: return pass.template operator()<2>(m);
        case 3: return pass.template operator()<3>(m);
        case 4: return pass.template operator()<(kMostRows > 4 ? 4 : 1)>(m);
        case 5: return pass.template operator()<(kMostRows > 5 ? 5 : 1)>(m);
        default: return;
    }
}

// c [rows][16 blocks] = a [rows][depth] . b [blocks][depth][16].
template <typename Element>
void multiply(const float* a, int64_t a_stride, const Element* b, int64_t block_stride, int64_t rows, int64_t depth, int64_t blocks, int64_t ahead, float* c,
              int64_t c_stride) {
    in_passes<kDirectRows>(rows, [&]<int kRows>(int64_t m) { float_rows<kRows>(a + m * a_stride, a_stride, b, block_stride, depth, blocks, ahead, c + m * c_stride, c_stride); });
}

// Scores [rows][64] of queries [rows][width] against keys [blocks][width / 2][16][2], groups of 32 components.
inline void multiply_keys(const int16_t* q, int64_t width, const int8_t* keys, const uint16_t* scales, int64_t rows, int64_t blocks, int64_t ahead, float* scores) {
    const int64_t block_stride = 16 * width;
    in_passes<kIntegerRows>(rows, [&]<int kRows>(int64_t m) {
        constexpr int kBlocks = blocks_for(kRows, kParts * kIntegerRows);
        int64_t n = 0;
        const auto tile = [&]<int kSome>() {
            integer_tile<kRows, kSome>(q + m * width, width, keys + n * block_stride, block_stride, width / 2, 16, KeyScales{scales}, m, 16 * n, ahead,
                                       scores + m * kPageTokens + 16 * n, kPageTokens);
            n += kSome;
        };
        while (n + kBlocks <= blocks) tile.template operator()<kBlocks>();
        while (n < blocks) tile.template operator()<1>();
    });
}

// Values [rows][width] of weights [rows][width / 32][64], each with its factor [rows][width / 32], and values [width / 16][32][16][2].
inline void multiply_values(const int16_t* weights, const float* factors, const int8_t* values, int64_t rows, int64_t width, int64_t pairs, int64_t ahead, float* y) {
    const int64_t groups = width / 32, block_stride = 16 * kPageTokens;
    in_passes<kIntegerRows>(rows, [&]<int kRows>(int64_t m) {
        constexpr int kBlocks = blocks_for(kRows, kParts * kIntegerRows) < 2 ? 1 : 2;  // of one group
        for (int64_t n = 0; n < width / 16; n += kBlocks) {
            integer_tile<kRows, kBlocks>(weights + (m * groups + n / 2) * kPageTokens, groups * kPageTokens, values + n * block_stride, block_stride, pairs, pairs,
                                         RowFactors{factors, groups}, m, 16 * n, ahead, y + m * width + 16 * n, width);
        }
    });
}

}  // namespace

}  // namespace herd::HERD_ISA
