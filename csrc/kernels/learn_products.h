// The matrix products of attention that learns: c [rows][columns] (+)= a b, of floats, or of pairs of bfloat16 where the processor multiplies
// them.
//
// Only for learn_attention.cpp. A unit is what is multiplied at once with a lane: a float, or two bfloat16 side by side in its place; so
// both forms are one loop over units.
#pragma once

#include "kernels/vector.h"

#if defined(__clang__)
#define HERD_UNROLL_UNITS _Pragma("unroll")
#else
#define HERD_UNROLL_UNITS _Pragma("GCC unroll 16")
#endif

namespace herd::HERD_ISA {

namespace {

constexpr int64_t kLanes = Vector::kWidth;
constexpr int64_t kChain = 64;  // units that are summed one after another: a chain of thousands would lose digits
#if defined(HERD_ISA_AVX512)
constexpr int kTileRows = 6, kTileVectors = 4;
#elif defined(HERD_ISA_AVX2)
constexpr int kTileRows = 6, kTileVectors = 2;
#elif defined(HERD_ISA_NEON)
constexpr int kTileRows = 6, kTileVectors = 4;
#else
constexpr int kTileRows = 3, kTileVectors = 4;
#endif

// Where units lie: unit k of row m at data + m * row + k * step.
struct Units {
    const float* data;
    int64_t row, step;
};

struct FloatUnits {
    static constexpr int64_t kElements = 1;
    static Vector multiply_add(Vector a, Vector b, Vector sum) { return fused(a, b, sum); }
};

#if defined(HERD_ISA_AVX512BF16)
struct PairUnits {
    static constexpr int64_t kElements = 2;
    static Vector multiply_add(Vector a, Vector b, Vector sum) {
        return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_castps_si512(a.v), (__m512bh)_mm512_castps_si512(b.v))};
    }
};
#endif

template <typename Form, int kRows, int kVectors>
__attribute__((noinline)) void unit_tile(Units a, const float* b, int64_t b_stride, int64_t depth, bool adds, float* c, int64_t c_stride) {
    Vector sums[kRows][kVectors];
    HERD_UNROLL_UNITS for (int m = 0; m < kRows; ++m) {
        HERD_UNROLL_UNITS for (int n = 0; n < kVectors; ++n) sums[m][n] = broadcast(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vector right[kVectors];
        HERD_UNROLL_UNITS for (int n = 0; n < kVectors; ++n) right[n] = load(b + k * b_stride + n * kLanes);
        HERD_UNROLL_UNITS for (int m = 0; m < kRows; ++m) {
            float unit;
            std::memcpy(&unit, a.data + m * a.row + k * a.step, 4);  // pairs of bfloat16 lie at any even address
            const Vector left = broadcast(unit);
            HERD_UNROLL_UNITS for (int n = 0; n < kVectors; ++n) sums[m][n] = Form::multiply_add(left, right[n], sums[m][n]);
        }
    }
    HERD_UNROLL_UNITS for (int m = 0; m < kRows; ++m) {
        HERD_UNROLL_UNITS for (int n = 0; n < kVectors; ++n) {
            float* to = c + m * c_stride + n * kLanes;
            store(to, adds ? load(to) + sums[m][n] : sums[m][n]);
        }
    }
}

template <typename Form, int kRows>
void unit_rows(Units a, const float* b, int64_t b_stride, int64_t columns, int64_t depth, bool adds, float* c, int64_t c_stride) {
    constexpr int64_t kWide = kTileVectors * kLanes, kBlock = 16;
    int64_t n = 0;
    for (; n + kWide <= columns; n += kWide) unit_tile<Form, kRows, kTileVectors>(a, b + n, b_stride, depth, adds, c + n, c_stride);
    if constexpr (kWide > kBlock) {
        for (; n < columns; n += kBlock) unit_tile<Form, kRows, static_cast<int>(kBlock / kLanes)>(a, b + n, b_stride, depth, adds, c + n, c_stride);
    }
}

// c [rows][columns] = a [rows][depth] b [depth][columns], added to what is there if `adds`; `columns` is a multiple of 16.
template <typename Form>
void multiply_units(Units a, const float* b, int64_t b_stride, int64_t rows, int64_t columns, int64_t depth, bool adds, float* c, int64_t c_stride) {
    for (int64_t k = 0; k < depth; k += kChain) {
        const int64_t some = depth - k < kChain ? depth - k : kChain;
        const float* right = b + k * b_stride;
        const bool adds_here = adds || k > 0;
        int64_t m = 0;
        for (; m + kTileRows <= rows; m += kTileRows) {
            unit_rows<Form, kTileRows>({a.data + m * a.row + k * a.step, a.row, a.step}, right, b_stride, columns, some, adds_here, c + m * c_stride, c_stride);
        }
        for (; m < rows; ++m) {
            unit_rows<Form, 1>({a.data + m * a.row + k * a.step, a.row, a.step}, right, b_stride, columns, some, adds_here, c + m * c_stride, c_stride);
        }
    }
}

}  // namespace

}  // namespace herd::HERD_ISA
