// How a tile asks memory for its panel, and how its sums reach y: only the rows that exist, then the bias, then what y held.
#pragma once

#include "kernels/lanes.h"
#include "kernels/linear.h"

namespace herd::HERD_ISA {

// Bytes between what a tile asks memory for and what it uses, of panels that come from there: what the processor foresees by itself does
// not fill the memory's time.
inline constexpr int64_t kAhead = 4096;

// Asks memory for what will be used soon.
HERD_INLINE void ask_for(const uint8_t* soon, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(soon + line);
}

// `acc` holds the sums of panel p for tokens t0 .. t0 + T - 1.
template <int T>
HERD_INLINE void store_tile(const LinearCall& call, int64_t p, int64_t t0, const lanes::F32 (&acc)[T]) {
    const int64_t first = p * kPanelRows;
    const int64_t rows = call.matrix.rows - first;
    for (int t = 0; t < T; ++t) {
        float* y = call.y + (t0 + t) * call.y_stride + first;
        lanes::F32 sum = acc[t];
        if (rows >= kPanelRows) {
            if (call.bias) sum = lanes::add(sum, lanes::load(call.bias + first));
            if (call.accumulate) sum = lanes::add(sum, lanes::load(y));
            lanes::store(y, sum);
            continue;
        }
        float lane[kPanelRows];
        lanes::store(lane, sum);
        for (int64_t r = 0; r < rows; ++r) {
            if (call.bias) lane[r] += call.bias[first + r];
            y[r] = call.accumulate ? lane[r] + y[r] : lane[r];
        }
    }
}

// Runs `tile(count, t0)` over all tokens: whole tiles of `Tile`, then one smaller; `count` is a compile-time constant.
template <int N>
struct Count {
    static constexpr int value = N;
};
template <int Tile, class Function>
HERD_INLINE void for_token_tiles(int64_t tokens, Function tile) {
    int64_t t = 0;
    for (; t + Tile <= tokens; t += Tile) tile(Count<Tile>{}, t);
    const int64_t rest = tokens - t;
    if constexpr (Tile > 1) {
        if (rest == 1) tile(Count<1>{}, t);
    }
    if constexpr (Tile > 2) {
        if (rest == 2) tile(Count<2>{}, t);
    }
    if constexpr (Tile > 3) {
        if (rest == 3) tile(Count<3>{}, t);
    }
    if constexpr (Tile > 4) {
        if (rest == 4) tile(Count<4>{}, t);
    }
    if constexpr (Tile > 5) {
        if (rest == 5) tile(Count<5>{}, t);
    }
    if constexpr (Tile > 6) {
        if (rest == 6) tile(Count<6>{}, t);
    }
    if constexpr (Tile > 7) {
        if (rest == 7) tile(Count<7>{}, t);
    }
    static_assert(Tile <= 8);
}

// Calls `function` with the storage as a compile-time constant, for block formats.
template <Storage S>
struct StorageIs {
    static constexpr Storage value = S;
};
template <class Function>
HERD_INLINE void with_block_storage(Storage storage, Function function) {
    switch (storage) {
        case Storage::Q4_0: return function(StorageIs<Storage::Q4_0>{});
        case Storage::Q4_1: return function(StorageIs<Storage::Q4_1>{});
        case Storage::Q5_0: return function(StorageIs<Storage::Q5_0>{});
        case Storage::Q5_1: return function(StorageIs<Storage::Q5_1>{});
        case Storage::Q8_0: return function(StorageIs<Storage::Q8_0>{});
        case Storage::Q2_K: return function(StorageIs<Storage::Q2_K>{});
        case Storage::Q3_K: return function(StorageIs<Storage::Q3_K>{});
        case Storage::Q4_K: return function(StorageIs<Storage::Q4_K>{});
        case Storage::Q5_K: return function(StorageIs<Storage::Q5_K>{});
        case Storage::Q6_K: return function(StorageIs<Storage::Q6_K>{});
        case Storage::IQ4_NL: return function(StorageIs<Storage::IQ4_NL>{});
        case Storage::IQ4_XS: return function(StorageIs<Storage::IQ4_XS>{});
        case Storage::F32:
        case Storage::F16:
        case Storage::BF16: return;
    }
}

}  // namespace herd::HERD_ISA
