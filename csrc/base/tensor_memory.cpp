#include "base/tensor_memory.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>

#include <pthread.h>
#include <unistd.h>

#include "base/imports.h"

namespace herd {

namespace {

constexpr size_t kLeastPages = 8;            // smaller tensors stay in the heap: pages would round them up by more than an eighth
constexpr size_t kSpare = 32;                // one part in so many of the most that was used is kept beside it
constexpr size_t kReach = 4;                 // times the machine's memory: addresses are plenty, and holes among them cost nothing

std::atomic<Region*> region = nullptr;  // never deleted: tensors may outlive whoever opened it
std::atomic<int> times_open = 0;
std::mutex opening;

// Both are called by torch in the place of the functions of the C library whose names they have.
int posix_memalign_instead(void** piece, size_t alignment, size_t size) {
    Region* own = region.load(std::memory_order_acquire);
    if (size >= kLeastPages * own->page() && alignment <= own->page() && times_open.load(std::memory_order_relaxed) > 0) {
        if (void* found = own->take(size)) {
            *piece = found;
            return 0;
        }
    }
    return posix_memalign(piece, alignment, size);
}

void free_instead(void* piece) {
    Region* own = region.load(std::memory_order_acquire);
    if (own->holds(piece)) {
        own->give(piece);
    } else {
        std::free(piece);
    }
}

bool begin() {
    const size_t memory = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    Region* made = nullptr;
    try {
        made = new Region(kReach * memory, kSpare);
    } catch (const std::bad_alloc&) {
        return false;  // addresses are limited here
    }
    region.store(made, std::memory_order_release);
    const std::array imports{
        Import{"free", reinterpret_cast<void*>(&free_instead)},
        Import{"posix_memalign", reinterpret_cast<void*>(&posix_memalign_instead)},
    };
    if (redirect("libc10.so", imports)) {
        pthread_atfork([] { region.load()->lock(); }, [] { region.load()->unlock(); }, [] { region.load()->unlock(); });
        return true;
    }
    region.store(nullptr, std::memory_order_release);
    delete made;
    return false;
}

}  // namespace

bool open_tensor_memory() {
    const std::lock_guard lock(opening);
    if (region.load(std::memory_order_relaxed) == nullptr && !begin()) return false;
    ++times_open;
    return true;
}

void close_tensor_memory() {
    const std::lock_guard lock(opening);
    if (times_open > 0 && --times_open == 0) region.load(std::memory_order_relaxed)->shrink();
}

RegionBytes tensor_memory_bytes() {
    const Region* own = region.load(std::memory_order_acquire);
    return own == nullptr ? RegionBytes{} : own->bytes();
}

}  // namespace herd
