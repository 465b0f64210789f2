#include "program/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace herd {

namespace {

constexpr int64_t kRowBlock = 256;  // rows of one product
constexpr int64_t kGuessedRows = 8;  // more rows need most experts anyway

// Pieces [begin, end) of `count` things, at most eight pieces per worker.
int64_t few_pieces(const Context& context, int64_t count) { return std::min<int64_t>(count, 8 * context.machine.pool.workers()); }

}  // namespace

int64_t ExpertRoom::num_bytes() const {
    return gate_input.bytes.size() + up_input.bytes.size() + gate.bytes.size() + up.bytes.size() + down_input.bytes.size() + out.bytes.size();
}

// The experts of highest score, the lower number first among equals, by rising number. What is not a number is below all others.
void Route::choose(const float* scores, int32_t* chosen) const {
    for (int64_t x = 0; x < room_.num_chosen; ++x) {
        int32_t best = -1;
        for (int32_t expert = 0; expert < room_.num_experts; ++expert) {
            if (std::find(chosen, chosen + x, expert) != chosen + x) continue;
            const bool is_better = best < 0 || scores[expert] > scores[best] || (std::isnan(scores[best]) && !std::isnan(scores[expert]));
            if (is_better) best = expert;
        }
        chosen[x] = best;
    }
    std::sort(chosen, chosen + room_.num_chosen);
}

void Route::run(const Context& context, int64_t) const {
    const int64_t rows = context.rows(scores_), chosen = room_.num_chosen;
    int32_t* experts = room_.entries.data();  // first the experts of every row, then their entries
    std::fill(room_.starts.begin(), room_.starts.end(), 0);
    for (int64_t row = 0; row < rows; ++row) {
        choose(context.floats(scores_, row), experts + row * chosen);
        for (int64_t x = 0; x < chosen; ++x) ++room_.starts[static_cast<size_t>(experts[row * chosen + x]) + 1];
    }
    room_.active.clear();
    for (int32_t expert = 0; expert < room_.num_experts; ++expert) {
        const auto at = static_cast<size_t>(expert);
        if (room_.starts[at + 1] > 0) room_.active.push_back(expert);
        room_.starts[at + 1] += room_.starts[at];
    }
    // `starts` is used up while entries are dealt out, and restored after.
    for (int64_t i = 0; i < rows * chosen; ++i) {
        const int32_t expert = experts[i], entry = room_.starts[static_cast<size_t>(expert)]++;
        const double score = context.floats(scores_, i / chosen)[expert];
        room_.rows[static_cast<size_t>(entry)] = static_cast<int32_t>(i / chosen);
        room_.factors[static_cast<size_t>(entry)] = static_cast<float>(1.0 / (1.0 + std::exp(-score)));
        experts[i] = entry;
    }
    for (auto at = static_cast<size_t>(room_.num_experts); at > 0; --at) room_.starts[at] = room_.starts[at - 1];
    room_.starts[0] = 0;
    if (!context.ahead.is_on()) return;
    for (int32_t expert : room_.active) ask_for_expert(expert);
    if (next_ != nullptr && rows <= kGuessedRows) ask_for_next(context);
}

void Route::ask_for_expert(int32_t expert) const {
    const auto at = static_cast<size_t>(expert);
    for (const auto* matrices : {&weights_.gates, &weights_.ups, &weights_.downs}) ask_for(*(*matrices)[at]);
}

// A prepared row, its scores, the chosen experts (fewer than scores), and what the product needs.
int64_t Route::scratch_bytes(const LinearKernels& linear, const Matrix& router) {
    return linear.prepared_bytes(linear.form(router), router.columns) + 2 * round_up(router.rows * 4, 64) + linear.scratch_bytes(router, 1);
}

void Route::ask_for_next(const Context& context) const {
    const LinearKernels& linear = context.machine.linear;
    const Form form = linear.form(*next_router_);
    const int64_t stride = linear.prepared_bytes(form, next_router_->columns), room = round_up(next_router_->rows * 4, 64);
    auto* scores = reinterpret_cast<float*>(context.scratch + stride);
    auto* chosen = reinterpret_cast<int32_t*>(context.scratch + stride + room);
    for (int64_t row = 0; row < context.rows(scores_); ++row) {
        linear.prepare(form, context.floats(x_, row), next_router_->columns, context.scratch);
        linear.linear(*next_router_, context.scratch, stride, 1, nullptr, false, scores, next_router_->rows, 0, next_router_->panels, context.scratch + stride + 2 * room);
        next_->choose(scores, chosen);
        for (int64_t x = 0; x < next_->room_.num_chosen; ++x) next_->ask_for_expert(chosen[x]);
    }
}

int64_t EntryInstruction::pieces(const Context& context) const { return few_pieces(context, num_entries(context)); }

void EntryInstruction::run(const Context& context, int64_t piece) const {
    const int64_t count = pieces(context), all = num_entries(context);
    for (int64_t at = all * piece / count; at < all * (piece + 1) / count; ++at) entry(context, at);
}

void PrepareEntries::entry(const Context& context, int64_t entry) const {
    auto* scaled = reinterpret_cast<float*>(context.scratch);
    context.machine.kernels.scale(context.floats(x_, room_.rows[static_cast<size_t>(entry)]), room_.factors[static_cast<size_t>(entry)], room_.width, scaled);
    context.machine.linear.prepare(room_.gate_form, scaled, room_.width, room_.gate_input.at(entry));
    if (room_.up_form != room_.gate_form) context.machine.linear.prepare(room_.up_form, scaled, room_.width, room_.up_input.at(entry));
}

void PrepareHidden::entry(const Context& context, int64_t entry) const {
    context.machine.linear.prepare(room_.down_form, reinterpret_cast<const float*>(room_.gate.at(entry)), room_.ffn_width, room_.down_input.at(entry));
}

int64_t ExpertProduct::places(const Context& context) const {
    return std::min(room_.num_experts, context.step.rows(Rows::Tokens) * room_.num_chosen);
}

int64_t ExpertProduct::cuts(const Context& context) const {
    return std::clamp<int64_t>(divide_up(32 * context.machine.pool.workers(), places(context)), 1, first_[0]->panels);
}

int64_t ExpertProduct::pieces(const Context& context) const { return places(context) * cuts(context); }

void ExpertProduct::run(const Context& context, int64_t piece) const {
    const int64_t count = cuts(context), cut = piece % count;
    if (piece / count >= static_cast<int64_t>(room_.active.size())) return;
    const auto expert = static_cast<size_t>(room_.active[static_cast<size_t>(piece / count)]);
    const Matrix& matrix = *first_[expert];
    const int64_t begin = matrix.panels * cut / count, end = matrix.panels * (cut + 1) / count;
    const auto multiply = [&](const Matrix& by, ExpertRoom::Rows& input, ExpertRoom::Rows& out, int64_t first, int64_t rows) {
        context.machine.linear.linear(by, input.at(first), input.stride, rows, nullptr, false, reinterpret_cast<float*>(out.at(first)),
                                      out.stride / static_cast<int64_t>(sizeof(float)), begin, end, context.scratch);
    };
    const int64_t last = room_.starts[expert + 1];
    for (int64_t first = room_.starts[expert]; first < last; first += kRowBlock) {
        const int64_t rows = std::min(kRowBlock, last - first);
        if (second_.empty()) {
            multiply(matrix, room_.down_input, room_.out, first, rows);
            continue;
        }
        multiply(matrix, room_.gate_input, room_.gate, first, rows);
        multiply(*second_[expert], room_.up_form == room_.gate_form ? room_.gate_input : room_.up_input, room_.up, first, rows);
        const int64_t from = begin * kPanelRows, to = std::min(end * kPanelRows, matrix.rows);
        for (int64_t entry = first; entry < first + rows; ++entry) {
            float* gate = reinterpret_cast<float*>(room_.gate.at(entry)) + from;
            context.machine.kernels.silu_gate(gate, reinterpret_cast<const float*>(room_.up.at(entry)) + from, to - from, gate);
        }
    }
}

int64_t SumEntries::pieces(const Context& context) const { return few_pieces(context, context.rows(out_)); }

void SumEntries::run(const Context& context, int64_t piece) const {
    const int64_t rows = context.rows(out_), count = pieces(context);
    for (int64_t row = rows * piece / count; row < rows * (piece + 1) / count; ++row) {
        const int32_t* entries = room_.entries.data() + row * room_.num_chosen;
        float* out = context.floats(out_, row);
        std::memcpy(out, room_.out.at(entries[0]), static_cast<size_t>(room_.width) * sizeof(float));
        for (int64_t x = 1; x < room_.num_chosen; ++x) {
            context.machine.kernels.add(out, reinterpret_cast<const float*>(room_.out.at(entries[x])), room_.width, out);
        }
    }
}

}  // namespace herd
