// What every instruction set offers besides the matrix products (matrix.h): one table of functions per instruction set.
//
// Each function works on one row, one head or one tile, on one thread; the executor (program/) hands them out. No function
// allocates, throws or touches anything but its arguments.
#pragma once

#include <cstdint>

#include "base/cpu.h"

namespace herd {

constexpr int64_t kPageTokens = 64;    // tokens of a cache page
constexpr int64_t kMostHeadWidth = 1024;  // of a cache of integers
constexpr int64_t kSplitTokens = 256;  // tokens of the cache that one partial softmax covers: part of the bits, never tuned

// How the cache keeps numbers. Int8 and Int4 have one float16 scale for every 32 components of a key or value, an Int4 code stands for
// one of the 16 values of IQ4 (layout.h), and what it keeps is rotated (kernels/hadamard.h): docs/decisions/0013.
enum class CacheFormat : int32_t { Float32, Float16, Int8, Int4 };

// The keys and values of one page, layer and kv head, contiguous and read from front to back; d is the padded width:
//
//              keys                                          values
//   float      [4 x 16 tokens][head width][16]               [d / 16][64 tokens][16]
//   Int8       [4 x 16 tokens][d / 2][16][2 components]      [d / 16][32 pairs][16][2 tokens]
//   Int4       [4 x 16 tokens][d / 4][16][2]: components 0, 1 of four in the low and 2, 3 in the high halves of bytes
//                                                            [d / 32][32 pairs][16][2]: components 0 .. 15 low, 16 .. 31 high
//   scales     [d / 32][64 tokens] float16 after the codes, of the integer formats
//
// The padded width is the head width rounded up to 16, and to 32 for the integer formats.
struct PageShape {
    int64_t head_width;
    int64_t padded_width;
    CacheFormat format;

    static constexpr PageShape of(int64_t head_width, CacheFormat format) {
        const int64_t step = format == CacheFormat::Int8 || format == CacheFormat::Int4 ? 32 : 16;
        return {head_width, (head_width + step - 1) / step * step, format};
    }
    constexpr bool is_integer() const { return format == CacheFormat::Int8 || format == CacheFormat::Int4; }
    constexpr int64_t groups() const { return padded_width / 32; }
    constexpr int64_t scale_bytes() const { return is_integer() ? 2 * kPageTokens * groups() : 0; }
    // Of keys or values, without scales.
    constexpr int64_t code_bytes(int64_t width) const {
        switch (format) {
            case CacheFormat::Float32: return 4 * kPageTokens * width;
            case CacheFormat::Float16: return 2 * kPageTokens * width;
            case CacheFormat::Int8: return kPageTokens * padded_width;
            case CacheFormat::Int4: return kPageTokens * padded_width / 2;
        }
        return 0;
    }
    constexpr int64_t key_bytes() const { return code_bytes(head_width) + scale_bytes(); }
    constexpr int64_t bytes() const { return key_bytes() + code_bytes(padded_width) + scale_bytes(); }
};

// Which keys a token sees: those of its own sequence up to its own, all of them or only the near ones; or whatever there is.
struct Sight {
    enum class Kind : int32_t { Past, Chunks, Sliding, Whole };
    Kind kind = Kind::Past;
    int64_t tokens = 0;  // of a chunk; that a sliding window spans; that there are

    // The token at `position` sees [first, end). Neither falls as positions rise.
    int64_t first(int64_t position) const {
        if (kind == Kind::Chunks) return position / tokens * tokens;
        return kind == Kind::Sliding && position >= tokens ? position - tokens + 1 : 0;
    }
    int64_t end(int64_t position) const { return kind == Kind::Whole ? tokens : position + 1; }
};

// One tile of queries of one sequence against a range of its cache: `tokens` consecutive tokens, the `group` query heads
// that share one kv head.
struct AttentionTile {
    PageShape shape;
    const uint8_t* cache;          // of this layer and kv head, page 0
    int64_t page_stride;           // bytes from one page to the next
    const int32_t* pages;          // of this sequence
    const float* q;                // first token, first head of the group; heads are head_width apart
    int64_t q_stride;              // floats from one token to the next
    int64_t tokens, group;
    int64_t position;              // of the first token
    int64_t split_begin, split_end;
    float scale;
    Sight sight{};
    int64_t last_page = 0;         // of `pages`: none behind it may be read
};

// One table per instruction set. `partial` of a tile is, per row (token-major, then head): [rows] largest scores, [rows]
// sums, [rows][padded_width] weighted values; see `partial_floats`.
struct Kernels {
    // y = x / sqrt(mean(x^2) + eps) * weight, one row; weight may be null; y may be x.
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t width, float* y);
    // Rotates the interleaved pairs of one head in place; the rest of the head stays.
    void (*rotate)(float* x, const float* cosine, const float* sine, int64_t pairs);
    // y = (x - mean) / sqrt(variance + eps) * weight + bias, one row; y may be x.
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* y);
    // y = silu(gate) * up; y may be gate.
    void (*silu_gate)(const float* gate, const float* up, int64_t count, float* y);
    // y = x * sigmoid(gate); y may be x.
    void (*sigmoid_gate)(const float* x, const float* gate, int64_t count, float* y);
    // y = cap * tanh(factor * x / cap); y may be x.
    void (*soft_cap)(const float* x, float factor, float cap, int64_t count, float* y);
    // y = x * Phi(x); y may be x.
    void (*gelu)(const float* x, int64_t count, float* y);
    // z = x + factor * y; z may be x.
    void (*add_scaled)(const float* x, const float* y, float factor, int64_t count, float* z);
    // y = factor * x; y may be x.
    void (*scale)(const float* x, float factor, int64_t count, float* y);
    void (*add)(const float* x, const float* y, int64_t count, float* z);
    bool (*all_finite)(const float* x, int64_t count);
    // e^x as attention computes it, for tests.
    void (*exponential)(const float* x, int64_t count, float* y);

    // Writes `tokens` rows (`stride` floats apart) at places `at`, `at + 1`, ... of one page. Different places of a page may be
    // written at the same time.
    void (*store_keys)(const PageShape&, const float* k, int64_t stride, int64_t tokens, int64_t at, uint8_t* page);
    void (*store_values)(const PageShape&, const float* v, int64_t stride, int64_t tokens, int64_t at, uint8_t* page);
    // Rows of queries that a tile should have at most, and the scratch it needs.
    int64_t (*tile_rows)(const PageShape&);
    int64_t (*attention_scratch_bytes)(const PageShape&, int64_t rows);
    // The splits of the tile, folded in order from an empty start, into `partial`.
    void (*attend)(const AttentionTile&, uint8_t* scratch, float* partial);
    // Folds `from` onto `onto`, both partials of `rows` rows.
    void (*fold)(const PageShape&, int64_t rows, const float* from, float* onto);
    // y[token, head] = values / sum; heads are head_width apart.
    void (*finish)(const PageShape&, const float* partial, int64_t tokens, int64_t group, float* y, int64_t y_stride);

    // Loops that do nothing but reach a limit of the machine; see backends/cpu/limits.py. They return what they computed
    // so that nothing is optimised away.
    float (*float_peak)(int64_t rounds);                              // float_peak_operations a round
    int32_t (*int8_peak)(int64_t rounds);                             // int8_peak_operations a round
    float (*bf16_peak)(int64_t rounds);                               // bf16_peak_operations a round
    uint64_t (*read_bytes)(const uint8_t* data, int64_t size);        // every byte once
    // Of bf16 0 where the instruction set has no dot product for it: products of such weights are then in float32.
    int64_t float_peak_operations, int8_peak_operations, bf16_peak_operations;
};

// Floats of a partial of `rows` rows. Rows are rounded up to 16 so that every part stays aligned.
constexpr int64_t partial_floats(int64_t rows, int64_t padded_width) { return (rows + 15) / 16 * 16 * (padded_width + 2); }

// The table of an instruction set that is in this build and that the processor runs (`available_isas`).
const Kernels& kernels(Isa isa);

}  // namespace herd
