// Work for the threads that torch has already: of its OpenMP library, in which they wait for their next loop. Threads of our own would
// take the processor from them and they from ours, as both wait spinning.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/cpu.h"

namespace herd {

// How torch's OpenMP library runs a function of one argument in several threads at once, if torch is loaded and uses one that is known
// (GNU's, or another with its entry point); else null, and all work is done by the caller.
using ParallelFunction = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
ParallelFunction team_of_torch();

// Calls work(piece, worker) for each piece once, in `threads` threads at most, workers counted from 0. Pieces are handed out in order.
// `work` must not throw.
template <typename Work>
void share(int threads, int64_t pieces, const Work& work) {
    struct Shared {
        const Work& work;
        int64_t pieces;
        std::atomic<int64_t> next{0};
        std::atomic<int> workers{0};
        void run() {
            const FlushDenormals flush;
            const int worker = workers.fetch_add(1, std::memory_order_relaxed);
            for (int64_t piece = next.fetch_add(1, std::memory_order_relaxed); piece < pieces; piece = next.fetch_add(1, std::memory_order_relaxed)) {
                work(piece, worker);
            }
        }
    } shared{work, pieces};
    const ParallelFunction parallel = threads > 1 && pieces > 1 ? team_of_torch() : nullptr;
    if (parallel == nullptr) {
        shared.run();
    } else {
        parallel([](void* argument) { static_cast<Shared*>(argument)->run(); }, &shared, static_cast<unsigned>(threads), 0);
    }
}

}  // namespace herd
