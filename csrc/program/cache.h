// The keys and values of all pages: [page][layer][kv head], each a contiguous `PageShape` (kernels/kernels.h). A page's layers lie
// together, so that memory is taken from the system page by page: with layers outside, the first token would touch one huge
// memory page per layer.
#pragma once

#include <cstdint>

#include "base/memory.h"
#include "kernels/kernels.h"

namespace herd {

class Cache {
  public:
    Cache(int64_t layers, int64_t kv_heads, int64_t head_width, CacheFormat format)
        : layers_(layers), kv_heads_(kv_heads), shape_(PageShape::of(head_width, format)) {}

    // Room for pages 0 .. pages-1, all zero: memory is taken only as pages are written. What was cached is gone, also when
    // this throws std::bad_alloc.
    void allocate(int64_t pages) {
        memory_ = AlignedBytes();
        pages_ = 0;
        memory_ = AlignedBytes(pages * page_bytes());
        pages_ = pages;
    }

    const PageShape& shape() const { return shape_; }
    int64_t layers() const { return layers_; }
    int64_t kv_heads() const { return kv_heads_; }
    int64_t pages() const { return pages_; }
    int64_t page_bytes() const { return layers_ * layer_bytes(); }  // of one page over all layers
    int64_t page_stride() const { return page_bytes(); }            // from one page to the next within a layer

    // Page 0 of a layer and kv head.
    uint8_t* at(int64_t layer, int64_t head) { return memory_.data() + layer * layer_bytes() + head * shape_.bytes(); }

  private:
    int64_t layer_bytes() const { return kv_heads_ * shape_.bytes(); }

    int64_t layers_, kv_heads_;
    PageShape shape_;
    int64_t pages_ = 0;
    AlignedBytes memory_;
};

}  // namespace herd
