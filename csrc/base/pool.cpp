#include "base/pool.h"

#include <chrono>

#include "base/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace herd {

namespace {

constexpr int kBarrierSpins = 4000;    // some tens of microseconds
constexpr int kIdleSpins = 8000;       // bridges the gap between two steps of a small model

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Returns once `value` differs from `seen`: spins first, then sleeps.
template <typename T>
void wait_for_change(const std::atomic<T>& value, T seen, int spins) {
    for (int i = 0; i < spins; ++i) {
        if (value.load(std::memory_order_acquire) != seen) return;
        pause();
    }
    while (value.load(std::memory_order_acquire) == seen) value.wait(seen, std::memory_order_acquire);
}

}  // namespace

Pool::Pool(int workers) : workers_(workers < 1 ? 1 : workers) {
    threads_.reserve(static_cast<size_t>(workers_ - 1));
    try {
        for (int worker = 1; worker < workers_; ++worker) threads_.emplace_back([this, worker] { work(worker); });
    } catch (...) {
        stopping_ = true;
        epoch_.fetch_add(1);
        epoch_.notify_all();
        for (std::thread& thread : threads_) thread.join();
        throw;
    }
}

Pool::~Pool() {
    stopping_ = true;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Pool::work(int worker) {
    FlushDenormals flush;
    uint32_t seen = 0;
    while (true) {
        wait_for_change(epoch_, seen, kIdleSpins);
        ++seen;
        if (stopping_.load()) return;
        (*job_)(worker);
        if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
    }
}

void Pool::run_job(const Job& job) {
    FlushDenormals flush;
    if (workers_ == 1) {
        job(0);
        return;
    }
    job_ = &job;
    running_.store(workers_ - 1, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_acq_rel);
    epoch_.notify_all();
    job(0);
    for (int left = running_.load(std::memory_order_acquire); left != 0; left = running_.load(std::memory_order_acquire)) {
        wait_for_change(running_, left, kBarrierSpins);
    }
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
    wait_for_change(generation_, generation, kBarrierSpins);
}

void Pool::reset_pieces(int phases) {
    if (phases > num_phases_) {
        counters_ = std::make_unique<Counter[]>(static_cast<size_t>(phases) * static_cast<size_t>(workers_));
        num_phases_ = phases;
    }
    for (int i = 0; i < phases * workers_; ++i) counters_[static_cast<size_t>(i)].next.store(0, std::memory_order_relaxed);
}

int64_t Pool::next_piece(int phase, int worker, int64_t pieces) {
    for (int turn = 0; turn < workers_; ++turn) {
        const int owner = (worker + turn) % workers_;
        const int64_t begin = pieces * owner / workers_, end = pieces * (owner + 1) / workers_;
        std::atomic<int64_t>& next = counters_[static_cast<size_t>(phase) * static_cast<size_t>(workers_) + static_cast<size_t>(owner)].next;
        if (begin + next.load(std::memory_order_relaxed) >= end) continue;
        const int64_t piece = begin + next.fetch_add(1, std::memory_order_relaxed);
        if (piece < end) return piece;
    }
    return -1;
}

}  // namespace herd
