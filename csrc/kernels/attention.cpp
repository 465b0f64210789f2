// attention: softmax(scale q k^T) v over the pages of one sequence, for a tile of queries that share one kv head
//
//   scores [rows][64] = q [rows][H] . keys [H][64]          one page at a time, 64 keys side by side
//   values [rows][H'] = weights [rows][64] . page [64][H']  H' = head width padded to 16
//
// Order, which is the same for every tile size, so that bits depend on nothing but the token's own sequence:
//   page    scores sum over H in order; the page's own maximum; weights e^(s - maximum); their sum; values sum in order of keys
//   split   the pages of 256 tokens, folded in order from nothing
//   token   the splits, folded in order from nothing (here, or by the executor when splits are shared out)
// Keys that a token must not see (behind it, or outside its window) weigh exactly 0, and a page that it sees nothing of folds to
// exactly what was there: so pages that no token of a tile sees are not read.
//
// Keys and values are read as stored. A tile of more than `kDirectRows` rows converts a page of halves once.
// Reference: backends/reference/ops.py:attention.
#include "kernels/operations.h"
#include "kernels/vector.h"

// Sums must live in registers: their loops have to disappear before the compiler decides where arrays live.
#if defined(__clang__)
#define HERD_UNROLL _Pragma("unroll")
#else
#define HERD_UNROLL _Pragma("GCC unroll 16")
#endif

namespace herd::HERD_ISA {

namespace {

constexpr int64_t kW = Vector::kWidth;
constexpr int64_t kDirectRows = 6;  // rows of one pass over a page
constexpr int64_t kTileRows = 60;
#if defined(HERD_ISA_AVX512)
constexpr int kRegisters = 24;  // accumulators
#else
constexpr int kRegisters = 12;
#endif
constexpr float kNothing = -__builtin_inff();
constexpr float kLowest = -3.4028235e38f;

// c[m][n] = sum over k in order of a[m][k] b[k][n], for kRows rows and kVectors registers of columns.
template <int kRows, int kVectors, typename Element>
void multiply_tile(const float* a, int64_t a_stride, const Element* b, int64_t b_stride, int64_t depth, float* c, int64_t c_stride) {
    Vector sums[kRows][kVectors];
    HERD_UNROLL for (int m = 0; m < kRows; ++m) {
        HERD_UNROLL for (int n = 0; n < kVectors; ++n) sums[m][n] = broadcast(0.0f);
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vector right[kVectors];
        HERD_UNROLL for (int n = 0; n < kVectors; ++n) right[n] = load(b + k * b_stride + n * kW);
        HERD_UNROLL for (int m = 0; m < kRows; ++m) {
            const Vector left = broadcast(a[m * a_stride + k]);
            HERD_UNROLL for (int n = 0; n < kVectors; ++n) sums[m][n] = fused(left, right[n], sums[m][n]);
        }
    }
    HERD_UNROLL for (int m = 0; m < kRows; ++m) {
        HERD_UNROLL for (int n = 0; n < kVectors; ++n) store(c + m * c_stride + n * kW, sums[m][n]);
    }
}

constexpr int vectors_for(int rows) {
    int vectors = 1;
    while (vectors * 2 * rows <= kRegisters && vectors * 2 * kW <= 64) vectors *= 2;
    return vectors;
}

template <int kRows, typename Element>
void multiply_rows(const float* a, int64_t a_stride, const Element* b, int64_t b_stride, int64_t depth, int64_t width, float* c,
                   int64_t c_stride) {
    constexpr int kVectors = vectors_for(kRows);
    int64_t n = 0;
    for (; n + kVectors * kW <= width; n += kVectors * kW) {
        multiply_tile<kRows, kVectors>(a, a_stride, b + n, b_stride, depth, c + n, c_stride);
    }
    for (; n < width; n += kW) multiply_tile<kRows, 1>(a, a_stride, b + n, b_stride, depth, c + n, c_stride);
}

// c [rows][width] = a [rows][depth] . b [depth][width]; width is a multiple of 16.
template <typename Element>
void multiply(const float* a, int64_t a_stride, const Element* b, int64_t b_stride, int64_t rows, int64_t depth, int64_t width, float* c,
              int64_t c_stride) {
    int64_t m = 0;
    for (; m + 6 <= rows; m += 6) multiply_rows<6>(a + m * a_stride, a_stride, b, b_stride, depth, width, c + m * c_stride, c_stride);
    a += m * a_stride;
    c += m * c_stride;
    switch (rows - m) {
        case 1: return multiply_rows<1>(a, a_stride, b, b_stride, depth, width, c, c_stride);
        case 2: return multiply_rows<2>(a, a_stride, b, b_stride, depth, width, c, c_stride);
        case 3: return multiply_rows<3>(a, a_stride, b, b_stride, depth, width, c, c_stride);
        case 4: return multiply_rows<4>(a, a_stride, b, b_stride, depth, width, c, c_stride);
        case 5: return multiply_rows<5>(a, a_stride, b, b_stride, depth, width, c, c_stride);
        default: return;
    }
}

// In place: the scores of one row become weights. The keys [first, valid) are seen; `width` scores, a multiple of 16, are there,
// which is at least as many. Returns maximum and sum.
struct Softmax {
    float largest, sum;
};
Softmax weigh(float* scores, int64_t first, int64_t valid, int64_t width) {
    if (valid <= 0 || first >= width || first >= valid) {
        for (int64_t i = 0; i < width; i += kW) store(scores + i, broadcast(0.0f));
        return {kNothing, 0.0f};
    }
    for (int64_t i = 0; i < first; ++i) scores[i] = kNothing;
    Vector top = broadcast(kNothing);
    if (valid >= width) {
        for (int64_t i = 0; i < width; i += kW) top = largest(top, load(scores + i));
    } else {
        for (int64_t i = 0; i < width; i += kW) top = largest(top, keep_first(load(scores + i), valid - i, kNothing));
    }
    const float maximum = largest(top);
    const Vector shift = broadcast(maximum);
    Vector total = broadcast(0.0f);
    for (int64_t i = 0; i < width; i += kW) {
        Vector weight = exponential(load(scores + i) - shift);
        if (valid < width) weight = keep_first(weight, valid - i, 0.0f);
        store(scores + i, weight);
        total = total + weight;
    }
    return {maximum, sum(total)};
}

int64_t padded_rows(int64_t rows) { return (rows + 15) / 16 * 16; }

// A partial as its three parts.
struct Partial {
    float* largest;
    float* sums;
    float* values;
    Partial(float* base, int64_t rows) : largest(base), sums(base + padded_rows(rows)), values(base + 2 * padded_rows(rows)) {}
};

void clear(const PageShape& shape, int64_t rows, float* base) {
    const Partial partial(base, rows);
    for (int64_t r = 0; r < padded_rows(rows); ++r) {
        partial.largest[r] = kNothing;
        partial.sums[r] = 0.0f;
    }
    std::memset(partial.values, 0, static_cast<size_t>(padded_rows(rows) * shape.padded_width) * sizeof(float));
}

// Scratch of one tile, in floats: queries, scores, a converted page, and the partials of a page and of a split.
struct Scratch {
    float *q, *scores, *keys, *values, *page, *split, *end;
    Scratch(const PageShape& shape, int64_t rows, uint8_t* base) {
        auto* at = reinterpret_cast<float*>(base);
        const auto take = [&at](int64_t count) {
            float* taken = at;
            at += (count + 15) / 16 * 16;
            return taken;
        };
        q = take(padded_rows(rows) * shape.padded_width);
        scores = take(padded_rows(rows) * kPageTokens);
        keys = take(kPageTokens * shape.padded_width);
        values = take(kPageTokens * shape.padded_width);
        page = take(partial_floats(rows, shape.padded_width));
        split = take(partial_floats(rows, shape.padded_width));
        end = at;
    }
};

void convert(const uint16_t* halves, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i += kW) store(out + i, load(halves + i));
}

template <typename Element>
bool are_finite(const Element* values, int64_t count) {
    Vector nothing = broadcast(0.0f);
    for (int64_t i = 0; i < count; i += kW) {
        const Vector value = load(values + i);
        nothing = nothing + (value - value);
    }
    return sum(nothing) == 0.0f;
}

int64_t clamp(int64_t place) { return place < 0 ? 0 : place < kPageTokens ? place : kPageTokens; }

// Scores, weights and values of one page into scratch.page. `first` is the position of the page's first token.
template <typename Element>
void attend_page(const AttentionTile& tile, const Element* keys, const Element* values, int64_t first, Scratch& scratch) {
    const PageShape& shape = tile.shape;
    const int64_t rows = tile.tokens * tile.group, value_width = shape.padded_width;
    const Partial page(scratch.page, rows);
    const auto seen_from = [&](int64_t t) { return clamp(tile.sight.first(tile.position + t) - first); };
    const auto seen_to = [&](int64_t t) { return clamp(tile.sight.end(tile.position + t) - first); };
    const int64_t seen = seen_to(tile.tokens - 1);  // by the last token: what lies behind may be anything
    const int64_t width = (seen + 15) / 16 * 16;
    multiply(scratch.q, value_width, keys, kPageTokens, rows, shape.head_width, width, scratch.scores, kPageTokens);
    for (int64_t r = 0; r < rows; ++r) {
        const Softmax result = weigh(scratch.scores + r * kPageTokens, seen_from(r / tile.group), seen_to(r / tile.group), width);
        page.largest[r] = result.largest;
        page.sums[r] = result.sum;
    }
    // Seen by every token: [sure_from, sure_to).
    const int64_t sure_to = seen_to(0), sure_from = seen_from(tile.tokens - 1) < sure_to ? seen_from(tile.tokens - 1) : sure_to;
    const auto rows_finite = [&](int64_t from, int64_t to) { return from >= to || are_finite(values + from * value_width, (to - from) * value_width); };
    if (rows_finite(0, sure_from) && rows_finite(sure_to, seen)) {
        multiply(scratch.scores, kPageTokens, values, value_width, rows, seen, value_width, page.values, value_width);
        return;
    }
    // A weight of zero would carry a value that is not a number to tokens that do not see it: each reads what it sees.
    for (int64_t t = 0; t < tile.tokens; ++t) {
        const int64_t from = seen_from(t), row = t * tile.group, count = seen_to(t) > from ? seen_to(t) - from : 0;
        multiply(scratch.scores + row * kPageTokens + from, kPageTokens, values + from * value_width, value_width, tile.group, count, value_width,
                 page.values + row * value_width, value_width);
    }
}

}  // namespace

void fold(const PageShape& shape, int64_t rows, const float* from_base, float* onto_base) {
    const Partial from(const_cast<float*>(from_base), rows), onto(onto_base, rows);
    float kept[16], added[16];
    for (int64_t block = 0; block < rows; block += 16) {
        for (int64_t i = 0; i < 16; i += kW) {
            const int64_t r = block + i;
            const Vector old_top = load(onto.largest + r), new_top = load(from.largest + r);
            const Vector top = largest(broadcast(kLowest), largest(old_top, new_top));
            const Vector keep = exponential(old_top - top), take = exponential(new_top - top);
            store(kept + i, keep);
            store(added + i, take);
            store(onto.largest + r, largest(old_top, new_top));
            store(onto.sums + r, fused(load(onto.sums + r), keep, load(from.sums + r) * take));
        }
        const int64_t end = rows - block < 16 ? rows - block : 16;
        for (int64_t i = 0; i < end; ++i) {
            const Vector keep = broadcast(kept[i]), take = broadcast(added[i]);
            float* to = onto.values + (block + i) * shape.padded_width;
            const float* values = from.values + (block + i) * shape.padded_width;
            for (int64_t h = 0; h < shape.padded_width; h += kW) store(to + h, fused(load(to + h), keep, load(values + h) * take));
        }
    }
}

int64_t tile_rows(const PageShape&) { return kTileRows; }

int64_t attention_scratch_bytes(const PageShape& shape, int64_t rows) {
    const Scratch sizes(shape, rows, nullptr);
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(sizes.end));
}

void attend(const AttentionTile& tile, uint8_t* scratch_bytes, float* partial) {
    const PageShape& shape = tile.shape;
    const int64_t rows = tile.tokens * tile.group, width = shape.padded_width;
    Scratch scratch(shape, rows, scratch_bytes);
    for (int64_t t = 0; t < tile.tokens; ++t) {
        for (int64_t g = 0; g < tile.group; ++g) {
            const float* from = tile.q + t * tile.q_stride + g * shape.head_width;
            float* to = scratch.q + (t * tile.group + g) * width;
            for (int64_t h = 0; h < shape.head_width; ++h) to[h] = from[h] * tile.scale;
        }
    }
    // Rows that only fill a register: their parts of a partial must be numbers.
    clear(shape, rows, scratch.page);
    clear(shape, rows, partial);
    const int64_t seen_from = tile.sight.first(tile.position), seen_to = tile.sight.end(tile.position + tile.tokens - 1);
    for (int64_t split = tile.split_begin; split < tile.split_end; ++split) {
        clear(shape, rows, scratch.split);
        for (int64_t first = split * kSplitTokens; first < (split + 1) * kSplitTokens; first += kPageTokens) {
            if (first >= seen_to) break;
            if (first + kPageTokens <= seen_from) continue;
            const uint8_t* keys = tile.cache + tile.pages[first / kPageTokens] * tile.page_stride;
            const uint8_t* values = keys + shape.key_bytes();
            if (!shape.half) {
                attend_page(tile, reinterpret_cast<const float*>(keys), reinterpret_cast<const float*>(values), first, scratch);
            } else if (rows <= kDirectRows) {
                attend_page(tile, reinterpret_cast<const uint16_t*>(keys), reinterpret_cast<const uint16_t*>(values), first, scratch);
            } else {
                convert(reinterpret_cast<const uint16_t*>(keys), kPageTokens * shape.head_width, scratch.keys);
                convert(reinterpret_cast<const uint16_t*>(values), kPageTokens * width, scratch.values);
                attend_page(tile, scratch.keys, scratch.values, first, scratch);
            }
            fold(shape, rows, scratch.page, scratch.split);
        }
        fold(shape, rows, scratch.split, partial);
    }
}

void finish(const PageShape& shape, const float* base, int64_t tokens, int64_t group, float* y, int64_t y_stride) {
    const Partial partial(const_cast<float*>(base), tokens * group);
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t g = 0; g < group; ++g) {
            const int64_t row = t * group + g;
            const float factor = 1.0f / partial.sums[row];
            float* to = y + t * y_stride + g * shape.head_width;
            for (int64_t h = 0; h < shape.head_width; ++h) to[h] = partial.values[row * shape.padded_width + h] * factor;
        }
    }
}

namespace {

template <typename Element>
void store_columns(const PageShape& shape, const float* k, int64_t stride, int64_t tokens, int64_t at, Element* keys) {
    float column[kPageTokens];
    for (int64_t h = 0; h < shape.head_width; ++h) {
        for (int64_t t = 0; t < tokens; ++t) column[t] = k[t * stride + h];
        int64_t t = 0;
        Element* to = keys + h * kPageTokens + at;
        for (; t + kW <= tokens; t += kW) store(to + t, load(column + t));
        if (t < tokens) {
            Element rest[kW];
            float padded[kW] = {};
            std::memcpy(padded, column + t, static_cast<size_t>(tokens - t) * sizeof(float));
            store(rest, load(padded));
            std::memcpy(to + t, rest, static_cast<size_t>(tokens - t) * sizeof(Element));
        }
    }
}

template <typename Element>
void store_rows(const PageShape& shape, const float* v, int64_t stride, int64_t tokens, int64_t at, Element* values) {
    for (int64_t t = 0; t < tokens; ++t) {
        Element* to = values + (at + t) * shape.padded_width;
        for (int64_t h = 0; h < shape.padded_width; h += kW) {
            if (h + kW <= shape.head_width) {
                store(to + h, load(v + t * stride + h));
                continue;
            }
            float padded[kW] = {};
            for (int64_t i = 0; h + i < shape.head_width; ++i) padded[i] = v[t * stride + h + i];
            store(to + h, load(padded));
        }
    }
}

}  // namespace

void store_keys(const PageShape& shape, const float* k, int64_t stride, int64_t tokens, int64_t at, uint8_t* page) {
    if (shape.half) {
        store_columns(shape, k, stride, tokens, at, reinterpret_cast<uint16_t*>(page));
    } else {
        store_columns(shape, k, stride, tokens, at, reinterpret_cast<float*>(page));
    }
}

void store_values(const PageShape& shape, const float* v, int64_t stride, int64_t tokens, int64_t at, uint8_t* page) {
    uint8_t* values = page + shape.key_bytes();
    if (shape.half) {
        store_rows(shape, v, stride, tokens, at, reinterpret_cast<uint16_t*>(values));
    } else {
        store_rows(shape, v, stride, tokens, at, reinterpret_cast<float*>(values));
    }
}

}  // namespace herd::HERD_ISA
