// Products, and what is done to their pieces while they are still in the cache of a core.
//
// Cutting: a term's panels are dealt out evenly in about eight pieces per worker (one token) or in pieces of some panels and
// 256 rows (many). Heads stay whole where queries and keys are rotated and stored.
#include <algorithm>
#include <numeric>

#include "program/instructions.h"

namespace herd {

namespace {

constexpr int64_t kRowBlock = 256;

}  // namespace

int64_t Product::unit_panels(const Context& context) const {
    return after_ == After::AttentionInputs ? std::lcm(kPanelRows, context.cache.shape().head_width) / kPanelRows : 1;
}

int64_t Product::row_blocks(const Context& context) const { return divide_up(context.rows(terms_[0].out), kRowBlock); }

// How many runs of panels the term is cut into.
int64_t Product::cuts(const Context& context, size_t term) const {
    const int64_t units = divide_up(terms_[term].matrix->panels, unit_panels(context));
    if (after_ == After::AttentionInputs) return units;
    const int64_t workers = context.machine.pool.workers();
    const int64_t wanted = context.rows(terms_[0].out) <= 4 ? std::max<int64_t>(units / (8 * workers), 1) : 4;
    const int64_t rounds = std::max<int64_t>(1, (units / std::min<int64_t>(wanted, 16) + workers / 2) / workers);
    return std::min(units, rounds * workers);
}

int64_t Product::pieces(const Context& context) const {
    int64_t total = cuts(context, 0);
    if (after_ != After::SiluGate) {
        for (size_t term = 1; term < terms_.size(); ++term) total += cuts(context, term);
    }
    return total * row_blocks(context);
}

void Product::begin(const Context& context) const {
    for (size_t term = 0; term < terms_.size(); ++term) {
        const bool is_first = std::find(prepares_.begin(), prepares_.begin() + static_cast<std::ptrdiff_t>(term), prepares_[term]) ==
                              prepares_.begin() + static_cast<std::ptrdiff_t>(term);
        if (is_first && prepares_[term]->is_own(context)) prepares_[term]->own(context);
    }
}

void Product::run(const Context& context, int64_t piece) const {
    const int64_t blocks = row_blocks(context), rows = context.rows(terms_[0].out), row_block = piece % blocks;
    int64_t cut = piece / blocks;
    Block block{0, 0, 0, rows * row_block / blocks, 0};
    block.rows = rows * (row_block + 1) / blocks - block.row;
    while (after_ != After::SiluGate && cut >= cuts(context, block.term)) cut -= cuts(context, block.term++);
    const int64_t unit = unit_panels(context), panels = terms_[block.term].matrix->panels, units = divide_up(panels, unit);
    const int64_t count = cuts(context, block.term);
    block.first = units * cut / count * unit;
    block.last = std::min(panels, units * (cut + 1) / count * unit);
    multiply(context, block);
    switch (after_) {
        case After::Nothing: return;
        case After::CheckFinite: return check_finite(context, block);
        case After::AttentionInputs: return after_attention_inputs(context, block);
        case After::SiluGate: break;
    }
    multiply(context, {1, block.first, block.last, block.row, block.rows});
    const int64_t first = block.first * kPanelRows, last = std::min(block.last * kPanelRows, terms_[0].matrix->rows);
    for (int64_t row = block.row; row < block.row + block.rows; ++row) {
        float* gate = context.floats(terms_[0].out, row) + first;
        context.machine.kernels.silu_gate(gate, context.floats(terms_[1].out, row) + first, last - first, gate);
    }
}

void Product::multiply(const Context& context, const Block& block) const {
    const Term& term = terms_[block.term];
    const int64_t stride = context.buffer(term.input).stride;
    context.machine.linear.linear(*term.matrix, prepares_[block.term]->prepared(context) + block.row * stride, stride, block.rows,
                                  term.bias ? term.bias->as<float>() : nullptr, term.accumulate, context.floats(term.out, block.row),
                                  context.buffer(term.out).stride / static_cast<int64_t>(sizeof(float)), block.first, block.last,
                                  context.scratch);
}

// Terms 0, 1, 2 are queries, keys, values: queries and keys are rotated in place, keys and values stored.
void Product::after_attention_inputs(const Context& context, const Block& block) const {
    const int64_t head_width = context.cache.shape().head_width, pairs = context.buffer(inputs_.rotary).width / 2;
    const int out = terms_[block.term].out;
    const int64_t first = block.first * kPanelRows / head_width;
    const int64_t last = std::min(block.last * kPanelRows, terms_[block.term].matrix->rows) / head_width;
    for (int64_t head = first; head < last; ++head) {
        if (block.term < 2) {
            for (int64_t row = block.row; row < block.row + block.rows; ++row) {
                const float* cosine = context.floats(inputs_.rotary, row);
                context.machine.kernels.rotate(context.floats(out, row) + head * head_width, cosine, cosine + pairs, pairs);
            }
        }
        if (block.term > 0) store_in_cache(context, block.term == 1, inputs_.layer, head, out, block.row, block.rows);
    }
}

void Product::check_finite(const Context& context, const Block& block) const {
    const int64_t first = block.first * kPanelRows, last = std::min(block.last * kPanelRows, terms_[0].matrix->rows);
    for (int64_t row = block.row; row < block.row + block.rows; ++row) {
        if (!context.machine.kernels.all_finite(context.floats(terms_[0].out, row) + first, last - first)) {
            context.not_finite[row].store(true, std::memory_order_relaxed);
        }
    }
}

}  // namespace herd
