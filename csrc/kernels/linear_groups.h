// A group of 32 columns of a panel, as the file packed it or expanded into scratch: codes by quads, scales and minima as floats.
#pragma once

#include "kernels/codes.h"

namespace herd::HERD_ISA {

// The groups that share a header, with what is in it: of formats without super-blocks one group and nothing.
template <Storage S>
struct PackedBlock {
    static constexpr Layout at = packed_layout(S);
    static constexpr int64_t kGroups = at.groups_per_block();
    const uint8_t* bytes;
    lanes::F32 scale, minimum;  // d and -dmin

    HERD_INLINE PackedBlock(const uint8_t* panel, int64_t g) : bytes(panel + g / kGroups * at.block_bytes()) {
        if constexpr (at.has_header) scale = lanes::load_half(bytes);
        if constexpr (at.has_header && at.has_minimum) minimum = lanes::negate(lanes::load_half(bytes + 32));
    }
};

// As packed (layout.h).
template <Storage S>
struct PackedGroup {
    using Block = PackedBlock<S>;
    static constexpr Layout at = packed_layout(S);
    const Block& block;
    const uint8_t* group;

    HERD_INLINE PackedGroup(const Block& block, int64_t g)
        : block(block), group(block.bytes + at.header_bytes() + g % Block::kGroups * at.group_bytes()) {}

    HERD_INLINE lanes::Quad<at.codes> quad(int q) const { return lanes::unpack_quad<at.codes>(group, q); }
    HERD_INLINE lanes::F32 scale(int s) const {
        const uint8_t* scales = group + at.code_bytes();
        if constexpr (!at.has_header) return lanes::load_half(scales);
        const uint8_t* integers = scales + 16 * s;
        return lanes::mul(block.scale, at.signed_scales ? lanes::load_int8(integers) : lanes::load_uint8(integers));
    }
    HERD_INLINE lanes::F32 minimum(int s) const {
        const uint8_t* minima = group + at.code_bytes() + at.scale_bytes();
        if constexpr (!at.has_header) return lanes::load_half(minima);
        return lanes::mul(block.minimum, lanes::load_uint8(minima + 16 * s));
    }
};

// What the kernels still see of a format once its panel is unpacked; formats that only differ in packing share it.
template <Codes C, int OffsetShift, int SubGroups, bool HasMinimum>
struct ExpandedGroup {
    static constexpr Layout at{.codes = C, .offset_shift = OffsetShift, .sub_groups = SubGroups, .has_minimum = HasMinimum};
    static constexpr int64_t kBytes = 512 + 64 * SubGroups * (HasMinimum ? 2 : 1);
    struct Block {
        static constexpr int64_t kGroups = 1;
        const uint8_t* group;
        HERD_INLINE Block(const uint8_t* panel, int64_t g) : group(panel + g * kBytes) {}
    };
    const uint8_t* group;  // eight unpacked quads, then the scales and the minima of each sub-group as floats

    HERD_INLINE ExpandedGroup(const Block& block, int64_t) : group(block.group) {}

    HERD_INLINE lanes::Quad<C> quad(int q) const { return lanes::load_quad<C>(group + 64 * q); }
    HERD_INLINE lanes::F32 scale(int s) const { return lanes::load(reinterpret_cast<const float*>(group + 512) + 16 * s); }
    HERD_INLINE lanes::F32 minimum(int s) const {
        return lanes::load(reinterpret_cast<const float*>(group + 512) + 16 * (SubGroups + s));
    }
};
template <Storage S>
using Expanded = ExpandedGroup<expanded_codes(layout(S).codes), layout(S).offset_shift, layout(S).sub_groups, layout(S).has_minimum>;

// Calls `body` with every group of a panel and its number.
template <class Group, class Body>
HERD_INLINE void each_group(const uint8_t* panel, int64_t columns, Body body) {
    if constexpr (Group::Block::kGroups == 1) {  // one loop: in two, GCC reads weights again for every token
        for (int64_t g = 0; g < columns / 32; ++g) body(Group(typename Group::Block(panel, g), g), g);
    } else {
        for (int64_t first = 0; first < columns / 32; first += Group::Block::kGroups) {
            const typename Group::Block block(panel, first);
            for (int64_t g = first; g < first + Group::Block::kGroups; ++g) body(Group(block, g), g);
        }
    }
}

template <Storage S>
void expand_panel(const uint8_t* panel, int64_t columns, uint8_t* out) {
    constexpr Layout at = packed_layout(S);
    each_group<PackedGroup<S>>(panel, columns, [&](const PackedGroup<S>& group, int64_t) {
        for (int q = 0; q < 8; ++q) lanes::store_quad(out + 64 * q, group.quad(q));
        auto* floats = reinterpret_cast<float*>(out + 512);
        for (int s = 0; s < at.sub_groups; ++s) {
            lanes::store(floats + 16 * s, group.scale(s));
            if constexpr (at.has_minimum) lanes::store(floats + 16 * (at.sub_groups + s), group.minimum(s));
        }
        out += Expanded<S>::kBytes;
    });
}

}  // namespace herd::HERD_ISA
