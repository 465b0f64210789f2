#include "base/pool.h"

#include "base/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace herd {

namespace {

constexpr int kPhaseSpins = 2000;  // some tens of microseconds
constexpr int kIdleSpins = 8000;   // bridges the gap between two steps of a small model

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kJoined = kOpen - 1;

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Returns once is_over(value): spins first, then sleeps until somebody notifies.
template <typename T, typename Over>
void wait_until(const std::atomic<T>& value, int spins, Over is_over) {
    for (int i = 0; i < spins; ++i) {
        if (is_over(value.load(std::memory_order_acquire))) return;
        pause();
    }
    for (T seen = value.load(std::memory_order_acquire); !is_over(seen); seen = value.load(std::memory_order_acquire)) {
        value.wait(seen, std::memory_order_acquire);
    }
}

}  // namespace

Pool::Pool(int workers) : workers_(workers < 1 ? 1 : workers) {
    threads_.reserve(static_cast<size_t>(workers_ - 1));
    try {
        for (int worker = 1; worker < workers_; ++worker) threads_.emplace_back([this, worker] { work(worker); });
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    stopping_ = true;
    started_.fetch_add(1);
    started_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Pool::work(int worker) {
    FlushDenormals flush;
    uint32_t seen = 0;
    while (true) {
        wait_until(started_, kIdleSpins, [seen](uint32_t started) { return started != seen; });
        if (stopping_.load()) return;
        uint64_t state = state_.load(std::memory_order_acquire);
        seen = static_cast<uint32_t>(state >> 32);
        bool is_in = false;
        while ((state & kOpen) != 0 && static_cast<uint32_t>(state >> 32) == seen && !is_in) {
            is_in = state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel);
        }
        if (!is_in) continue;
        (*job_)(worker);
        const uint64_t left = state_.fetch_sub(1, std::memory_order_acq_rel) - 1;
        if ((left & (kOpen | kJoined)) == 0) state_.notify_one();
    }
}

void Pool::run_job(const Job& job) {
    FlushDenormals flush;
    if (workers_ == 1) {
        job(0);
        return;
    }
    const uint32_t number = started_.load(std::memory_order_relaxed) + 1;
    job_ = &job;
    state_.store(static_cast<uint64_t>(number) << 32 | kOpen, std::memory_order_release);
    // Sequentially consistent: `notify_all` looks whether somebody sleeps, and may not look before this store is seen. A worker that
    // fell asleep in between would sleep through a job that waits for it (`barrier`).
    started_.store(number, std::memory_order_seq_cst);
    started_.notify_all();
    job(0);
    state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    wait_until(state_, kPhaseSpins, [](uint64_t state) { return (state & kJoined) == 0; });
}

void Pool::barrier() {
    if (workers_ == 1) return;
    const uint32_t generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == workers_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.fetch_add(1, std::memory_order_acq_rel);
        generation_.notify_all();
        return;
    }
    wait_until(generation_, kPhaseSpins, [generation](uint32_t now) { return now != generation; });
}

void Pool::reset_phases(int phases) {
    if (phases > num_phases_) {
        claimed_ = std::make_unique<Counter[]>(static_cast<size_t>(phases) * static_cast<size_t>(workers_));
        done_ = std::make_unique<Counter[]>(static_cast<size_t>(phases));
        num_phases_ = phases;
    }
    for (int i = 0; i < phases * workers_; ++i) claimed_[static_cast<size_t>(i)].value.store(0, std::memory_order_relaxed);
    for (int i = 0; i < phases; ++i) done_[static_cast<size_t>(i)].value.store(0, std::memory_order_relaxed);
}

int64_t Pool::next_piece(int phase, int worker, int64_t pieces) {
    for (int turn = 0; turn < workers_; ++turn) {
        const int owner = (worker + turn) % workers_;
        const int64_t begin = pieces * owner / workers_, end = pieces * (owner + 1) / workers_;
        std::atomic<int64_t>& next = claimed_[static_cast<size_t>(phase) * static_cast<size_t>(workers_) + static_cast<size_t>(owner)].value;
        if (begin + next.load(std::memory_order_relaxed) >= end) continue;
        const int64_t piece = begin + next.fetch_add(1, std::memory_order_relaxed);
        if (piece < end) return piece;
    }
    return -1;
}

void Pool::finish_phase(int phase, int64_t mine, int64_t pieces) {
    if (workers_ == 1) return;
    std::atomic<int64_t>& done = done_[static_cast<size_t>(phase)].value;
    if (mine != 0 && done.fetch_add(mine, std::memory_order_acq_rel) + mine == pieces) {
        done.notify_all();
        return;
    }
    wait_until(done, kPhaseSpins, [pieces](int64_t now) { return now == pieces; });
}

}  // namespace herd
