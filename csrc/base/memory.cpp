#include "base/memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include <sys/mman.h>

namespace herd {

namespace {

constexpr int64_t kLarge = int64_t{2} << 20;
constexpr int64_t kChunk = int64_t{64} << 20;

}  // namespace

AlignedBytes::AlignedBytes(int64_t size) : size_(size) {
    if (size < 0) throw std::bad_alloc();
    if (size == 0) return;
    if (size >= kLarge) {
        void* mapped = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (mapped == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        madvise(mapped, static_cast<size_t>(size), MADV_HUGEPAGE);  // a hint: fewer faults while packing
#endif
        data_ = static_cast<uint8_t*>(mapped);
        return;
    }
    data_ = static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(round_up(size, 64))));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_, 0, static_cast<size_t>(size));
}

// Matrices over a mapped file are read only: nothing but packing writes to a matrix, and these are packed.
AlignedBytes::AlignedBytes(const uint8_t* data, int64_t size, std::shared_ptr<const void> owner)
    : data_(const_cast<uint8_t*>(data)), size_(size), owner_(std::move(owner)) {}

AlignedBytes::~AlignedBytes() {
    if (data_ == nullptr || owner_) return;
    if (size_ >= kLarge) {
        munmap(data_, static_cast<size_t>(size_));
    } else {
        std::free(data_);
    }
}

AlignedBytes Chunks::take(int64_t size) {
    const int64_t rounded = round_up(size, 64);
    if (size > kChunk / 2) return AlignedBytes(size);
    if (!chunk_ || used_ + rounded > chunk_->size()) {
        chunk_ = std::make_shared<AlignedBytes>(kChunk);
        used_ = 0;
    }
    AlignedBytes part;
    part.data_ = chunk_->data() + used_;
    part.size_ = size;
    part.owner_ = chunk_;
    used_ += rounded;
    return part;
}

}  // namespace herd
