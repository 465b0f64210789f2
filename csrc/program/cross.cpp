// Attention to pictures. A piece is a tile of rows that see the same pictures, and one kv head of those.
#include <algorithm>
#include <cstring>

#include "program/instructions.h"

namespace herd {

namespace {

constexpr int64_t kTileQueries = 60;  // rows times query heads of a tile, about

}  // namespace

int64_t whole_scratch_bytes(const Kernels& kernels, const PageShape& shape, int64_t rows) {
    return 2 * round_up(partial_floats(rows, shape.padded_width) * 4, 64) + kernels.attention_scratch_bytes(shape, rows);
}

int64_t CrossAttention::tile_rows(const Step::Sighted& part) const {
    return part.pictures.empty() ? kTileQueries : std::max<int64_t>(1, kTileQueries * part.pictures[0]->kv_heads() / heads_);
}

int64_t CrossAttention::pieces_of(const Step::Sighted& part) const {
    return divide_up(part.count, tile_rows(part)) * (part.pictures.empty() ? 1 : part.pictures[0]->kv_heads());
}

int64_t CrossAttention::pieces(const Context& context) const {
    int64_t total = 0;
    for (const Step::Sighted& part : context.step.sighted) total += pieces_of(part);
    return total;
}

void CrossAttention::run(const Context& context, int64_t piece) const {
    const Step::Sighted* part = context.step.sighted.data();
    for (; piece >= pieces_of(*part); ++part) piece -= pieces_of(*part);
    const int64_t kv_heads = part->pictures.empty() ? 1 : part->pictures[0]->kv_heads(), most = tile_rows(*part);
    const int64_t done = piece / kv_heads * most, row = part->row + done, rows = std::min(most, part->count - done);
    const Buffer& out = context.buffer(out_);
    if (part->pictures.empty()) {
        std::memset(context.floats(out_, row), 0, static_cast<size_t>(rows * out.stride));
        return;
    }
    const int64_t head = piece % kv_heads, group = heads_ / kv_heads, at = head * group * (out.width / heads_);
    const WholeTile tile{context.floats(q_, row) + at, context.buffer(q_).stride / 4, context.floats(out_, row) + at, out.stride / 4, rows, group, layer_, head, scale_};
    size_t next = 0;
    attend_whole(context.machine.kernels, tile, context.scratch, [&] { return next < part->pictures.size() ? part->pictures[next++].get() : nullptr; });
}

}  // namespace herd
