// Low-rank updates (LoRA, arXiv 2106.09685) of a product that was made, each row by the adapter of its sequence.
#include "program/low_rank.h"

#include <algorithm>

namespace herd {

namespace {

// Every slice of the outputs makes the narrow product in between for itself: waiting for it would cost more.
constexpr int64_t kMostSlices = 4;

}  // namespace

int64_t LowRank::scratch_bytes(const LinearKernels& linear, const Update& update) {
    const int64_t rows = Step::kAdaptedRows, columns = update.down->columns, rank = update.down->rows;
    return rows * (linear.prepared_bytes(Form::F32, columns) + round_up(rank * 4, 64) + linear.prepared_bytes(Form::F32, rank)) +
           round_up(std::max(linear.scratch_bytes(*update.down, rows), linear.scratch_bytes(*update.up, rows)), 64);
}

int64_t LowRank::slices(const Context& context) const { return std::min<int64_t>(kMostSlices, context.machine.pool.workers()); }

int64_t LowRank::pieces(const Context& context) const { return static_cast<int64_t>(context.step.adapted.size()) * slices(context); }

void LowRank::run(const Context& context, int64_t piece) const {
    const int64_t count = slices(context), slice = piece % count;
    const Step::Adapted& part = context.step.adapted[static_cast<size_t>(piece / count)];
    const Update& update = updates_[static_cast<size_t>(part.adapter)];
    if (!update.down) return;
    const LinearKernels& linear = context.machine.linear;
    const Matrix &down = *update.down, &up = *update.up;
    const int64_t first = up.panels * slice / count, last = up.panels * (slice + 1) / count;
    if (first == last) return;

    const int64_t x_bytes = linear.prepared_bytes(Form::F32, down.columns), rank_bytes = linear.prepared_bytes(Form::F32, down.rows);
    const int64_t rank_stride = round_up(down.rows * 4, 64);
    uint8_t* x = context.scratch;
    uint8_t* between = x + part.count * x_bytes;
    uint8_t* prepared = between + part.count * rank_stride;
    uint8_t* scratch = prepared + part.count * rank_bytes;
    for (int64_t i = 0; i < part.count; ++i) linear.prepare(Form::F32, context.floats(x_, part.row + i), down.columns, x + i * x_bytes);
    linear.linear(down, x, x_bytes, part.count, nullptr, false, reinterpret_cast<float*>(between), rank_stride / 4, 0, down.panels, scratch);
    for (int64_t i = 0; i < part.count; ++i) {
        linear.prepare(Form::F32, reinterpret_cast<const float*>(between + i * rank_stride), down.rows, prepared + i * rank_bytes);
    }
    linear.linear(up, prepared, rank_bytes, part.count, nullptr, true, context.floats(out_, part.row), context.buffer(out_).stride / 4, first, last, scratch);
}

}  // namespace herd
