#include "base/region.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <new>

#include <sys/mman.h>
#include <unistd.h>

namespace herd {

namespace {

constexpr size_t kNowhere = ~size_t{0};

#if !defined(MAP_NORESERVE)
#define MAP_NORESERVE 0
#endif

}  // namespace

Region::Region(size_t size, size_t spare) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))), spare_(spare) {
    const size_t whole = size / page_ * page_;
    void* mapped = whole == 0 ? MAP_FAILED : mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<char*>(mapped);
    end_ = begin_ + whole;
    add(0, {whole, false});
}

Region::~Region() { munmap(begin_, static_cast<size_t>(end_ - begin_)); }

void* Region::take(size_t size) {
    if (size > static_cast<size_t>(end_ - begin_)) return nullptr;
    const size_t whole = pages(size);
    const std::lock_guard lock(mutex_);
    const size_t at = fitting(whole);
    if (at == kNowhere) return nullptr;
    pieces_[at] = whole;
    bytes_.used += whole;
    bytes_.most = std::max(bytes_.most, bytes_.used);
    return begin_ + at;
}

void Region::give(void* piece) {
    const auto at = static_cast<size_t>(static_cast<char*>(piece) - begin_);
    const std::lock_guard lock(mutex_);
    const auto found = pieces_.find(at);
    assert(found != pieces_.end() && "a piece that is in use");
    const size_t size = found->second;
    pieces_.erase(found);
    bytes_.used -= size;
    add(at, {size, true});
}

void Region::shrink() {
    const std::lock_guard lock(mutex_);
    give_back(bytes_.resident - bytes_.used);
    bytes_.most = bytes_.used;
}

RegionBytes Region::bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
}

// Where `size` bytes are free, no longer a hole: in the smallest resident hole that holds them, else in fresh pages, for which others are
// given back if there were too many.
size_t Region::fitting(size_t size) {
    for (const bool is_resident : {true, false}) {
        if (!is_resident) {
            const size_t most = std::max(bytes_.most, bytes_.used + size);
            const size_t bound = most + most / spare_;
            if (bytes_.resident + size > bound) give_back(bytes_.resident + size - bound);
        }
        const auto& holes = by_size_[is_resident];
        const auto found = holes.lower_bound({size, 0});
        if (found == holes.end()) continue;
        const size_t at = found->second, hole = found->first;
        remove(holes_.find(at));
        if (hole > size) add(at + size, {hole - size, is_resident});
        if (!is_resident) {
            bytes_.resident += size;
            bytes_.fetched += size;
        }
        return at;
    }
    return kNowhere;
}

// Of free pages that are resident so many bytes, or all there are: ends of the largest holes, which are the least likely to be asked for.
void Region::give_back(size_t size) {
    size = pages(size);
    while (size > 0 && !by_size_[true].empty()) {
        const auto [hole, at] = *by_size_[true].rbegin();
        const size_t part = std::min(hole, size), from = at + hole - part;
        madvise(begin_ + from, part, MADV_DONTNEED);
        remove(holes_.find(at));
        if (hole > part) add(at, {hole - part, true});
        add(from, {part, false});
        bytes_.resident -= part;
        size -= part;
    }
}

// A hole, one with its neighbours of the same kind.
void Region::add(size_t at, Hole hole) {
    const auto after = holes_.lower_bound(at);
    if (after != holes_.begin()) {
        const auto before = std::prev(after);
        if (before->first + before->second.size == at && before->second.is_resident == hole.is_resident) {
            at = before->first;
            hole.size += before->second.size;
            remove(before);
        }
    }
    if (after != holes_.end() && after->first == at + hole.size && after->second.is_resident == hole.is_resident) {
        hole.size += after->second.size;
        remove(after);
    }
    holes_[at] = hole;
    by_size_[hole.is_resident].insert({hole.size, at});
}

void Region::remove(Holes::iterator hole) {
    by_size_[hole->second.is_resident].erase({hole->second.size, hole->first});
    holes_.erase(hole);
}

}  // namespace herd
