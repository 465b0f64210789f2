// attention: softmax(scale q k^T) v over the pages of one sequence, for a tile of queries that share one kv head
//
//   scores [rows][64] = q [rows][H] . keys [H][64]          one page at a time, 16 keys side by side
//   values [rows][H'] = weights [rows][64] . page [64][H']  H' = head width padded to 16 or 32
//
// Order, which is the same for every tile size, so that bits depend on nothing but the token's own sequence:
//   page    scores sum over H in order; the page's own maximum; weights e^(s - maximum); their sum; values sum in order of keys
//   split   the pages of 256 tokens, folded in order from nothing
//   token   the splits, folded in order from nothing (here, or by the executor when splits are shared out)
// Keys that a token must not see (behind it, or outside its window) weigh exactly 0, and a page that it sees nothing of folds to
// exactly what was there: so pages that no token of a tile sees are not read.
//
// Keys and values are read as stored. A tile of more than `kDirectRows` rows converts a page of halves once. Over an integer cache
// queries are rounded to 16 bits with a scale for each head, and the weights of a page, times the values' scales, with one for each
// row and group: the sums over a group are then exact integers.
// Reference: backends/reference/ops.py:attention, backends/reference/integer_cache.py.
#include <utility>

#include "kernels/attention_products.h"
#include "kernels/hadamard.h"
#include "kernels/operations.h"

namespace herd::HERD_ISA {

namespace {

constexpr int64_t kTileRows = 60;
constexpr float kNothing = -__builtin_inff();
constexpr float kLowest = -3.4028235e38f;
constexpr float kMost = 32767.0f;  // of 16-bit integers
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kTiny = 1e-30f;     // a row of smaller numbers is rounded to zeros

// 2^x for x <= 0, at most 1e-7 from exact in proportion; 0 below -126; 2^0 is exactly 1; not a number stays so.
inline Vector power_of_two(Vector x) {
    const Vector n = round_even(largest(broadcast(-130.0f), x)), f = x - n;
    Vector p = broadcast(1.326468656770885e-3f);
    p = fused(p, f, broadcast(9.671512059867382e-3f));
    p = fused(p, f, broadcast(5.550733953714371e-2f));
    p = fused(p, f, broadcast(0.24022242426872253f));
    p = fused(p, f, broadcast(0.6931470036506653f));
    p = fused(p, f, broadcast(1.0f));
    return zero_below(times_power_of_two(p, n), x, -126.0f);
}

// In place: the scores of kRows rows, each times its factor, become weights. All see the keys [first, valid); `width` scores, a multiple
// of 16, are there, which is at least as many. Several rows at once, as each is a chain of dependent steps. With kRounded the weights will
// be rounded to 16 bits: scores are then taken to the base of 2.
template <int kRows, bool kRounded>
__attribute__((noinline)) void weigh(float* scores, const float* factors, int64_t first, int64_t valid, int64_t width, float* maxima, float* sums) {
    if (valid <= 0 || first >= width || first >= valid) {
        for (int m = 0; m < kRows; ++m) {
            for (int64_t i = 0; i < width; i += kW) store(scores + m * kPageTokens + i, broadcast(0.0f));
            maxima[m] = kNothing;
            sums[m] = 0.0f;
        }
        return;
    }
    Vector times[kRows], tops[kRows], totals[kRows];
    HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
        for (int64_t i = 0; i < first; ++i) scores[m * kPageTokens + i] = kNothing;
        times[m] = broadcast(kRounded ? factors[m] * kLog2E : factors[m]);
        tops[m] = broadcast(kNothing);
        totals[m] = broadcast(0.0f);
    }
    for (int64_t i = 0; i < width; i += kW) {
        HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
            Vector score = load(scores + m * kPageTokens + i) * times[m];
            if (valid < width) score = keep_first(score, valid - i, kNothing);
            store(scores + m * kPageTokens + i, score);
            tops[m] = largest(tops[m], score);
        }
    }
    HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
        const float top = largest(tops[m]);
        maxima[m] = kRounded ? top * kLn2 : top;
        tops[m] = broadcast(top);
    }
    for (int64_t i = 0; i < width; i += kW) {
        HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
            const Vector below = load(scores + m * kPageTokens + i) - tops[m];
            Vector weight = kRounded ? power_of_two(below) : exponential(below);
            if (valid < width) weight = keep_first(weight, valid - i, 0.0f);
            store(scores + m * kPageTokens + i, weight);
            totals[m] = totals[m] + weight;
        }
    }
    HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) sums[m] = sum(totals[m]);
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
    std::memset(partial.values, 0, static_cast<size_t>(rows * shape.padded_width) * sizeof(float));
}

// Scratch of one tile: queries, scores, a converted page, the partials of a page and of a split; over an integer cache also the
// rounded queries and weights with their factors.
struct Scratch {
    float *q, *scores, *keys, *values, *page, *split, *q_factors, *factors;
    int16_t *rounded_q, *rounded_weights;
    uint8_t* end;
    Scratch(const PageShape& shape, int64_t rows, uint8_t* base) : end(base) {
        const auto take = [this](int64_t bytes) {
            uint8_t* taken = end;
            end += (bytes + 63) / 64 * 64;
            return reinterpret_cast<float*>(taken);
        };
        const int64_t element = shape.is_integer() ? 1 : 4, partial = 4 * partial_floats(rows, shape.padded_width);
        const int64_t integers = shape.is_integer() ? rows : 0, groups = shape.groups();
        q = take(4 * rows * shape.padded_width);
        scores = take(4 * rows * kPageTokens);
        keys = take(element * kPageTokens * shape.padded_width);
        values = take(element * kPageTokens * shape.padded_width);
        page = take(partial);
        split = take(partial);
        q_factors = take(4 * integers);
        factors = take(4 * integers * groups);
        rounded_q = reinterpret_cast<int16_t*>(take(2 * integers * shape.padded_width));
        rounded_weights = reinterpret_cast<int16_t*>(take(2 * integers * groups * kPageTokens));
    }
};

void convert(const uint16_t* halves, int64_t count, float* out) {
    for (int64_t i = 0; i < count; i += kW) store(out + i, load(halves + i));
}

// Whether tokens [from, to) of a page of values are numbers.
template <typename Element>
bool are_finite(const Element* values, int64_t width, int64_t from, int64_t to) {
    Vector nothing = broadcast(0.0f);
    for (const Element* block = values; block < values + width * kPageTokens; block += 16 * kPageTokens) {
        for (int64_t i = 16 * from; i < 16 * to; i += kW) {
            const Vector value = load(block + i);
            nothing = nothing + (value - value);
        }
    }
    return sum(nothing) == 0.0f;
}

int64_t clamp(int64_t place) { return place < 0 ? 0 : place < kPageTokens ? place : kPageTokens; }

// One page of a tile: which of its keys are seen, and how far behind keys and values lies what is read next.
struct PageView {
    const AttentionTile& tile;
    int64_t first;  // position of the page's first token
    int64_t after_keys, after_values;

    int64_t rows() const { return tile.tokens * tile.group; }
    int64_t seen_from(int64_t t) const { return clamp(tile.sight.first(tile.position + t) - first); }
    int64_t seen_to(int64_t t) const { return clamp(tile.sight.end(tile.position + t) - first); }
    int64_t seen() const { return seen_to(tile.tokens - 1); }  // by the last token: what lies behind may be anything
    int64_t width() const { return (seen() + 15) / 16 * 16; }
};

// Calls `pass` with the first row of some rows that see the same, the rows of a token four at a time: its template argument is how many.
template <typename Pass>
void rows_of_tokens(const PageView& view, Pass pass) {
    for (int64_t t = 0; t < view.tile.tokens; ++t) {
        in_passes<4>(view.tile.group, [&]<int kRows>(int64_t g) { pass.template operator()<kRows>(t, t * view.tile.group + g); });
    }
}

// Scores -> weights, maxima and sums of all rows.
void weigh_rows(const PageView& view, const float* factors, Scratch& scratch) {
    const Partial page(scratch.page, view.rows());
    constexpr float kOnes[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    rows_of_tokens(view, [&]<int kRows>(int64_t t, int64_t r) {
        const int64_t from = view.seen_from(t), to = view.seen_to(t), width = view.width();
        float* scores = scratch.scores + r * kPageTokens;
        if (factors != nullptr) {
            weigh<kRows, true>(scores, factors + r, from, to, width, page.largest + r, page.sums + r);
        } else {
            weigh<kRows, false>(scores, kOnes, from, to, width, page.largest + r, page.sums + r);
        }
    });
}

// Scores, weights and values of one page into scratch.page.
template <typename Element>
void attend_page(const PageView& view, const Element* keys, const Element* values, Scratch& scratch) {
    const AttentionTile& tile = view.tile;
    const PageShape& shape = tile.shape;
    const int64_t rows = view.rows(), width = shape.padded_width, seen = view.seen(), blocks = width / 16, value_block = 16 * kPageTokens;
    const Partial page(scratch.page, rows);
    multiply(scratch.q, width, keys, 16 * shape.head_width, rows, shape.head_width, view.width() / 16, view.after_keys, scratch.scores, kPageTokens);
    weigh_rows(view, nullptr, scratch);
    // Seen by every token: [sure_from, sure_to).
    const int64_t sure_to = view.seen_to(0), sure_from = view.seen_from(tile.tokens - 1) < sure_to ? view.seen_from(tile.tokens - 1) : sure_to;
    const auto rows_finite = [&](int64_t from, int64_t to) { return from >= to || are_finite(values, width, from, to); };
    if (rows_finite(0, sure_from) && rows_finite(sure_to, seen)) {
        multiply(scratch.scores, kPageTokens, values, value_block, rows, seen, blocks, view.after_values, page.values, width);
        return;
    }
    // A weight of zero would carry a value that is not a number to tokens that do not see it: each reads what it sees.
    for (int64_t t = 0; t < tile.tokens; ++t) {
        const int64_t from = view.seen_from(t), row = t * tile.group, count = view.seen_to(t) > from ? view.seen_to(t) - from : 0;
        multiply(scratch.scores + row * kPageTokens + from, kPageTokens, values + 16 * from, value_block, tile.group, count, blocks, 0,
                 page.values + row * width, width);
    }
}

// x -> integers of 16 bits. Returns what one of them stands for, which is not a number if some x is not.
float round_row(const float* x, int64_t count, int16_t* rounded) {
    Vector top = broadcast(0.0f), nothing = broadcast(0.0f);
    for (int64_t i = 0; i < count; i += kW) {
        const Vector value = load(x + i);
        top = largest(top, magnitude(value));
        nothing = nothing + (value - value);
    }
    const float most = largest(top), factor = most > kTiny ? kMost / most : 0.0f;
    for (int64_t i = 0; i < count; i += kW) store_rounded(rounded + i, load(x + i) * broadcast(factor));
    return (most > kTiny ? most / kMost : 1.0f) + sum(nothing);
}

// The weights of kRows rows that see the keys [first, valid), times the values' scales of each group -> integers of 16 bits, with what
// one of them stands for in `factors`.
template <int kRows>
__attribute__((noinline)) void round_weights(const float* weights, const uint16_t* scales, int64_t groups, int64_t first, int64_t valid, int64_t width, int16_t* rounded, float* factors) {
    alignas(64) float known[kPageTokens];  // the scales of what is seen; 0 for what may be anything
    for (int64_t g = 0; g < groups; ++g) {
        Vector tops[kRows], nothing = broadcast(0.0f);
        HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) tops[m] = broadcast(0.0f);
        for (int64_t i = 0; i < width; i += kW) store(known + i, load(scales + g * kPageTokens + i));
        for (int64_t i = 0; i < (first < width ? first : width); ++i) known[i] = 0.0f;
        for (int64_t i = valid > 0 ? valid : 0; i < width; ++i) known[i] = 0.0f;
        for (int64_t i = 0; i < width; i += kW) {
            const Vector scale = load(known + i);
            nothing = nothing + (scale - scale);
            HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) tops[m] = largest(tops[m], magnitude(load(weights + m * kPageTokens + i) * scale));
        }
        const float spoiled = sum(nothing);
        Vector times[kRows];
        HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
            const float most = largest(tops[m]);
            times[m] = broadcast(most > kTiny ? kMost / most : 0.0f);
            factors[m * groups + g] = (most > kTiny ? most / kMost : 1.0f) + spoiled;
        }
        for (int64_t i = 0; i < width; i += 16) {
            HERD_UNROLL_SUMS for (int m = 0; m < kRows; ++m) {
                Vector parts[kParts];
                HERD_UNROLL_SUMS for (int part = 0; part < kParts; ++part) {
                    parts[part] = load(weights + m * kPageTokens + i + part * kW) * load(known + i + part * kW) * times[m];
                }
                store_rounded(parts, rounded + (m * groups + g) * kPageTokens + i);
            }
        }
    }
}

// As `attend_page`, over codes of one byte.
void attend_codes(const PageView& view, const int8_t* keys, const uint16_t* key_scales, const int8_t* values, const uint16_t* value_scales, Scratch& scratch) {
    const int64_t rows = view.rows(), width = view.tile.shape.padded_width, groups = width / 32, seen = view.width();
    multiply_keys(scratch.rounded_q, width, keys, key_scales, rows, seen / 16, view.after_keys, scratch.scores);
    weigh_rows(view, scratch.q_factors, scratch);
    rows_of_tokens(view, [&]<int kRows>(int64_t t, int64_t r) {
        round_weights<kRows>(scratch.scores + r * kPageTokens, value_scales, groups, view.seen_from(t), view.seen_to(t), seen,
                             scratch.rounded_weights + r * groups * kPageTokens, scratch.factors + r * groups);
    });
    multiply_values(scratch.rounded_weights, scratch.factors, values, rows, width, seen / 2, view.after_values, Partial(scratch.page, rows).values);
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

namespace {

// The tile's queries, times the scale: as the keys were, rotated and rounded.
void take_queries(const AttentionTile& tile, Scratch& scratch) {
    const PageShape& shape = tile.shape;
    const int64_t width = shape.padded_width;
    for (int64_t t = 0; t < tile.tokens; ++t) {
        for (int64_t g = 0; g < tile.group; ++g) {
            const float* from = tile.q + t * tile.q_stride + g * shape.head_width;
            const int64_t row = t * tile.group + g;
            float* to = scratch.q + row * width;
            for (int64_t h = 0; h < shape.head_width; ++h) to[h] = from[h] * tile.scale;
            for (int64_t h = shape.head_width; h < width; ++h) to[h] = 0.0f;
            if (shape.format == CacheFormat::Int4) hadamard(to, shape.head_width);
            if (shape.is_integer()) scratch.q_factors[row] = round_row(to, width, scratch.rounded_q + row * width);
        }
    }
}

// One page of the cache into scratch.page. `keys` is where it begins.
void read_page(const PageView& view, const uint8_t* keys, Scratch& scratch) {
    const PageShape& shape = view.tile.shape;
    const int64_t width = shape.padded_width;
    const uint8_t* values = keys + shape.key_bytes();
    const auto* key_scales = reinterpret_cast<const uint16_t*>(values - shape.scale_bytes());
    const auto* value_scales = reinterpret_cast<const uint16_t*>(values + shape.code_bytes(width));
    for (int64_t at = 0; at < shape.scale_bytes(); at += 64) prefetch(values + shape.code_bytes(width) + at);
    switch (shape.format) {
        case CacheFormat::Float32: return attend_page(view, reinterpret_cast<const float*>(keys), reinterpret_cast<const float*>(values), scratch);
        case CacheFormat::Float16:
            if (view.rows() <= kDirectRows) return attend_page(view, reinterpret_cast<const uint16_t*>(keys), reinterpret_cast<const uint16_t*>(values), scratch);
            convert(reinterpret_cast<const uint16_t*>(keys), kPageTokens * shape.head_width, scratch.keys);
            convert(reinterpret_cast<const uint16_t*>(values), kPageTokens * width, scratch.values);
            return attend_page({view.tile, view.first, 0, 0}, scratch.keys, scratch.values, scratch);
        case CacheFormat::Int8:
            return attend_codes(view, reinterpret_cast<const int8_t*>(keys), key_scales, reinterpret_cast<const int8_t*>(values), value_scales, scratch);
        case CacheFormat::Int4: {
            auto* key_codes = reinterpret_cast<int8_t*>(scratch.keys);
            auto* value_codes = reinterpret_cast<int8_t*>(scratch.values);
            unpack_codes(keys, width, 64, 32, view.after_keys, key_codes);
            for (int64_t g = 0; g < width / 32; ++g) {
                unpack_codes(values + g * 16 * kPageTokens, kPageTokens / 2, 32, 16 * kPageTokens, view.after_values, value_codes + g * 32 * kPageTokens);
            }
            return attend_codes({view.tile, view.first, 0, 0}, key_codes, key_scales, value_codes, value_scales, scratch);
        }
    }
}

}  // namespace

void attend(const AttentionTile& tile, uint8_t* scratch_bytes, float* partial) {
    const PageShape& shape = tile.shape;
    const int64_t rows = tile.tokens * tile.group;
    Scratch scratch(shape, rows, scratch_bytes);
    take_queries(tile, scratch);
    // Rows that only fill a register: their parts of a partial must be numbers.
    clear(shape, rows, scratch.page);
    clear(shape, rows, scratch.split);
    clear(shape, rows, partial);
    const int64_t seen_from = tile.sight.first(tile.position), seen_to = tile.sight.end(tile.position + tile.tokens - 1);
    for (int64_t split = tile.split_begin; split < tile.split_end; ++split) {
        bool is_first = true;  // of the split's pages: onto nothing folds what is there already
        for (int64_t first = split * kSplitTokens; first < (split + 1) * kSplitTokens; first += kPageTokens) {
            if (first >= seen_to) break;
            if (first + kPageTokens <= seen_from) continue;
            const int64_t number = first / kPageTokens, next = number < tile.last_page ? number + 1 : number;
            const uint8_t* keys = tile.cache + tile.pages[number] * tile.page_stride;
            const uint8_t* next_keys = tile.cache + tile.pages[next] * tile.page_stride;
            read_page({tile, first, shape.key_bytes(), next_keys - keys - shape.key_bytes()}, keys, scratch);
            if (is_first) {
                std::swap(scratch.page, scratch.split);
            } else {
                fold(shape, rows, scratch.page, scratch.split);
            }
            is_first = false;
        }
        if (!is_first) fold(shape, rows, scratch.split, partial);
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
            if (shape.format == CacheFormat::Int4) hadamard(to, shape.head_width);
        }
    }
}

}  // namespace herd::HERD_ISA
