// The definition of every storage format and of the int8 arithmetic, one element at a time, for tests of the matrix kernels.
//
// Written from the block definitions, apart from pack.cpp: `value_at` looks one element up in a row of a file.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/layout.h"

namespace reference {

using herd::Storage;

inline float half(const uint8_t* p) {
    const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double sign = bits & 0x8000 ? -1.0 : 1.0;
    if (exponent == 31) return fraction ? NAN : static_cast<float>(sign * INFINITY);
    return static_cast<float>(sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24)));
}

// One element of a block as code, scale and minimum: value = scale * code + minimum.
struct Element {
    int code;
    float scale;
    float minimum = 0;
};

inline int nibble(const uint8_t* bytes, int j) { return j < 16 ? bytes[j] & 15 : bytes[j - 16] >> 4; }
inline int fifth(const uint8_t* bytes, int j) { return bytes[j / 8] >> j % 8 & 1; }

inline Element k_element(const uint8_t* b, int j, int code) {
    const uint8_t* s = b + 4;
    const int i = j / 32;
    const int scale = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | s[i - 4] >> 6 << 4;
    const int minimum = i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | s[i] >> 6 << 4;
    return {code, half(b) * static_cast<float>(scale), -half(b + 2) * static_cast<float>(minimum)};
}

inline Element element(Storage storage, const uint8_t* b, int j) {
    const int n = j / 128, k = j % 128 / 32, l = j % 32;
    switch (storage) {
        case Storage::Q4_0: return {nibble(b + 2, j) - 8, half(b)};
        case Storage::Q4_1: return {nibble(b + 4, j), half(b), half(b + 2)};
        case Storage::Q5_0: return {(nibble(b + 6, j) | fifth(b + 2, j) << 4) - 16, half(b)};
        case Storage::Q5_1: return {nibble(b + 8, j) | fifth(b + 4, j) << 4, half(b), half(b + 2)};
        case Storage::Q8_0: return {static_cast<int8_t>(b[2 + j]), half(b)};
        case Storage::IQ4_NL: return {herd::kTable[nibble(b + 2, j)], half(b)};
        case Storage::Q2_K: {
            const int scales = b[8 * n + 2 * k + l / 16];
            return {b[16 + 32 * n + l] >> 2 * k & 3, half(b + 80) * static_cast<float>(scales & 15), -half(b + 82) * static_cast<float>(scales >> 4)};
        }
        case Storage::Q3_K: {
            const int i = 8 * n + 2 * k + l / 16;
            const int low = i < 8 ? b[96 + i] & 15 : b[96 + i - 8] >> 4;
            const int scale = (low | (b[96 + 8 + i % 4] >> 2 * (i / 4) & 3) << 4) - 32;
            return {(b[32 + 32 * n + l] >> 2 * k & 3) - (b[l] >> (4 * n + k) & 1 ? 0 : 4), half(b + 108) * static_cast<float>(scale)};
        }
        case Storage::Q4_K: {
            const int byte = b[16 + j / 64 * 32 + l];
            return k_element(b, j, j / 32 % 2 ? byte >> 4 : byte & 15);
        }
        case Storage::Q5_K: {
            const int byte = b[48 + j / 64 * 32 + l];
            return k_element(b, j, (j / 32 % 2 ? byte >> 4 : byte & 15) | (b[16 + l] >> j / 32 & 1) << 4);
        }
        case Storage::Q6_K: {
            const int byte = b[64 * n + 32 * (k % 2) + l];
            const int code = (k < 2 ? byte & 15 : byte >> 4) | (b[128 + 32 * n + l] >> 2 * k & 3) << 4;
            return {code - 32, half(b + 208) * static_cast<float>(static_cast<int8_t>(b[192 + 8 * n + 2 * k + l / 16]))};
        }
        case Storage::IQ4_XS: {
            const int i = j / 32, low = i % 2 ? b[4 + i / 2] >> 4 : b[4 + i / 2] & 15;
            const int scale = (low | ((b[2] | b[3] << 8) >> 2 * i & 3) << 4) - 32;
            return {herd::kTable[nibble(b + 8 + 16 * i, l)], half(b) * static_cast<float>(scale)};
        }
        default: return {0, 0};
    }
}

inline Element element_at(Storage storage, const uint8_t* row, int64_t column) {
    const herd::Layout at = herd::layout(storage);
    return element(storage, row + column / at.file_block_columns * at.file_block_bytes, static_cast<int>(column % at.file_block_columns));
}

// The exact value of one column of a row of a file.
inline float value_at(Storage storage, const uint8_t* row, int64_t column) {
    float value;
    uint16_t bits;
    if (storage == Storage::F16) return half(row + 2 * column);
    if (storage == Storage::F32) {
        std::memcpy(&value, row + 4 * column, 4);
        return value;
    }
    if (storage == Storage::BF16) {
        std::memcpy(&bits, row + 2 * column, 2);
        return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
    }
    const Element e = element_at(storage, row, column);
    const float product = e.scale * static_cast<float>(e.code);
    return herd::layout(storage).has_minimum ? product + e.minimum : product;
}

// To 8 bits of fraction, ties to even.
inline float to_bf16(float x) {
    int exponent;
    const double fraction = std::frexp(static_cast<double>(x), &exponent);
    return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8));
}

// Activations of one token by the definition of int8 arithmetic.
struct Quantised {
    std::vector<int> values;
    std::vector<float> scales;
};
inline Quantised quantise(const float* x, int64_t columns) {
    Quantised out{std::vector<int>(static_cast<size_t>(columns)), {}};
    for (int64_t begin = 0; begin < columns; begin += 32) {
        float largest = 0;
        for (int64_t k = begin; k < begin + 32; ++k) largest = std::fmax(largest, std::fabs(x[k]));
        const float scale = largest / 127.0f, inverse = 1.0f / scale;
        out.scales.push_back(std::isinf(inverse) ? 0.0f : scale);
        for (int64_t k = begin; k < begin + 32; ++k) {
            out.values[static_cast<size_t>(k)] = std::isinf(inverse) ? 0 : static_cast<int>(std::nearbyint(x[k] * inverse));
        }
    }
    return out;
}

// What matrix.h says about Int8, to the bit, with or without fused multiply-adds.
inline float dot_int8(Storage storage, const uint8_t* row, const Quantised& x, bool is_fused) {
    const auto multiply_add = [is_fused](float a, float b, float c) { return is_fused ? std::fma(a, b, c) : a * b + c; };
    const herd::Layout at = herd::layout(storage);
    const int width = 32 / at.sub_groups;
    float acc = 0;
    for (size_t begin = 0; begin < x.values.size(); begin += static_cast<size_t>(width)) {
        int sum = 0, x_sum = 0;
        for (size_t k = begin; k < begin + static_cast<size_t>(width); ++k) {
            sum += element_at(storage, row, static_cast<int64_t>(k)).code * x.values[k];
            x_sum += x.values[k];
        }
        const Element e = element_at(storage, row, static_cast<int64_t>(begin));
        const float scale = x.scales[begin / 32];
        acc = multiply_add(static_cast<float>(sum), e.scale * scale, acc);
        if (at.has_minimum) acc = multiply_add(e.minimum, scale * static_cast<float>(x_sum), acc);
    }
    return acc;
}

// The same about BF16.
inline float dot_bf16(const uint8_t* row, const float* x, int64_t columns) {
    float sums[2] = {0, 0};
    for (int64_t pair = 0; 2 * pair < columns; ++pair) {
        for (int64_t k = 2 * pair + 1; k >= 2 * pair; --k) {
            if (k < columns) sums[pair % 2] = std::fma(value_at(Storage::BF16, row, k), to_bf16(x[k]), sums[pair % 2]);
        }
    }
    return sums[0] + sums[1];
}

}  // namespace reference
