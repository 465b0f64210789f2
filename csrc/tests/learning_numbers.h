// What tests of kernels for training share: numbers as tensors store them, memory between guarded zones, and the budget of errors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/learn.h"
#include "tests/check.h"

namespace herd::test {

inline size_t at(int64_t index) { return static_cast<size_t>(index); }

inline uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline float from_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline int64_t bytes_of(Element element) { return element == Element::Float32 ? 4 : 2; }

inline float rounded(Element element, float value) { return element == Element::Float32 ? value : from_bf16(to_bf16(value)); }

inline float read(Element element, const uint8_t* data, int64_t index) {
    if (element == Element::Float32) {
        float value;
        std::memcpy(&value, data + 4 * index, 4);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, data + 2 * index, 2);
    return from_bf16(bits);
}

inline void write(Element element, uint8_t* data, int64_t index, float value) {
    const uint16_t bits = to_bf16(value);
    if (element == Element::Float32) {
        std::memcpy(data + 4 * index, &value, 4);
    } else {
        std::memcpy(data + 2 * index, &bits, 2);
    }
}

// Bytes between two zones that nobody may write.
class Guarded {
  public:
    explicit Guarded(int64_t size) : size_(size), bytes_(at(2 * kZone + size), kPattern) {}

    uint8_t* data() { return bytes_.data() + kZone; }
    const uint8_t* data() const { return bytes_.data() + kZone; }
    int64_t size() const { return size_; }
    bool is_whole() const {
        const auto is_untouched = [](const uint8_t* zone) { return std::all_of(zone, zone + kZone, [](uint8_t byte) { return byte == kPattern; }); };
        return is_untouched(bytes_.data()) && is_untouched(data() + size_);
    }
    bool operator==(const Guarded& other) const { return size_ == other.size_ && std::memcmp(data(), other.data(), at(size_)) == 0; }

  private:
    // As a number of either type not a number: what is read before it was written shows.
    static constexpr uint8_t kPattern = 0xff;
    static constexpr int64_t kZone = 256;
    int64_t size_;
    std::vector<uint8_t> bytes_;
};

// The largest difference of numbers that plain loops found in their type.
inline double error_of(const std::vector<float>& plain, const std::vector<double>& exact) {
    double error = 0;
    for (size_t i = 0; i < exact.size(); ++i) error = std::max(error, std::abs(static_cast<double>(plain[i]) - exact[i]));
    return error;
}

// error(ours) <= 2 error(plain), both the largest.
inline void is_within_budget(Element element, const Guarded& ours, const std::vector<double>& exact, double plain_error, const std::string& what) {
    CHECK(ours.size() == static_cast<int64_t>(exact.size()) * bytes_of(element), "%s", what.c_str());
    double error = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
        const double mine = std::abs(static_cast<double>(read(element, ours.data(), static_cast<int64_t>(i))) - exact[i]);
        error = mine <= error ? error : mine;  // what is not a number stays
    }
    CHECK(error <= 2 * plain_error, "%s: error %g, of plain loops %g", what.c_str(), error, plain_error);
}

}  // namespace herd::test
