// Memory, instruction sets and the thread pool.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/cpu.h"
#include "base/memory.h"
#include "base/pool.h"
#include "tests/check.h"

using namespace herd;

namespace {

void memory_is_aligned_and_zero() {
    for (const int64_t size : {int64_t{1}, int64_t{64}, int64_t{1000}, int64_t{2} << 20, (int64_t{2} << 20) + 1}) {
        AlignedBytes bytes(size);
        CHECK(reinterpret_cast<uintptr_t>(bytes.data()) % 64 == 0, "size %ld", static_cast<long>(size));
        CHECK(bytes.data()[0] == 0 && bytes.data()[size - 1] == 0, "size %ld", static_cast<long>(size));
        std::memset(bytes.data(), 1, static_cast<size_t>(size));
        AlignedBytes moved(std::move(bytes));
        CHECK(moved.size() == size && bytes.size() == 0, "size %ld", static_cast<long>(size));
    }
    bool is_refused = false;
    try {
        AlignedBytes(int64_t{1} << 62);
    } catch (const std::bad_alloc&) {
        is_refused = true;
    }
    CHECK(is_refused, "four exabytes were given");
}

void chunks_give_memory_that_outlives_them() {
    std::vector<AlignedBytes> parts;
    {
        Chunks chunks;
        for (const int64_t size : {int64_t{1}, int64_t{100}, int64_t{30} << 20, int64_t{31} << 20, int64_t{30} << 20, int64_t{70} << 20}) parts.push_back(chunks.take(size));
    }
    for (AlignedBytes& part : parts) {
        CHECK(reinterpret_cast<uintptr_t>(part.data()) % 64 == 0, "size %ld", static_cast<long>(part.size()));
        CHECK(part.data()[0] == 0 && part.data()[part.size() - 1] == 0, "size %ld", static_cast<long>(part.size()));
        part.data()[0] = part.data()[part.size() - 1] = 1;
    }
}

void instruction_sets_are_found_by_name() {
    for (const Isa isa : available_isas()) CHECK(isa_by_name(isa_name(isa)) == isa, "%s", isa_name(isa));
    CHECK(best_isa() == available_isas().back(), "best is not the last");
    try {
        isa_by_name("abacus");
        CHECK(false, "abacus is an instruction set");
    } catch (const std::invalid_argument& problem) {
        CHECK(std::strstr(problem.what(), "portable") != nullptr, "%s", problem.what());
    }
    CHECK(usable_cores() >= 1, "%d", usable_cores());
}

// Other tests run what is available: HERD_EXPECTED_ISAS says what must be (scripts/emulate).
void expected_instruction_sets_are_available() {
    const char* expected = std::getenv("HERD_EXPECTED_ISAS");
    if (expected == nullptr) return;
    std::string found;
    for (const Isa isa : available_isas()) {
        if (!found.empty()) found += ';';
        found += isa_name(isa);
    }
    CHECK(found == expected, "%s, expected %s", found.c_str(), expected);
}

// Every piece of every phase is run once, and a phase sees all of the one before.
void phases_follow_each_other(int workers) {
    constexpr int kPhases = 20, kPieces = 37;
    Pool pool(workers);
    for (int step = 0; step < 300; ++step) {
        std::vector<std::atomic<int>> runs(kPhases * kPieces);
        std::vector<int> values(kPieces, 0);
        std::atomic<int> wrong{0};
        pool.reset_phases(kPhases);
        pool.run([&](int worker) {
            for (int phase = 0; phase < kPhases; ++phase) {
                int64_t mine = 0;
                for (int64_t piece = pool.next_piece(phase, worker, kPieces); piece >= 0; piece = pool.next_piece(phase, worker, kPieces), ++mine) {
                    runs[static_cast<size_t>(phase * kPieces + piece)].fetch_add(1);
                    // Reads its neighbour's value in even phases and writes its own in odd ones.
                    if (phase % 2 == 1) values[static_cast<size_t>(piece)] = phase;
                    if (phase % 2 == 0 && phase > 0 && values[static_cast<size_t>((piece + 18) % kPieces)] != phase - 1) wrong.fetch_add(1);
                }
                pool.finish_phase(phase, mine, kPieces);
            }
        });
        CHECK(wrong == 0, "%d values were old with %d workers", wrong.load(), workers);
        for (size_t i = 0; i < runs.size(); ++i) CHECK(runs[i] == 1, "piece %zu ran %d times with %d workers", i, runs[i].load(), workers);
    }
}

void every_worker_runs_when_asked(int workers) {
    Pool pool(workers);
    for (int step = 0; step < 50; ++step) {
        std::vector<std::atomic<int>> runs(static_cast<size_t>(workers));
        pool.run_everywhere([&](int worker) { runs[static_cast<size_t>(worker)].fetch_add(1); });
        for (int worker = 0; worker < workers; ++worker) CHECK(runs[static_cast<size_t>(worker)] == 1, "worker %d of %d", worker, workers);
    }
}

void workers_wake_up_after_sleeping() {
    Pool pool(3);
    for (int step = 0; step < 5; ++step) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        std::atomic<int> runs{0};
        pool.run_everywhere([&](int) { runs.fetch_add(1); });
        CHECK(runs == 3, "%d", runs.load());
    }
}

}  // namespace

int main() {
    memory_is_aligned_and_zero();
    chunks_give_memory_that_outlives_them();
    instruction_sets_are_found_by_name();
    expected_instruction_sets_are_available();
    for (const int workers : {1, 2, 3, 7}) {
        phases_follow_each_other(workers);
        every_worker_runs_when_asked(workers);
    }
    workers_wake_up_after_sleeping();
    return herd::test::report("base");
}
