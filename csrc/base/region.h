// Memory for large pieces that come and go: whole pages of one stretch of addresses that was reserved beforehand.
//
// A general heap mixes large pieces with small ones. A small one that lies in a hole keeps the next large one out of it, and a program that
// makes the same large pieces again and again needs more and more. Here are large pieces only, and pages that are free return to the system
// when others are needed, so that what is resident is bounded by what was in use at once.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

namespace herd {

struct RegionBytes {
    size_t used = 0;       // of pieces that are in use
    size_t most = 0;       // the most that `used` has been
    size_t resident = 0;   // `used`, and free pages that are kept
    size_t fetched = 0;    // of pages that the system gave, all in all
};

// Thread-safe. Pieces are whole pages; a page that was given back is zero when it comes again.
class Region {
  public:
    // Reserves `size` bytes of addresses, which take no memory. `spare`: one part in so many of the most that was used may be free and
    // resident beside it. Throws std::bad_alloc.
    Region(size_t size, size_t spare);
    ~Region();
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;

    // A piece of at least `size` bytes at a page's beginning, or nullptr if the addresses are used up.
    void* take(size_t size);
    // `piece` came from `take`.
    void give(void* piece);
    bool holds(const void* address) const { return address >= begin_ && address < end_; }

    // Free pages go back to the system, and the most that was used counts from now.
    void shrink();
    RegionBytes bytes() const;
    size_t page() const { return page_; }

    // Around a fork: nobody may be in the middle of a change when the process is doubled.
    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

  private:
    struct Hole {
        size_t size;
        bool is_resident;
    };
    using Holes = std::map<size_t, Hole>;  // by where they begin

    size_t pages(size_t size) const { return (size + page_ - 1) / page_ * page_; }
    size_t fitting(size_t size);
    void give_back(size_t size);
    void add(size_t at, Hole hole);
    void remove(Holes::iterator hole);

    char* begin_ = nullptr;
    char* end_ = nullptr;
    const size_t page_;
    const size_t spare_;
    mutable std::mutex mutex_;
    Holes holes_;
    std::set<std::pair<size_t, size_t>> by_size_[2];  // (size, where) of holes that are not resident, and of those that are
    std::unordered_map<size_t, size_t> pieces_;       // where -> size
    RegionBytes bytes_;
};

}  // namespace herd
