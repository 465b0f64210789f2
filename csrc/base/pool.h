// Threads that wait a little while spinning and then sleep, and the barrier they meet at.
//
// A step is one `Pool::run`: every worker executes the same function from its start to its end and meets the others at the
// barrier between the parts. Spinning bridges the microseconds between parts; a worker that waits longer goes to sleep in
// the kernel, so that a busy second core costs its share and not a collapse.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace herd {

// A function of a worker's number that is not copied and never allocates.
class Job {
  public:
    template <typename Function>
    explicit Job(const Function& function)
        : object_(&function), call_([](const void* object, int worker) { (*static_cast<const Function*>(object))(worker); }) {}
    void operator()(int worker) const { call_(object_, worker); }

  private:
    const void* object_;
    void (*call_)(const void*, int);
};

class Pool {
  public:
    // `workers` includes the caller of `run`: a pool of one starts no thread.
    explicit Pool(int workers);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int workers() const { return workers_; }

    // Runs job(0) here and job(1 .. workers-1) on the pool's threads; returns when all are done. Jobs must not throw.
    // One caller at a time.
    template <typename Function>
    void run(const Function& function) {
        run_job(Job(function));
    }

    // Inside a job: returns when every worker has arrived. What they wrote before is visible after.
    void barrier();

    // Inside a job, between two barriers: the next piece of `pieces` for this worker, or -1 when none is left. Every worker
    // has its own consecutive part and, once that is done, takes over pieces of others. `phase` numbers the counters;
    // `reset_pieces` makes them ready before the job starts.
    void reset_pieces(int phases);
    int64_t next_piece(int phase, int worker, int64_t pieces);

  private:
    struct alignas(64) Counter {
        std::atomic<int64_t> next{0};
    };

    void run_job(const Job& job);
    void work(int worker);

    const int workers_;
    std::vector<std::thread> threads_;
    alignas(64) std::atomic<uint32_t> epoch_{0};
    alignas(64) std::atomic<int> running_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<bool> stopping_{false};
    const Job* job_ = nullptr;
    std::unique_ptr<Counter[]> counters_;
    int num_phases_ = 0;
};

}  // namespace herd
