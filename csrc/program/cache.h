// The keys and values of all pages: [page][layer of a group][kv head], each a contiguous `PageShape` (kernels/kernels.h). A page's
// layers lie together, so that memory is taken from the system page by page: with layers outside, the first token would touch one
// huge memory page per layer. Groups of layers have equally many, so that any of them can have any page (models/cache_groups.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "base/memory.h"
#include "kernels/kernels.h"

namespace herd {

class Cache {
  public:
    // `groups`: of each layer the number of its group; none: all are in one. Throws std::invalid_argument for groups that differ in size.
    Cache(int64_t layers, int64_t kv_heads, int64_t head_width, CacheFormat format, std::vector<int64_t> groups = {})
        : kv_heads_(kv_heads), shape_(PageShape::of(head_width, format)), group_(std::move(groups)) {
        if (group_.empty()) group_.assign(static_cast<size_t>(layers), 0);
        std::vector<int64_t> sizes;
        for (const int64_t group : group_) {
            if (group < 0 || group >= layers) throw std::invalid_argument("groups are counted from 0");
            sizes.resize(std::max(sizes.size(), static_cast<size_t>(group) + 1));
            place_.push_back(sizes[static_cast<size_t>(group)]++);
        }
        if (this->layers() != layers || std::any_of(sizes.begin(), sizes.end(), [&](int64_t size) { return size != sizes[0]; })) {
            throw std::invalid_argument("every layer is in a group, and groups have equally many");
        }
        groups_ = static_cast<int64_t>(sizes.size());
    }

    // Room for pages 0 .. pages-1, all zero: memory is taken only as pages are written. What was cached is gone, also when
    // this throws std::bad_alloc.
    void allocate(int64_t pages) {
        memory_ = AlignedBytes();
        pages_ = 0;
        memory_ = AlignedBytes(pages * page_bytes());
        pages_ = pages;
    }

    const PageShape& shape() const { return shape_; }
    int64_t layers() const { return static_cast<int64_t>(group_.size()); }
    int64_t groups() const { return groups_; }
    int64_t group(int64_t layer) const { return group_[static_cast<size_t>(layer)]; }
    int64_t kv_heads() const { return kv_heads_; }
    int64_t pages() const { return pages_; }
    int64_t page_bytes() const { return layers() / groups_ * layer_bytes(); }
    int64_t page_stride() const { return page_bytes(); }  // from one page to the next within a layer

    // Page 0 of a layer and kv head.
    uint8_t* at(int64_t layer, int64_t head) {
        return memory_.data() + place_[static_cast<size_t>(layer)] * layer_bytes() + head * shape_.bytes();
    }

  private:
    int64_t layer_bytes() const { return kv_heads_ * shape_.bytes(); }

    int64_t kv_heads_;
    PageShape shape_;
    std::vector<int64_t> group_, place_;  // of each layer: its group, and its place in the pages of that
    int64_t groups_ = 1;
    int64_t pages_ = 0;
    AlignedBytes memory_;
};

}  // namespace herd
