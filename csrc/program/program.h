// A model as a flat list of instructions over buffers that are made once; a step runs the list.
//
// Every instruction is a phase of the pool (base/pool.h), cut into pieces that any worker may run; the next begins when all are
// done. How an instruction is cut never changes the bits of its result.
//
// Small steps do without some phases: an instruction that prepares the input of products (`Prepare`) is left out when
// there are few rows, and each worker prepares its own copy where it multiplies.
//
// Building: backends/cpu/trace.py. No function of this class but the building ones allocates.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/memory.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "kernels/matrix.h"
#include "program/ahead.h"
#include "program/cache.h"
#include "program/step.h"

namespace herd {

using MatrixPtr = std::shared_ptr<const Matrix>;
using Aliases = std::vector<std::pair<int32_t, int32_t>>;  // tokens that read another row of the table than their own
using FloatsPtr = std::shared_ptr<const AlignedBytes>;  // a norm's weight or a bias, float32

// A machine as programs use it: its threads and its kernels.
struct Machine {
    Machine(int workers, Isa chosen) : pool(workers), isa(chosen), kernels(herd::kernels(chosen)), linear(linear_kernels(chosen)) {}
    Pool pool;
    const Isa isa;
    const Kernels& kernels;
    const LinearKernels& linear;
    std::mutex mutex;  // held by whoever uses the pool
};

// Float32 rows of one width, or (`form` set) rows prepared for products.
struct Buffer {
    int64_t width;
    Rows rows;
    int64_t stride;                    // bytes from one row to the next
    AlignedBytes shared;
    AlignedBytes own;                  // prepared rows only: `own_rows` rows per worker
    int64_t own_rows = 0;
    Form form = Form::F32;
};

class Prepare;
struct ExpertRoom;
class Route;

// What an instruction sees of the running step.
struct Context {
    Machine& machine;
    Step& step;
    std::vector<Buffer>& buffers;
    Cache& cache;
    uint8_t* scratch;                   // of this worker
    uint8_t* partials;                  // of attention tiles that are shared out
    std::atomic<int32_t>* arrived;      // splits of each such tile that are done
    std::atomic<bool>* not_finite;      // per row of logits
    int worker;
    const Ahead& ahead;

    const Buffer& buffer(int number) const { return buffers[static_cast<size_t>(number)]; }
    int64_t rows(int number) const { return step.rows(buffer(number).rows); }
    float* floats(int number, int64_t row = 0) const {
        return reinterpret_cast<float*>(buffers[static_cast<size_t>(number)].shared.data() + row * buffer(number).stride);
    }
};

// One instruction. `run` of different pieces may happen at once in different workers.
class Instruction {
  public:
    explicit Instruction(std::string label) : label_(std::move(label)) {}
    virtual ~Instruction() = default;
    // How many pieces there are in this step; 0 leaves the instruction out. The same throughout the step: a worker that comes late
    // asks when later instructions have already run.
    virtual int64_t pieces(const Context& context) const = 0;
    // Called by every worker that has a piece, before its first.
    virtual void begin(const Context&) const {}
    virtual void run(const Context& context, int64_t piece) const = 0;
    const std::string& label() const { return label_; }

    bool only_if_seen = false;  // left out in steps none of whose tokens sees a picture

  private:
    std::string label_;
};

// One product of several that share an instruction: out (+)= input w^T + bias.
struct Term {
    MatrixPtr matrix;
    FloatsPtr bias;      // may be null
    int input;           // prepared
    int out;
    bool accumulate;
};

// A low-rank update of a matrix: down [rank, in], up [out, rank]; both null: none.
struct Update {
    MatrixPtr down, up;
};

// What is done to a piece of a product right after it, while it is in the cache of the core.
enum class After { Nothing, SiluGate, AttentionInputs, CheckFinite };

// For After::AttentionInputs: the terms are queries, keys and values.
struct AttentionInputs {
    int rotary;
    int64_t layer;
};

class Program {
  public:
    Program(std::shared_ptr<Machine> machine, std::shared_ptr<Cache> cache, int64_t num_heads, const Limits& limits);
    ~Program();
    Program(Program&&) noexcept;

    // Building. Buffers are numbered in order; wrong numbers or widths throw std::invalid_argument.
    int add_buffer(int64_t width, Rows rows);
    int add_prepared(Form form, int64_t width, Rows rows);
    void embed(MatrixPtr table, int out, Aliases aliases = {});
    void rotary(std::vector<double> frequencies, double magnitude, int out);
    // out = rms_norm(x) of each head: weight may be null.
    void norm(int x, FloatsPtr weight, float eps, int64_t heads, int out);
    void temper(int x, double floor, double scale, int out);
    // out = x in the form that products want; with `has_norm` of its norm. Rows of outputs from rows of tokens: those selected.
    void prepare(int x, bool has_norm, FloatsPtr weight, float eps, int out);
    void product(std::vector<Term> terms, After after, AttentionInputs inputs, const std::string& label);
    // out += (x down^T) up^T in rows of sequences that have an adapter, whose number chooses among `updates`.
    void low_rank(int x, std::vector<Update> updates, int out);
    void rotate(int x, int rotary, int out, int64_t heads);
    void store(int k, int v, int64_t layer);
    void attention(int q, int64_t layer, float scale, int out, Sight sight = {});
    // `layer` counts the layers of what the step's rows see.
    void cross_attention(int q, int64_t layer, int64_t heads, float scale, int out);
    void silu_gate(int gate, int up, int out);
    void add(int x, int y, int out);
    void sigmoid_gate(int x, int gate, int out);
    void soft_cap(int x, float factor, float cap, int out);
    void gated_add(int x, int y, float factor, bool if_seen, int out);
    void overlay(int x, int out);
    void copy(int x, int out);
    // Where experts of these shapes compute. Returns its number.
    int add_expert_room(const Matrix& gate, const Matrix& up, const Matrix& down, int64_t experts, int64_t chosen);
    void experts(int x, int scores, std::vector<MatrixPtr> gates, std::vector<MatrixPtr> ups, std::vector<MatrixPtr> downs, MatrixPtr router, int room,
                 int out);
    // Whether the instructions that follow are left out when no token of the step sees a picture.
    void only_if_seen(bool on) { only_if_seen_ = on; }
    void select(int x, int out);
    // Notes rows of x that hold something that is not a finite number; x has rows of outputs.
    void check_finite(int x);
    void finish(int logits);

    // After the cache was given other pages.
    void cache_changed();
    // From now on weights, which a mapped file has and memory does not hold, are asked for `window` bytes ahead; `keep` bytes of them stay.
    void read_ahead(int64_t keep, int64_t window) { ahead_.start(keep, window); }

    // Runs a step. Returns the rows of logits that hold something that is not a finite number.
    const std::vector<int32_t>& run(std::span<const Span> spans, const Pictures& pictures = {});
    // The same in parts: takes over a step, runs its instructions up to `end`, and tells the rows. In between buffers may be read
    // and written.
    void begin(std::span<const Span> spans, const Pictures& pictures);
    void advance(size_t end);
    const std::vector<int32_t>& bad_rows();
    // The rows of a plain buffer.
    float* rows(int buffer, int64_t& count, int64_t& width, int64_t& stride);
    const float* logits() const { return reinterpret_cast<const float*>(buffers_[static_cast<size_t>(logits_)].shared.data()); }
    int64_t logits_width() const { return buffers_[static_cast<size_t>(logits_)].width; }
    int64_t outputs() const { return step_.rows(Rows::Outputs); }

    int64_t buffer_bytes() const;
    size_t num_instructions() const { return instructions_.size(); }
    const Instruction& instruction(size_t index) const { return *instructions_[index]; }

    // Nanoseconds per instruction, summed over the steps since profiling was switched on.
    void profile(bool on);
    const std::vector<int64_t>& profile_ns() const { return profile_ns_; }

  private:
    void work(int worker, size_t first, size_t end);
    void check(const Pictures& pictures) const;
    int64_t expect_pair(int x, int out) const;
    const Buffer& expect(int buffer, int64_t width, bool prepared, const char* name) const;
    template <typename Kind, typename... Arguments>
    Kind& append(Arguments&&... arguments);
    Context context(int worker);
    void need_scratch(int64_t bytes);

    std::shared_ptr<Machine> machine_;
    std::shared_ptr<Cache> cache_;
    int64_t num_heads_;
    Limits limits_;
    Step step_;
    std::vector<std::vector<Sight>> sights_;      // of each group of layers: what its attention sees
    std::vector<Buffer> buffers_;
    std::vector<std::unique_ptr<Instruction>> instructions_;
    std::vector<const Prepare*> preparing_;       // per buffer: what fills it
    AlignedBytes scratch_;
    int64_t scratch_bytes_ = 0;
    AlignedBytes partials_;                       // of shared attention tiles
    std::unique_ptr<std::atomic<int32_t>[]> arrived_;
    std::unique_ptr<std::atomic<bool>[]> not_finite_;  // per row of logits
    std::vector<int32_t> bad_rows_;
    std::vector<std::unique_ptr<ExpertRoom>> rooms_;
    Ahead ahead_;
    Route* last_route_ = nullptr;
    bool only_if_seen_ = false;
    int64_t overlay_width_ = -1;
    int64_t crossing_heads_ = 0, crossing_width_ = 0, crossing_layers_ = 0;
    size_t next_ = 0;                             // instruction of the step that was begun
    int logits_ = -1;
    bool profiling_ = false;
    std::vector<int64_t> profile_ns_;
};

}  // namespace herd
