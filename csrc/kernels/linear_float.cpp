// linear in float32: plain formats and Arithmetic::Float32; the order of sums is in matrix.h.
//
// Plain weights are widened as they are read. Block formats are dequantised into scratch, one panel at a time, exactly.
// Sums run over 32 columns and are then added: closer to the true sum than one long chain, and the same for any number of tokens.
// Checked: tests/test_linear.cpp.
#include "kernels/linear_groups.h"
#include "kernels/linear_store.h"
#include "kernels/pack.h"

namespace herd::HERD_ISA {

namespace {

using namespace lanes;

constexpr int64_t kSumColumns = 32;

// How 16 weights of column k of a panel become floats.
struct Wide {
    static constexpr int64_t kBytes = 4;
    static HERD_INLINE F32 at(const uint8_t* panel, int64_t k) { return load(reinterpret_cast<const float*>(panel) + 16 * k); }
};
struct Half {
    static constexpr int64_t kBytes = 2;
    static HERD_INLINE F32 at(const uint8_t* panel, int64_t k) { return load_half(panel + 32 * k); }
};
struct Bf16 {
    static constexpr int64_t kBytes = 2;
    static HERD_INLINE F32 at(const uint8_t* panel, int64_t k) {
#if defined(HERD_ISA_AVX512)
        return load_bf16_of_pairs(panel + 64 * (k / 2), k % 2);
#else
        return load_bf16(panel + 32 * k);
#endif
    }
};

template <class Weight, int T>
void tile(const LinearCall& call, const uint8_t* panel, int64_t p, int64_t t0) {
    const uint8_t* x = call.x + t0 * call.x_stride;
    F32 acc[T];
    for (int t = 0; t < T; ++t) acc[t] = broadcast(0.0f);
    for (int64_t begin = 0; begin < call.matrix.columns; begin += kSumColumns) {
        const int64_t end = begin + kSumColumns < call.matrix.columns ? begin + kSumColumns : call.matrix.columns;
        F32 sum[T];
        for (int t = 0; t < T; ++t) sum[t] = broadcast(0.0f);
        if (t0 == 0) ask_for(panel + kAhead + kPanelRows * Weight::kBytes * begin, kPanelRows * Weight::kBytes * kSumColumns);
        for (int64_t k = begin; k < end; ++k) {
            const F32 w = Weight::at(panel, k);
HERD_UNROLL
            for (int t = 0; t < T; ++t) sum[t] = fma(w, broadcast(reinterpret_cast<const float*>(x + t * call.x_stride)[k]), sum[t]);
        }
        for (int t = 0; t < T; ++t) acc[t] = add(acc[t], sum[t]);
    }
    store_tile(call, p, t0, acc);
}

template <class Weight>
void panel_times_tokens(const LinearCall& call, const uint8_t* panel, int64_t p) {
    for_token_tiles<kFloatTileTokens>(call.tokens, [&](auto count, int64_t t0) { tile<Weight, count.value>(call, panel, p, t0); });
}

template <class Weight>
void plain(const LinearCall& call) {
    for (int64_t p = call.panel_begin; p < call.panel_end; ++p) panel_times_tokens<Weight>(call, call.panel(p), p);
}

// A panel of a block format as [columns][16] floats.
template <Storage S>
void dequantise_panel(const uint8_t* panel, int64_t columns, float* out) {
    constexpr Layout at = packed_layout(S);
    each_group<PackedGroup<S>>(panel, columns, [&](const PackedGroup<S>& group, int64_t) {
        for (int q = 0; q < 8; ++q) {
            const int s = q * at.sub_groups / 8;
            const F32 scale = group.scale(s);
            const auto quad = group.quad(q);
            for (int j = 0; j < 4; ++j, out += 16) {
                F32 value = mul(scale, add(column(quad, j), broadcast(-static_cast<float>(at.offset()))));
                if constexpr (at.has_minimum) value = add(value, group.minimum(s));
                store(out, value);
            }
        }
    });
}

template <Storage S>
void dequantised(const LinearCall& call) {
    for (int64_t p = call.panel_begin; p < call.panel_end; ++p) {
        dequantise_panel<S>(call.panel(p), call.matrix.columns, reinterpret_cast<float*>(call.scratch));
        panel_times_tokens<Wide>(call, call.scratch, p);
    }
}

}  // namespace

void linear_float(const LinearCall& call) {
    switch (call.matrix.storage) {
        case Storage::F32: return plain<Wide>(call);
        case Storage::F16: return plain<Half>(call);
        case Storage::BF16: return plain<Bf16>(call);
        default: with_block_storage(call.matrix.storage, [&](auto storage) { dequantised<decltype(storage)::value>(call); });
    }
}

int64_t float_scratch_bytes(const Matrix& matrix, int64_t) {
    return layout(matrix.storage).is_plain() ? 0 : matrix.columns * kPanelRows * 4;
}

}  // namespace herd::HERD_ISA
