// Vectors of 16 bytes, which every processor has, in the compiler's own words, and the few things that it must be told how to do: what
// the portable set is made of, and what packing turns rows with.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// Elements of two vectors, counted through both. GCC has the name that Clang gave it from version 12 on.
#if defined(__clang__) || __GNUC__ >= 12
#define HERD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define HERD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, std::remove_const_t<decltype(a)>{__VA_ARGS__})
#endif

namespace herd::HERD_ISA {

using Floats = float __attribute__((vector_size(16)));
using Signed32 = int32_t __attribute__((vector_size(16)));
using Unsigned32 = uint32_t __attribute__((vector_size(16)));
using Unsigned64 = uint64_t __attribute__((vector_size(16)));
using Words = int16_t __attribute__((vector_size(16)));
using Unsigned16 = uint16_t __attribute__((vector_size(16)));
using Bytes = int8_t __attribute__((vector_size(16)));

template <class Vector>
inline Vector read_words(const void* from) {
    Vector vector;
    std::memcpy(&vector, from, 16);
    return vector;
}

inline Floats to_floats(Signed32 a) { return __builtin_convertvector(a, Floats); }

// To the nearest whole number, ties to even, for |x| < 2^22: adding and taking off 1.5 * 2^23 rounds.
inline Floats round_even(Floats x) { return (x + 12582912.0f) - 12582912.0f; }

// The nearest integer; 0 where it is beyond -most .. most, or x is not a number.
inline Signed32 round_within(Floats x, float most) {
    const Floats whole = round_even(x);
    const Signed32 bits = reinterpret_cast<Signed32>(whole) & (whole >= -most) & (whole <= most);
    return __builtin_convertvector(reinterpret_cast<Floats>(bits), Signed32);
}

// Products of 16-bit integers, neighbours added.
inline Signed32 add_products(Words a, Words b) {
#if defined(__SSE2__)
    return reinterpret_cast<Signed32>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
    const auto even_a = reinterpret_cast<Signed32>(a) << 16 >> 16, even_b = reinterpret_cast<Signed32>(b) << 16 >> 16;
    return even_a * even_b + (reinterpret_cast<Signed32>(a) >> 16) * (reinterpret_cast<Signed32>(b) >> 16);
#endif
}

// Sums of the first and of the last 16 values of a group.
struct Halves {
    int32_t first, last;
};

// Adds now: compilers that put additions off run out of registers.
inline void settle(Signed32& sum) {
#if defined(__SSE2__)
    asm("" : "+x"(sum));
#elif defined(__aarch64__)
    asm("" : "+w"(sum));
#else
    (void)sum;
#endif
}

inline bool has_any(Words mask) {
#if defined(__SSE2__)
    return _mm_movemask_epi8(reinterpret_cast<__m128i>(mask)) != 0;
#else
    const auto two = reinterpret_cast<Unsigned64>(mask);
    return (two[0] | two[1]) != 0;
#endif
}

// Pair number `pair` of words, four times.
inline __attribute__((always_inline)) Words broadcast_pair(Words words, int pair) {
    const auto pairs = reinterpret_cast<Signed32>(words);
    switch (pair) {
        case 0: return reinterpret_cast<Words>(HERD_SHUFFLE(pairs, pairs, 0, 0, 0, 0));
        case 1: return reinterpret_cast<Words>(HERD_SHUFFLE(pairs, pairs, 1, 1, 1, 1));
        case 2: return reinterpret_cast<Words>(HERD_SHUFFLE(pairs, pairs, 2, 2, 2, 2));
        default: return reinterpret_cast<Words>(HERD_SHUFFLE(pairs, pairs, 3, 3, 3, 3));
    }
}

// Eight halves, of which none is infinite, not a number or below the smallest normal one: exponent and fraction move down three bits, and the
// exponent's bias changes.
inline void normal_halves_to_floats(Words half, Floats* out) {
    const Unsigned16 high = reinterpret_cast<Unsigned16>((half >> 3) & static_cast<int16_t>(0x8fff)) + uint16_t{0x3800};
    const Unsigned16 low = reinterpret_cast<Unsigned16>(half) << 13;
    out[0] = reinterpret_cast<Floats>(HERD_SHUFFLE(low, high, 0, 8, 1, 9, 2, 10, 3, 11));
    out[1] = reinterpret_cast<Floats>(HERD_SHUFFLE(low, high, 4, 12, 5, 13, 6, 14, 7, 15));
}

// Four halves of any kind, each in the upper half of 32 bits. With the exponent's bias changed so that infinities stay such, a number is
// 2^112 times too large, and one below the smallest normal half is (1 + f) 2^-15 instead of f 2^-14: there twice the number less 2^-14 is
// right, and elsewhere it is not less than the number.
inline Floats any_halves_to_floats(Signed32 upper) {
    const Signed32 sign = upper & static_cast<int32_t>(0x80000000);
    const Signed32 bits = ((upper & 0x7fff0000) >> 3) + 0x70000000;
    const Floats number = reinterpret_cast<Floats>(bits) * 0x1p-112f;
    const Floats below = number + (number - 0x1p-14f);
    const Signed32 is_below = below < number;
    return reinterpret_cast<Floats>((reinterpret_cast<Signed32>(below) & is_below) | (reinterpret_cast<Signed32>(number) & ~is_below) | sign);
}

inline void any_halves_to_floats(Words half, Floats* out) {
    const Words low = {};
    out[0] = any_halves_to_floats(reinterpret_cast<Signed32>(HERD_SHUFFLE(low, half, 0, 8, 1, 9, 2, 10, 3, 11)));
    out[1] = any_halves_to_floats(reinterpret_cast<Signed32>(HERD_SHUFFLE(low, half, 4, 12, 5, 13, 6, 14, 7, 15)));
}

// Eight or sixteen halves, exactly, also where subnormal floats are flushed to zero.
template <int Count>
inline __attribute__((always_inline)) void halves_to_floats(const uint8_t* p, Floats (&out)[Count]) {
    static_assert(Count == 2 || Count == 4);
    const auto first = read_words<Words>(p), last = read_words<Words>(p + (Count == 4 ? 16 : 0));
    // Without its sign, the smallest normal half becomes the smallest integer, what is not finite the largest ones, and zero still larger.
    const auto order = [](Words half) {
        const auto bits = reinterpret_cast<Unsigned16>(half);
        return reinterpret_cast<Words>(bits + bits + uint16_t{0x7800});
    };
    const Words a = order(first), b = order(last), top = a > b ? a : b;
    const bool is_normal = !has_any(top > static_cast<int16_t>(0x6fff));
    if (__builtin_expect(is_normal, true)) {
        normal_halves_to_floats(first, out);
        if constexpr (Count == 4) normal_halves_to_floats(last, out + 2);
    } else {
        any_halves_to_floats(first, out);
        if constexpr (Count == 4) any_halves_to_floats(last, out + 2);
    }
}

}  // namespace herd::HERD_ISA
