// Keys and values that are seen whole, in both directions: of a picture, for one or several layers. Laid out as the cache is, in
// pages (kernels/kernels.h), so that one kernel reads both.
#pragma once

#include <cstdint>
#include <vector>

#include "base/memory.h"
#include "kernels/kernels.h"

namespace herd {

class KeyValues {
  public:
    // Throws std::bad_alloc.
    KeyValues(int64_t layers, int64_t rows, int64_t kv_heads, int64_t head_width, CacheFormat format)
        : layers_(layers), rows_(rows), kv_heads_(kv_heads), shape_(PageShape::of(head_width, format)),
          memory_(layers * kv_heads * num_pages() * shape_.bytes()) {
        for (int64_t page = 0; page < num_pages(); ++page) pages_.push_back(static_cast<int32_t>(page));
    }

    const PageShape& shape() const { return shape_; }
    int64_t layers() const { return layers_; }
    int64_t rows() const { return rows_; }
    int64_t kv_heads() const { return kv_heads_; }
    int64_t num_bytes() const { return memory_.size(); }
    const int32_t* pages() const { return pages_.data(); }
    // Page 0 of a layer and kv head; the others follow.
    const uint8_t* at(int64_t layer, int64_t head) const { return memory_.data() + (layer * kv_heads_ + head) * num_pages() * shape_.bytes(); }

    // Keys and values [rows][kv_heads][head_width] of one layer.
    void store(const Kernels& kernels, int64_t layer, const float* keys, const float* values) {
        const int64_t stride = kv_heads_ * shape_.head_width;
        for (int64_t head = 0; head < kv_heads_; ++head) {
            for (int64_t page = 0; page < num_pages(); ++page) {
                uint8_t* to = memory_.data() + ((layer * kv_heads_ + head) * num_pages() + page) * shape_.bytes();
                const int64_t first = page * kPageTokens, count = rows_ - first < kPageTokens ? rows_ - first : kPageTokens;
                const int64_t from = first * stride + head * shape_.head_width;
                kernels.store_keys(shape_, keys + from, stride, count, 0, to);
                kernels.store_values(shape_, values + from, stride, count, 0, to);
            }
        }
    }

  private:
    int64_t num_pages() const { return divide_up(rows_, kPageTokens); }

    int64_t layers_, rows_, kv_heads_;
    PageShape shape_;
    AlignedBytes memory_;
    std::vector<int32_t> pages_;
};

// Queries of consecutive rows against some `KeyValues` one after another: softmax(scale q k^T) v, one kv head.
struct WholeTile {
    const float* q;  // first row, first query head of the group
    int64_t q_stride;
    float* y;
    int64_t y_stride;
    int64_t rows, group;
    int64_t layer, head;
    float scale;
};

// Bytes of scratch for `attend_whole` of at most so many rows of queries (rows times group).
int64_t whole_scratch_bytes(const Kernels& kernels, const PageShape& shape, int64_t rows);

// `next()` gives a pointer to each of the `KeyValues`, then null: at least one.
template <typename Next>
void attend_whole(const Kernels& kernels, const WholeTile& tile, uint8_t* scratch, Next next) {
    const KeyValues* seen = next();
    const PageShape shape = seen->shape();
    const int64_t rows = tile.rows * tile.group, bytes = round_up(partial_floats(rows, shape.padded_width) * 4, 64);
    auto* sum = reinterpret_cast<float*>(scratch);
    auto* part = reinterpret_cast<float*>(scratch + bytes);
    for (bool is_first = true; seen != nullptr; seen = next(), is_first = false) {
        const AttentionTile work{shape,      seen->at(tile.layer, tile.head), shape.bytes(), seen->pages(), tile.q, tile.q_stride,
                                 tile.rows,  tile.group,                      0,             0,             divide_up(seen->rows(), kSplitTokens),
                                 tile.scale, {Sight::Kind::Whole, seen->rows()}, divide_up(seen->rows(), kPageTokens) - 1};
        kernels.attend(work, scratch + 2 * bytes, is_first ? sum : part);
        if (!is_first) kernels.fold(shape, rows, part, sum);
    }
    kernels.finish(shape, sum, tile.rows, tile.group, tile.y, tile.y_stride);
}

}  // namespace herd
