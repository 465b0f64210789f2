// Half-precision floats, one at a time, exact.
#pragma once

#include <cstdint>
#include <cstring>

namespace herd::HERD_ISA::lanes {

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// Every one of the 65536 patterns to the same number in float32. Integer arithmetic only: flushed denormals must not touch it.
inline float half_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 31;
    uint32_t fraction = half & 1023u;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
        if (fraction == 0) return bits_to_float(sign);
        exponent = 1;
        while (!(fraction & 1024u)) {
            fraction <<= 1;
            --exponent;
        }
        fraction &= 1023u;
    }
    return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
}

// To bfloat16, round to nearest even; a NaN stays a quiet NaN.
inline uint16_t float_to_bf16(float value) {
    const uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 64);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace herd::HERD_ISA::lanes
