// Threads that wait a little while spinning and then sleep, and the counters by which they share work.
//
// A step is one `Pool::run`: the workers that are awake execute the same function, phase after phase. A phase is cut into
// pieces that workers claim; it is over when its pieces are done, not when every worker has looked at it. So a worker that
// the system has put aside for other programs holds up no more than the piece it is in, and one that sleeps is not waited for.
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

    // Runs job(0) here and job(1 .. workers-1) on those threads of the pool that wake up before job(0) is over; returns when
    // all that began have ended. Jobs must not throw. One caller at a time.
    template <typename Function>
    void run(const Function& function) {
        run_job(Job(function));
    }

    // Runs job(0 .. workers-1), each in a thread of its own, all at once.
    template <typename Function>
    void run_everywhere(const Function& function) {
        run([&](int worker) {
            barrier();
            function(worker);
        });
    }

    // Before a job: makes the counters of phases 0 .. phases-1 ready.
    void reset_phases(int phases);

    // Inside a job: the next piece of `pieces` of a phase for this worker, or -1 when all are claimed. Every worker has its own
    // consecutive part and, once that is claimed, takes over pieces of others.
    int64_t next_piece(int phase, int worker, int64_t pieces);

    // Inside a job: says that this worker has done `mine` pieces of the phase, and returns when all of them are done. What was
    // written by them is visible then.
    void finish_phase(int phase, int64_t mine, int64_t pieces);

    // Inside a job that every worker runs: returns when all have arrived.
    void barrier();

  private:
    struct alignas(64) Counter {
        std::atomic<int64_t> value{0};
    };

    void run_job(const Job& job);
    void work(int worker);
    void stop();

    const int workers_;
    std::vector<std::thread> threads_;
    // The number of the job in the upper half; then whether it may still be joined, and how many have joined.
    alignas(64) std::atomic<uint64_t> state_{0};
    alignas(64) std::atomic<uint32_t> started_{0};  // the lower half of the number of the last job: what sleepers wait for
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    std::atomic<bool> stopping_{false};
    const Job* job_ = nullptr;
    std::unique_ptr<Counter[]> claimed_;  // [phase][worker]
    std::unique_ptr<Counter[]> done_;     // [phase]
    int num_phases_ = 0;
};

}  // namespace herd
