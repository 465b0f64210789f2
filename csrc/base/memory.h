// Memory that kernels read: aligned to a cache line, of a fixed size, never copied by accident.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace herd {

// Owns `size()` zeroed bytes, 64-byte aligned. Large ones come straight from the system, so that pages cost nothing until
// they are touched and return when the owner goes. Throws std::bad_alloc.
class AlignedBytes {
  public:
    AlignedBytes() = default;
    explicit AlignedBytes(int64_t size);
    ~AlignedBytes();
    AlignedBytes(AlignedBytes&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), part_of_(std::move(other.part_of_)) {}
    AlignedBytes& operator=(AlignedBytes&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(part_of_, other.part_of_);
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
    std::shared_ptr<AlignedBytes> part_of_;  // owns the memory if this does not
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
