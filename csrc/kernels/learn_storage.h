// How training stores numbers, and how kernels read and write them: float32 as it is, bfloat16 widened and rounded to nearest even.
#pragma once

#include "kernels/half.h"
#include "kernels/learn.h"

namespace herd::HERD_ISA {

namespace {

// As `lanes::float_to_bf16`, in words that compilers turn into vectors: not a number stays so.
inline uint32_t rounded_bits(float value) {
    const uint32_t bits = lanes::float_to_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 64u) : rounded;
}

inline float widened(uint16_t bits) { return lanes::bits_to_float(static_cast<uint32_t>(bits) << 16); }

// Elements that numbers are stored in.
struct AsFloats {
    using Type = float;
    static void widen(const float* from, int64_t count, float* to) { std::memcpy(to, from, static_cast<size_t>(count) * 4); }
    static void narrow(const float* from, int64_t count, float* to) { std::memcpy(to, from, static_cast<size_t>(count) * 4); }
};
struct AsBFloat16 {
    using Type = uint16_t;
    static void widen(const uint16_t* from, int64_t count, float* to) {
        for (int64_t i = 0; i < count; ++i) to[i] = widened(from[i]);
    }
    static void narrow(const float* from, int64_t count, uint16_t* to) {
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint16_t>(rounded_bits(from[i]));
    }
};

// Calls `work` with how numbers are stored.
template <typename Work>
auto with_storage(Element element, Work work) {
    return element == Element::Float32 ? work.template operator()<AsFloats>() : work.template operator()<AsBFloat16>();
}

}  // namespace

}  // namespace herd::HERD_ISA
