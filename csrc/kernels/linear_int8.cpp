// linear, Arithmetic::Int8: block-quantised weights times int8 activations, with the order of sums that matrix.h defines.
//
// Few tokens (a decoding step): each group is unpacked in registers and used for a tile of them; the panel is read from memory once.
// Many tokens (a prompt): some panels are unpacked into scratch, as many as fit the second-level cache, and every tile of
// tokens runs over them. Both run the same `tile`, so the bits are the same.
// Reference: quantised activations in numpy, tests/conformance. Checked bit by bit: tests/test_linear.cpp.
#include "kernels/linear_groups.h"
#include "kernels/linear_store.h"

namespace herd::HERD_ISA {

namespace {

using namespace lanes;

constexpr int64_t kExpandedBytes = 192 * 1024;  // of unpacked panels at a time

// Up to here panels are used as they are packed: beyond, what unpacking costs again in every tile exceeds one trip through scratch.
constexpr int64_t few(Codes codes) { return codes == Codes::SixBits ? kTileTokens : 4 * kTileTokens; }

// acc[t] += one group of one panel times T tokens, `stride` bytes apart.
template <class Group, int T>
HERD_INLINE void add_group(const Group& group, const uint8_t* x, int64_t stride, F32 (&acc)[T]) {
    constexpr Layout at = Group::at;
    for (int s = 0; s < at.sub_groups; ++s) {
        Sums<at.codes> sums[T];
        add_products<Group, T>(group, s, x, stride, sums);
        const F32 scale = group.scale(s);
HERD_UNROLL
        for (int t = 0; t < T; ++t) {
            const auto* a = reinterpret_cast<const Activations*>(x + t * stride);
            acc[t] = fma(whole_sum<Group>(sums[t], *a, s), mul(scale, broadcast(a->scale)), acc[t]);
        }
        if constexpr (at.has_minimum) {
            const F32 minimum = group.minimum(s);
HERD_UNROLL
            for (int t = 0; t < T; ++t) {
                const auto* a = reinterpret_cast<const Activations*>(x + t * stride);
                acc[t] = fma(minimum, broadcast(at.sub_groups == 1 ? a->scaled_sum : a->scaled_halves[s]), acc[t]);
            }
        }
    }
}

// Panel p, whose bytes are at `panel` (packed or expanded), times T tokens from t0 on. `kReadsMemory`: the first tile of tokens brings
// them from memory.
template <class Group, int T, bool kReadsMemory>
__attribute__((noinline)) void tile(const LinearCall& call, const uint8_t* panel, int64_t p, int64_t t0) {
    const uint8_t* x = call.x + t0 * call.x_stride;
    F32 acc[T];
    for (int t = 0; t < T; ++t) acc[t] = broadcast(0.0f);
    each_group<Group>(panel, call.matrix.columns, [&](const Group& group, int64_t) __attribute__((always_inline)) {
        if (kReadsMemory && t0 == 0) ask_for(group.group + kAhead, Group::at.group_bytes());
        add_group<Group, T>(group, x, call.x_stride, acc);
        x += sizeof(Activations);
    });
    store_tile(call, p, t0, acc);
}

int64_t panels_at_a_time(int64_t panel_bytes) { return panel_bytes >= kExpandedBytes ? 1 : kExpandedBytes / panel_bytes; }

template <Storage S>
int64_t expanded_panel_bytes(int64_t columns) {
    return columns / 32 * Expanded<S>::kBytes;
}

template <Storage S>
void few_tokens(const LinearCall& call) {
    for (int64_t p = call.panel_begin; p < call.panel_end; ++p) {
        for_token_tiles<kTileTokens>(call.tokens, [&](auto count, int64_t t0) {
            tile<PackedGroup<S>, count.value, true>(call, call.panel(p), p, t0);
        });
    }
}

// Group: PackedGroup when the packed codes need no unpacking, else Expanded.
template <Storage S, class Group>
void many_tokens(const LinearCall& call) {
    constexpr bool kExpands = packed_layout(S).codes != Codes::Bytes;
    const int64_t bytes = kExpands ? expanded_panel_bytes<S>(call.matrix.columns) : call.panel_bytes;
    const int64_t step = panels_at_a_time(bytes);
    for (int64_t begin = call.panel_begin; begin < call.panel_end; begin += step) {
        const int64_t end = begin + step < call.panel_end ? begin + step : call.panel_end;
        if constexpr (kExpands) {
            for (int64_t p = begin; p < end; ++p) expand_panel<S>(call.panel(p), call.matrix.columns, call.scratch + (p - begin) * bytes);
        }
        const uint8_t* first = kExpands ? call.scratch : call.panel(begin);
        for_token_tiles<kTileTokens>(call.tokens, [&](auto count, int64_t t0) {
            for (int64_t p = begin; p < end; ++p) tile<Group, count.value, false>(call, first + (p - begin) * bytes, p, t0);
        });
    }
}

}  // namespace

void linear_int8(const LinearCall& call) {
    with_block_storage(call.matrix.storage, [&](auto storage) {
        constexpr Storage S = decltype(storage)::value;
        if (call.tokens <= few(packed_layout(S).codes)) return few_tokens<S>(call);
        if constexpr (packed_layout(S).codes == Codes::Bytes) {
            many_tokens<S, PackedGroup<S>>(call);
        } else {
            many_tokens<S, Expanded<S>>(call);
        }
    });
}

int64_t int8_scratch_bytes(const Matrix& matrix, int64_t tokens) {
    int64_t bytes = 0;
    if (tokens <= few(packed_layout(matrix.storage).codes) || packed_layout(matrix.storage).codes == Codes::Bytes) return bytes;
    with_block_storage(matrix.storage, [&](auto storage) {
        const int64_t panel = expanded_panel_bytes<decltype(storage)::value>(matrix.columns);
        bytes = panel * panels_at_a_time(panel);
    });
    return bytes;
}

}  // namespace herd::HERD_ISA
