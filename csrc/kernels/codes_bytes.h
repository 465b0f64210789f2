// Codes for processors that multiply bytes: as layout.h says, four bytes of a row side by side.
#pragma once

#include "kernels/lanes.h"
#include "kernels/words.h"

namespace herd::HERD_ISA {

// A prepared row of Form::Int8 is one of these for each group.
using Activations = ActivationGroup;

constexpr Layout packed_layout(Storage storage) { return layout(storage); }
constexpr Codes expanded_codes(Codes codes) { return codes; }

// The codes of one row, four columns a word, into its lane of a packed group: `packed` points to byte 4 * lane of the group.
HERD_INLINE void write_codes(Codes kind, const uint32_t* quads, uint8_t* packed) {
    if (kind == Codes::Bytes) {
        for (int q = 0; q < 8; ++q) std::memcpy(packed + 64 * q, &quads[q], 4);
        return;
    }
    for (int i = 0; i < 4; ++i) {
        const uint32_t word = (quads[i] & 0x0f0f0f0fu) | (quads[i + 4] & 0x0f0f0f0fu) << 4;
        std::memcpy(packed + 64 * i, &word, 4);
    }
    for (int h = 0; kind == Codes::SixBits && h < 2; ++h) {
        uint32_t word = 0;
        for (int i = 0; i < 4; ++i) word |= (quads[4 * h + i] >> 4 & 0x03030303u) << (2 * i);
        std::memcpy(packed + 256 + 64 * h, &word, 4);
    }
}

inline void read_codes(Codes kind, const uint8_t* packed, uint32_t* quads) {
    const auto word = [packed](int i) {
        uint32_t bits;
        std::memcpy(&bits, packed + 64 * i, 4);
        return bits;
    };
    for (int q = 0; q < 8; ++q) {
        quads[q] = kind == Codes::Bytes ? word(q) : word(q % 4) >> (4 * (q / 4)) & 0x0f0f0f0fu;
        if (kind == Codes::SixBits) quads[q] |= (word(4 + q / 4) >> (2 * (q % 4)) & 0x03030303u) << 4;
    }
}

// Bytes need no factors. Returns the sums of the halves of a group of values.
inline Halves write_factors(const Words (&values)[4], Activations&) {
    int32_t sums[2] = {0, 0};
    for (int i = 0; i < 32; ++i) sums[i / 16] += values[i / 8][i % 8];
    return {sums[0], sums[1]};
}

// sums[t] += the products of sub-group s and T tokens, whose activations are `stride` bytes apart.
template <class Group, int T>
HERD_INLINE void add_products(const Group& group, int s, const uint8_t* x, int64_t stride, lanes::Sums<Group::at.codes> (&sums)[T]) {
    constexpr int kQuads = 8 / Group::at.sub_groups;
HERD_UNROLL
    for (int q = s * kQuads; q < (s + 1) * kQuads; q += 2) {
        const auto w0 = group.quad(q), w1 = group.quad(q + 1);
HERD_UNROLL
        for (int t = 0; t < T; ++t) sums[t].add(w0, w1, reinterpret_cast<const Activations*>(x + t * stride)->values + 4 * q);
    }
}

// What the products of sub-group s are with the offset of codes taken off.
template <class Group>
HERD_INLINE lanes::F32 whole_sum(const lanes::Sums<Group::at.codes>& sums, const Activations& x, int s) {
    return sums.template value<Group::at.offset_shift>(Group::at.sub_groups == 1 ? &x.sum : &x.halves[s]);
}

}  // namespace herd::HERD_ISA
