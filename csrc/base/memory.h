// Memory that kernels read: aligned to a cache line, of a fixed size, never copied by accident.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace herd {

// `size()` bytes, 64-byte aligned: its own, zeroed, or a part of somebody else's. Large ones come straight from the system, so that pages cost nothing until
// they are touched and return when the owner goes. Throws std::bad_alloc.
class AlignedBytes {
  public:
    AlignedBytes() = default;
    explicit AlignedBytes(int64_t size);
    // `size` bytes that somebody else owns and nobody writes, 64-byte aligned; `owner` is kept for as long as they are looked at.
    AlignedBytes(const uint8_t* data, int64_t size, std::shared_ptr<const void> owner);
    ~AlignedBytes();
    AlignedBytes(AlignedBytes&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), owner_(std::move(other.owner_)) {}
    AlignedBytes& operator=(AlignedBytes&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(owner_, other.owner_);
        return *this;
    }
    AlignedBytes(const AlignedBytes&) = delete;
    AlignedBytes& operator=(const AlignedBytes&) = delete;

    uint8_t* data() { return data_; }
    const uint8_t* data() const { return data_; }
    int64_t size() const { return size_; }
    template <typename T>
    T* as() {
        return reinterpret_cast<T*>(data_);
    }
    template <typename T>
    const T* as() const {
        return reinterpret_cast<const T*>(data_);
    }

  private:
    friend class Chunks;

    uint8_t* data_ = nullptr;
    int64_t size_ = 0;
    std::shared_ptr<const void> owner_;  // of the memory, if this is not
};

// Gives out memory from large pieces, which the system maps with large pages: packing a model into thousands of small ones
// would spend most of its time on page faults. A piece returns to the system when nothing of it is in use.
class Chunks {
  public:
    AlignedBytes take(int64_t size);

  private:
    std::shared_ptr<AlignedBytes> chunk_;
    int64_t used_ = 0;
};

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace herd
