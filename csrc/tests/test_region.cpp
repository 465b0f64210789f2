// Pages for pieces that come and go, and calls of a loaded library that go elsewhere.
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <random>
#include <thread>
#include <vector>

#include "base/imports.h"
#include "base/region.h"
#include "tests/check.h"

using namespace herd;

namespace {

constexpr size_t kMega = size_t{1} << 20;

void a_piece_that_comes_again_lies_where_it_lay() {
    Region region(64 * kMega, 32);
    void* kept = region.take(kMega);
    void* first = region.take(3 * kMega);
    void* above = region.take(kMega);
    std::memset(first, 1, 3 * kMega);
    region.give(first);
    CHECK(region.take(3 * kMega) == first, "a hole of the same size was passed by");
    CHECK(region.bytes().fetched == 5 * kMega, "%zu bytes were fetched", region.bytes().fetched);
    for (void* piece : {kept, first, above}) region.give(piece);
    CHECK(region.bytes().used == 0, "%zu bytes are in use", region.bytes().used);
}

void what_is_resident_is_bounded_by_what_was_used_at_once() {
    Region region(1024 * kMega, 32);
    std::mt19937 chance(0);
    std::vector<std::pair<uint8_t*, size_t>> pieces;
    for (int turn = 0; turn < 20000; ++turn) {
        if (pieces.size() < 40 && chance() % 2 == 0) {
            const size_t size = 1 + chance() % (2 * kMega);
            auto* piece = static_cast<uint8_t*>(region.take(size));
            CHECK(piece != nullptr && region.holds(piece), "turn %d", turn);
            piece[0] = piece[size - 1] = static_cast<uint8_t>(size);
            pieces.emplace_back(piece, size);
        } else if (!pieces.empty()) {
            std::swap(pieces[chance() % pieces.size()], pieces.back());
            const auto [piece, size] = pieces.back();
            CHECK(piece[0] == static_cast<uint8_t>(size) && piece[size - 1] == static_cast<uint8_t>(size), "turn %d", turn);
            region.give(piece);
            pieces.pop_back();
        }
        const RegionBytes bytes = region.bytes();
        CHECK(bytes.used <= bytes.resident && bytes.resident <= bytes.most + bytes.most / 32, "turn %d: %zu of %zu", turn, bytes.resident, bytes.most);
    }
    region.shrink();
    CHECK(region.bytes().resident == region.bytes().used && region.bytes().most == region.bytes().used, "free pages are kept");
    for (const auto& [piece, size] : pieces) {
        CHECK(piece[0] == static_cast<uint8_t>(size), "a page in use was given back");
        region.give(piece);
    }
}

void addresses_end() {
    Region region(4 * kMega, 32);
    CHECK(region.take(5 * kMega) == nullptr && region.take(SIZE_MAX) == nullptr, "more than there is was given");
    void* piece = region.take(4 * kMega);
    CHECK(piece != nullptr && region.take(1) == nullptr, "more than there is was given");
    region.give(piece);
    CHECK(region.take(1) != nullptr, "what was given back is not there");
    bool is_refused = false;
    try {
        Region none(0, 32);
    } catch (const std::bad_alloc&) {
        is_refused = true;
    }
    CHECK(is_refused, "a region of nothing");
}

void threads_share_a_region() {
    Region region(1024 * kMega, 32);
    std::vector<std::thread> threads;
    for (uint8_t mark = 1; mark <= 4; ++mark) {
        threads.emplace_back([&region, mark] {
            for (size_t turn = 0; turn < 500; ++turn) {
                const size_t size = (1 + turn % 7) * 40000;
                auto* piece = static_cast<uint8_t*>(region.take(size));
                std::memset(piece, mark, size);
                CHECK(piece[size - 1] == mark, "thread %d", mark);
                region.give(piece);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(region.bytes().used == 0, "%zu bytes are in use", region.bytes().used);
}

int asked = 0;
int clock_gettime_counted(clockid_t clock, timespec* now) {
    ++asked;
    return clock_gettime(clock, now);
}

// The C++ library asks the C library for the time, if both are loaded and not part of this program.
void calls_of_a_loaded_library_go_elsewhere_and_back() {
    const std::array there{Import{"clock_gettime", reinterpret_cast<void*>(&clock_gettime_counted)}};
    if (!redirect("libstdc++", there)) return;
    const auto first = std::chrono::steady_clock::now(), second = std::chrono::steady_clock::now();
    CHECK(asked == 2 && second >= first, "%d calls were seen", asked);
    const std::array back{Import{"clock_gettime", reinterpret_cast<void*>(&clock_gettime)}};
    CHECK(redirect("libstdc++", back), "the way back was not found");
    CHECK(std::chrono::steady_clock::now() >= second && asked == 2, "%d calls were seen", asked);
}

void a_library_that_is_not_loaded_is_not_changed() {
    const std::array imports{Import{"free", nullptr}};
    CHECK(!redirect("libof_nobody.so", imports), "it was");
    const std::array unknown{Import{"a function that nobody imports", nullptr}};
    CHECK(!redirect("libstdc++", unknown), "it was");
}

}  // namespace

int main() {
    a_piece_that_comes_again_lies_where_it_lay();
    what_is_resident_is_bounded_by_what_was_used_at_once();
    addresses_end();
    threads_share_a_region();
    calls_of_a_loaded_library_go_elsewhere_and_back();
    a_library_that_is_not_loaded_is_not_changed();
    return herd::test::report("region");
}
