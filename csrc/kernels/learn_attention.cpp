// Attention of one head of one document, forwards and backwards, for training. See learn.h for what it computes.
//
//   block    48 queries against the keys that any of them sees: scores [48][keys], whole, so that the softmax needs no second pass
//   forward  scores -> weights e^(s - top), not yet divided -> y = weights v / sum; keeps the top of each query
//   back     scores and weights again, bit by bit -> P = weights / sum; dP = dy v^T; dS = scale P (dP - sum(P dP)) -> dq, dk, dv
//
// Nothing depends on how heads are handed out: every sum has one order. Source: arXiv 2205.14135 (FlashAttention, section 3.1 and
// appendix B.2), over blocks of queries only, and without log sum exp: e^(s - lse) loses digits where scores are large. Reference: tests/training/test_attention.py, csrc/tests/test_learning.cpp.
#include "kernels/learn.h"

#include "kernels/learn_products.h"
#include "kernels/learn_storage.h"

namespace herd::HERD_ISA {

namespace {

constexpr int64_t kBlockRows = 48;
constexpr int64_t kBlockKeys = 16;

constexpr int64_t padded_keys(int64_t length) { return (length + kBlockKeys - 1) / kBlockKeys * kBlockKeys; }

// Rows of floats side by side, or pairs of rows in one: to [rows / kElements][columns], `rows` rounded up with zeros.
template <typename Storage, typename Form>
struct Rows {
    using Type = typename Storage::Type;

    static const Type* at(HeadRows rows, int64_t token) { return static_cast<const Type*>(rows.data) + token * rows.stride; }

    // Units of a row as they lie: [token][width / kElements].
    static void by_row(HeadRows rows, int64_t first, int64_t count, int64_t width, float* to) {
        for (int64_t t = 0; t < count; ++t) {
            if constexpr (Form::kElements == 2) {
                std::memcpy(to + t * (width / 2), at(rows, first + t), static_cast<size_t>(width) * 2);
            } else {
                Storage::widen(at(rows, first + t), width, to + t * width);
            }
        }
    }

    // Components side by side, tokens one under the other: [token / kElements][width].
    static void by_component(HeadRows rows, int64_t first, int64_t count, int64_t width, int64_t padded, float* to) {
        if constexpr (Form::kElements == 2) {
            for (int64_t t = 0; t < padded; t += 2) {
                auto* units = reinterpret_cast<uint32_t*>(to + t / 2 * width);
                if (t + 1 < count) {
                    const uint16_t *even = at(rows, first + t), *odd = at(rows, first + t + 1);
                    for (int64_t h = 0; h < width; ++h) units[h] = even[h] | static_cast<uint32_t>(odd[h]) << 16;
                } else if (t < count) {
                    const uint16_t* even = at(rows, first + t);
                    for (int64_t h = 0; h < width; ++h) units[h] = even[h];
                } else {
                    std::memset(units, 0, static_cast<size_t>(width) * 4);
                }
            }
        } else {
            by_row(rows, first, count, width, to);
            std::memset(to + count * width, 0, static_cast<size_t>((padded - count) * width) * 4);
        }
    }

    // Tokens side by side: [width / kElements][padded].
    static void by_token(HeadRows rows, int64_t count, int64_t width, int64_t padded, float* to) {
        const int64_t units = width / Form::kElements;
        alignas(64) float some[kBlockKeys * kMostHeadWidth];
        for (int64_t first = 0; first < padded; first += kBlockKeys) {
            const int64_t here = count - first < kBlockKeys ? count - first : kBlockKeys;
            by_row(rows, first, here, width, some);
            std::memset(some + here * units, 0, static_cast<size_t>((kBlockKeys - here) * units) * 4);
            for (int64_t u = 0; u < units; ++u) {
                for (int64_t t = 0; t < kBlockKeys; ++t) to[u * padded + first + t] = some[t * units + u];
            }
        }
    }
};

// What lies in scratch, of one block.
struct Block {
    float *scores, *slopes, *q, *dy, *weights, *slope_units, *weight_units, *result;

    static int64_t floats(int64_t length, int64_t width) { return kBlockRows * (5 * padded_keys(length) + 3 * width); }
    Block(float* scratch, int64_t length, int64_t width) {
        const auto take = [&scratch](int64_t columns) {
            float* taken = scratch;
            scratch += kBlockRows * columns;
            return taken;
        };
        scores = take(padded_keys(length));
        slopes = take(padded_keys(length));
        weights = take(padded_keys(length));
        weight_units = take(padded_keys(length));
        slope_units = take(padded_keys(length));
        q = take(width);
        dy = take(width);
        result = take(width);
    }
};

// Some queries and the keys that any of them sees: [first_key, first_key + keys), both multiples of 16.
struct View {
    int64_t first, rows, first_key, keys;

    View(const LearnedHead& head, int64_t begin) : first(begin), rows(head.length - begin < kBlockRows ? head.length - begin : kBlockRows) {
        first_key = head.sight.first(first) / kBlockKeys * kBlockKeys;
        keys = padded_keys(first + rows) - first_key;
    }
    int64_t seen_from(const LearnedHead& head, int64_t row) const {
        const int64_t from = head.sight.first(first + row) - first_key;
        return from > 0 ? from : 0;
    }
    int64_t seen_to(int64_t row) const { return first + row + 1 - first_key; }
};

// A row of scores, of which [from, to) are seen -> weights e^(scale s - top), 0 for what is not seen. Gives their sum. `finds_top`: the
// top is the largest scaled score and is written; else it is read.
float weigh(float* scores, int64_t from, int64_t to, int64_t keys, float scale, bool finds_top, float* top) {
    for (int64_t s = 0; s < from; ++s) scores[s] = -__builtin_inff();
    const Vector factor = broadcast(scale);
    if (finds_top) {
        Vector most = broadcast(-__builtin_inff());
        for (int64_t s = 0; s < to; s += kLanes) most = largest(most, keep_first(load(scores + s), to - s, -__builtin_inff()));
        *top = scale * largest(most);
    }
    const Vector below = broadcast(-*top);
    Vector sums = broadcast(0.0f);
    for (int64_t s = 0; s < keys; s += kLanes) {
        Vector weight = broadcast(0.0f);
        if (s < to) weight = keep_first(exponential(fused(load(scores + s), factor, below)), to - s, 0.0f);
        store(scores + s, weight);
        sums = sums + weight;
    }
    return sum(sums);
}

// Rows of floats as the left side of a product: rows of units, which floats are already.
template <typename Form>
Units left_of(const float* rows, int64_t count, int64_t columns, float* units) {
    if constexpr (Form::kElements == 2) {
        for (int64_t m = 0; m < count; ++m) AsBFloat16::narrow(rows + m * columns, columns, reinterpret_cast<uint16_t*>(units + m * (columns / 2)));
        return {units, columns / 2, 1};
    } else {
        return {rows, columns, 1};
    }
}

// The same rows turned on their side: unit k of column m.
template <typename Form>
Units turned(const float* rows, int64_t count, int64_t columns, float* units) {
    if constexpr (Form::kElements == 2) {
        for (int64_t m = 0; m < count; m += 2) {
            auto* to = reinterpret_cast<uint32_t*>(units + m / 2 * columns);
            const float *even = rows + m * columns, *odd = even + columns;
            if (m + 1 < count) {
                for (int64_t s = 0; s < columns; ++s) to[s] = rounded_bits(even[s]) | rounded_bits(odd[s]) << 16;
            } else {
                for (int64_t s = 0; s < columns; ++s) to[s] = rounded_bits(even[s]);
            }
        }
        return {units, 1, columns};
    } else {
        return {rows, 1, columns};
    }
}

template <typename Storage, typename Form>
void scores_of(const LearnedHead& head, const View& view, Block& block) {
    const int64_t units = head.head_width / Form::kElements;
    Rows<Storage, Form>::by_row(head.q, view.first, view.rows, head.head_width, block.q);
    multiply_units<Form>({block.q, units, 1}, head.kept.keys_by_token + view.first_key, padded_keys(head.length), view.rows, view.keys, units, false,
                         block.scores, view.keys);
}

template <typename Storage, typename Form>
void attend_block(const LearnedHead& head, const View& view, void* y, int64_t y_stride, Block& block) {
    using Type = typename Storage::Type;
    const int64_t width = head.head_width;
    float totals[kBlockRows];
    scores_of<Storage, Form>(head, view, block);
    for (int64_t m = 0; m < view.rows; ++m) {
        totals[m] = weigh(block.scores + m * view.keys, view.seen_from(head, m), view.seen_to(m), view.keys, head.scale, true, head.tops + view.first + m);
    }
    const Units weights = left_of<Form>(block.scores, view.rows, view.keys, block.weights);
    multiply_units<Form>(weights, head.kept.values_by_component + view.first_key / Form::kElements * width, width, view.rows, width,
                         view.keys / Form::kElements, false, block.result, width);
    for (int64_t m = 0; m < view.rows; ++m) {
        float* row = block.result + m * width;
        const Vector part = broadcast(1.0f / totals[m]);
        for (int64_t h = 0; h < width; h += kLanes) store(row + h, load(row + h) * part);
        Storage::narrow(row, width, static_cast<Type*>(y) + (view.first + m) * y_stride);
    }
}

// A row of weights and of dP -> P = weights part in the place of the weights, dS = scale P (dP - sum(P dP)) in that of dP.
void slopes_of(float* weights, float part, float* slopes, int64_t keys, float scale) {
    Vector common = broadcast(0.0f);
    for (int64_t s = 0; s < keys; s += kLanes) {
        const Vector weight = load(weights + s) * broadcast(part);
        store(weights + s, weight);
        common = fused(weight, load(slopes + s), common);
    }
    const Vector along = broadcast(sum(common)), factor = broadcast(scale);
    for (int64_t s = 0; s < keys; s += kLanes) store(slopes + s, load(weights + s) * factor * (load(slopes + s) - along));
}

template <typename Storage, typename Form>
void backward_block(const LearnedHead& head, const View& view, HeadRows dy, void* dq, int64_t dq_stride, float* dk, float* dv, Block& block) {
    using Type = typename Storage::Type;
    using All = Rows<Storage, Form>;
    const int64_t width = head.head_width, units = width / Form::kElements, padded = padded_keys(head.length);
    const int64_t depth = (view.rows + Form::kElements - 1) / Form::kElements;
    const int64_t known = head.length - view.first_key < view.keys ? head.length - view.first_key : view.keys;  // keys that there are
    float totals[kBlockRows];
    scores_of<Storage, Form>(head, view, block);
    for (int64_t m = 0; m < view.rows; ++m) {
        totals[m] = weigh(block.scores + m * view.keys, view.seen_from(head, m), view.seen_to(m), view.keys, head.scale, false, head.tops + view.first + m);
    }
    All::by_row(dy, view.first, view.rows, width, block.dy);
    multiply_units<Form>({block.dy, units, 1}, head.kept.values_by_token + view.first_key, padded, view.rows, view.keys, units, false, block.slopes, view.keys);
    for (int64_t m = 0; m < view.rows; ++m) {
        slopes_of(block.scores + m * view.keys, 1.0f / totals[m], block.slopes + m * view.keys, view.keys, head.scale);
    }

    multiply_units<Form>(left_of<Form>(block.slopes, view.rows, view.keys, block.weights), head.kept.keys_by_component + view.first_key / Form::kElements * width,
                         width, view.rows, width, view.keys / Form::kElements, false, block.result, width);
    for (int64_t m = 0; m < view.rows; ++m) Storage::narrow(block.result + m * width, width, static_cast<Type*>(dq) + (view.first + m) * dq_stride);

    All::by_component(dy, view.first, view.rows, width, depth * Form::kElements, block.dy);
    multiply_units<Form>(turned<Form>(block.scores, view.rows, view.keys, block.weight_units), block.dy, width, known, width, depth, true,
                         dv + view.first_key * width, width);
    All::by_component(head.q, view.first, view.rows, width, depth * Form::kElements, block.q);
    multiply_units<Form>(turned<Form>(block.slopes, view.rows, view.keys, block.slope_units), block.q, width, known, width, depth, true,
                         dk + view.first_key * width, width);
}

// Calls `work` with how numbers are stored and multiplied.
template <typename Work>
auto with_products(Element element, Work work) {
    if (element == Element::Float32) return work.template operator()<AsFloats, FloatUnits>();
#if defined(HERD_ISA_AVX512BF16)
    return work.template operator()<AsBFloat16, PairUnits>();
#else
    return work.template operator()<AsBFloat16, FloatUnits>();
#endif
}

int64_t kept_floats(Element element, int64_t length, int64_t head_width) {
    return with_products(element, [&]<typename, typename Form>() { return padded_keys(length) * head_width / Form::kElements; });
}

int64_t scratch_floats(Element, int64_t length, int64_t head_width) { return Block::floats(length, head_width); }

void keep(Element element, int64_t length, int64_t head_width, HeadRows keys, HeadRows values, bool for_backward, const KeptHead& kept) {
    with_products(element, [&]<typename Storage, typename Form>() {
        using All = Rows<Storage, Form>;
        const int64_t padded = padded_keys(length);
        All::by_token(keys, length, head_width, padded, kept.keys_by_token);
        if (for_backward) {
            All::by_token(values, length, head_width, padded, kept.values_by_token);
            All::by_component(keys, 0, length, head_width, padded, kept.keys_by_component);
        } else {
            All::by_component(values, 0, length, head_width, padded, kept.values_by_component);
        }
    });
}

void attend_document(Element element, const LearnedHead& head, void* y, int64_t y_stride, float* scratch) {
    with_products(element, [&]<typename Storage, typename Form>() {
        Block block(scratch, head.length, head.head_width);
        for (int64_t first = 0; first < head.length; first += kBlockRows) attend_block<Storage, Form>(head, View(head, first), y, y_stride, block);
    });
}

void attend_document_backward(Element element, const LearnedHead& head, HeadRows dy, void* dq, int64_t dq_stride, float* dk, float* dv, float* scratch) {
    with_products(element, [&]<typename Storage, typename Form>() {
        Block block(scratch, head.length, head.head_width);
        for (int64_t first = 0; first < head.length; first += kBlockRows) {
            backward_block<Storage, Form>(head, View(head, first), dy, dq, dq_stride, dk, dv, block);
        }
    });
}

}  // namespace

const LearnKernels& learn_table();

const LearnKernels& learn_table() {
    static const LearnKernels table{
        .kept_floats = kept_floats,
        .scratch_floats = scratch_floats,
        .keep = keep,
        .attend = attend_document,
        .attend_backward = attend_document_backward,
    };
    return table;
}

}  // namespace herd::HERD_ISA
