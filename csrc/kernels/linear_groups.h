// A group of 32 columns of a panel, as the file packed it or expanded into scratch: codes by quads, scales and minima as floats.
#pragma once

#include "kernels/lanes.h"

namespace herd::HERD_ISA {

// As packed (layout.h).
template <Storage S>
struct PackedGroup {
    static constexpr Layout at = layout(S);
    const uint8_t* block;  // where d and dmin of a super-block are
    const uint8_t* group;

    HERD_INLINE PackedGroup(const uint8_t* panel, int64_t g)
        : block(panel + g / at.groups_per_block() * at.block_bytes()),
          group(block + at.header_bytes() + g % at.groups_per_block() * at.group_bytes()) {}

    HERD_INLINE lanes::Quad<at.codes> quad(int q) const { return lanes::unpack_quad<at.codes>(group, q); }
    HERD_INLINE lanes::F32 scale(int s) const {
        const uint8_t* scales = group + at.code_bytes();
        if constexpr (!at.has_header) return lanes::load_half(scales);
        const uint8_t* integers = scales + 16 * s;
        return lanes::mul(lanes::load_half(block), at.signed_scales ? lanes::load_int8(integers) : lanes::load_uint8(integers));
    }
    HERD_INLINE lanes::F32 minimum(int s) const {
        const uint8_t* minima = group + at.code_bytes() + at.scale_bytes();
        if constexpr (!at.has_header) return lanes::load_half(minima);
        return lanes::negate(lanes::mul(lanes::load_half(block + 32), lanes::load_uint8(minima + 16 * s)));
    }
};

// What the kernels still see of a format once its panel is unpacked; formats that only differ in packing share it.
template <Codes C, int OffsetShift, int SubGroups, bool HasMinimum>
struct ExpandedGroup {
    static constexpr Layout at{.codes = C, .offset_shift = OffsetShift, .sub_groups = SubGroups, .has_minimum = HasMinimum};
    static constexpr int64_t kBytes = 512 + 64 * SubGroups * (HasMinimum ? 2 : 1);
    const uint8_t* group;  // eight unpacked quads, then the scales and the minima of each sub-group as floats

    HERD_INLINE ExpandedGroup(const uint8_t* panel, int64_t g) : group(panel + g * kBytes) {}

    HERD_INLINE lanes::Quad<C> quad(int q) const { return lanes::load_quad<C>(group + 64 * q); }
    HERD_INLINE lanes::F32 scale(int s) const { return lanes::load(reinterpret_cast<const float*>(group + 512) + 16 * s); }
    HERD_INLINE lanes::F32 minimum(int s) const {
        return lanes::load(reinterpret_cast<const float*>(group + 512) + 16 * (SubGroups + s));
    }
};
template <Storage S>
using Expanded = ExpandedGroup<layout(S).codes, layout(S).offset_shift, layout(S).sub_groups, layout(S).has_minimum>;

template <Storage S>
void expand_panel(const uint8_t* panel, int64_t columns, uint8_t* out) {
    constexpr Layout at = layout(S);
    for (int64_t g = 0; g < columns / 32; ++g, out += Expanded<S>::kBytes) {
        const PackedGroup<S> group(panel, g);
        for (int q = 0; q < 8; ++q) lanes::store_quad(out + 64 * q, group.quad(q));
        auto* floats = reinterpret_cast<float*>(out + 512);
        for (int s = 0; s < at.sub_groups; ++s) {
            lanes::store(floats + 16 * s, group.scale(s));
            if constexpr (at.has_minimum) lanes::store(floats + 16 * (at.sub_groups + s), group.minimum(s));
        }
    }
}

}  // namespace herd::HERD_ISA
