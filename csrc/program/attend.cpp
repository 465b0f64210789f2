// Writing to the cache, and attention over it.
//
// With many tiles a piece is a tile and a kv head, and runs all its splits. With few tiles a piece is one split of it; the
// worker that finishes the last of a tile folds them in order, which is what a single worker would have done.
#include <algorithm>
#include <cstring>

#include "program/instructions.h"

namespace herd {

void store_in_cache(const Context& context, bool keys, int64_t layer, int64_t head, int x, int64_t row, int64_t rows) {
    const PageShape& shape = context.cache.shape();
    const int64_t stride = context.buffer(x).stride / static_cast<int64_t>(sizeof(float));
    const auto store = keys ? context.machine.kernels.store_keys : context.machine.kernels.store_values;
    uint8_t* base = context.cache.at(layer, head);
    const auto& parts = context.step.parts;
    auto part = std::upper_bound(parts.begin(), parts.end(), row, [](int64_t at, const Step::Part& p) { return at < p.row; }) - 1;
    while (rows > 0) {
        const int64_t position = part->position + row - part->row, at = position % kPageTokens;
        const int64_t count = std::min({rows, part->row + part->count - row, kPageTokens - at});
        uint8_t* page = base + context.step.pages_of(*part, context.cache.group(layer))[position / kPageTokens] * context.cache.page_stride();
        store(shape, context.floats(x, row) + head * shape.head_width, stride, count, at, page);
        row += count;
        rows -= count;
        if (row == part->row + part->count) ++part;
    }
}

int64_t Store::pieces(const Context& context) const { return 2 * context.cache.kv_heads(); }

void Store::run(const Context& context, int64_t piece) const {
    const bool keys = piece % 2 == 0;
    store_in_cache(context, keys, layer_, piece / 2, keys ? k_ : v_, 0, context.rows(k_));
}

int64_t Attention::pieces(const Context& context) const {
    const size_t count = context.step.shared ? context.step.pieces.size() : context.step.tiles.size();
    return static_cast<int64_t>(count) * context.cache.kv_heads();
}

void Attention::attend(const Context& context, const Step::Part& tile, int64_t head, int64_t split_begin, int64_t split_end, float* partial) const {
    const int64_t head_width = context.cache.shape().head_width;
    const AttentionTile work{
        .shape = context.cache.shape(),
        .cache = context.cache.at(layer_, head),
        .page_stride = context.cache.page_stride(),
        .pages = context.step.pages_of(tile, context.cache.group(layer_)),
        .q = context.floats(q_, tile.row) + head * group_ * head_width,
        .q_stride = context.buffer(q_).stride / static_cast<int64_t>(sizeof(float)),
        .tokens = tile.count,
        .group = group_,
        .position = tile.position,
        .split_begin = split_begin,
        .split_end = split_end,
        .scale = scale_,
        .sight = sight_,
        .last_page = (tile.position + tile.count - 1) / kPageTokens,
    };
    const int64_t floats = partial_floats(tile.count * group_, work.shape.padded_width);
    auto* own = reinterpret_cast<float*>(context.scratch);
    context.machine.kernels.attend(work, context.scratch + round_up(floats * 4, 64), partial != nullptr ? partial : own);
    if (partial != nullptr) return;
    context.machine.kernels.finish(work.shape, own, tile.count, group_, context.floats(out_, tile.row) + head * group_ * head_width,
                                   context.buffer(out_).stride / static_cast<int64_t>(sizeof(float)));
}

void Attention::run(const Context& context, int64_t piece) const {
    if (context.step.shared) return run_shared(context, piece);
    const int64_t kv_heads = context.cache.kv_heads();
    const Step::Part& tile = context.step.tiles[static_cast<size_t>(piece / kv_heads)];
    attend(context, tile, piece % kv_heads, sight_.first(tile.position) / kSplitTokens, divide_up(tile.position + tile.count, kSplitTokens), nullptr);
}

void Attention::run_shared(const Context& context, int64_t piece) const {
    const Step& step = context.step;
    const int64_t all = static_cast<int64_t>(step.pieces.size()), head = piece / all;
    const Step::Piece which = step.pieces[static_cast<size_t>(piece % all)];
    const Step::Part& tile = step.tiles[static_cast<size_t>(which.tile)];
    // Splits before the window are skipped: none of the tile's tokens sees them.
    const int64_t splits = divide_up(tile.position + tile.count, kSplitTokens), first_split = sight_.first(tile.position) / kSplitTokens;
    if (which.split < first_split) return;
    if (splits - first_split == 1) return attend(context, tile, head, first_split, splits, nullptr);

    const PageShape& shape = context.cache.shape();
    const int64_t rows = tile.count * group_, floats = partial_floats(Step::kSharedRows, shape.padded_width);
    float* first = reinterpret_cast<float*>(context.partials) + (head * all + step.first_piece[static_cast<size_t>(which.tile)]) * floats;
    attend(context, tile, head, which.split, which.split + 1, first + which.split * floats);
    std::atomic<int32_t>& arrived = context.arrived[static_cast<int64_t>(which.tile) * context.cache.kv_heads() + head];
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < splits - first_split) return;
    arrived.store(0, std::memory_order_relaxed);
    float* sum = first + first_split * floats;
    for (int64_t split = first_split + 1; split < splits; ++split) context.machine.kernels.fold(shape, rows, first + split * floats, sum);
    context.machine.kernels.finish(shape, sum, tile.count, group_, context.floats(out_, tile.row) + head * group_ * shape.head_width,
                                   context.buffer(out_).stride / static_cast<int64_t>(sizeof(float)));
}

}  // namespace herd
