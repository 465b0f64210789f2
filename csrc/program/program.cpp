// Building a program, checking what it is built from, and running it.
#include "program/program.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "program/instructions.h"

namespace herd {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Up to this many floats are prepared by every worker for itself: it costs less than waiting for each other.
constexpr int64_t kOwnFloats = 4096;

}  // namespace

Program::Program(std::shared_ptr<Machine> machine, std::shared_ptr<Cache> cache, int64_t num_heads, const Limits& limits)
    : machine_(std::move(machine)), cache_(std::move(cache)), num_heads_(num_heads), limits_(limits), step_(limits, machine_->pool.workers()) {
    if (limits.tokens < 1 || limits.outputs < 1 || limits.vocabulary < 1) refuse("tokens, outputs and vocabulary must be at least 1");
    if (num_heads < 1 || num_heads % cache_->kv_heads() != 0) {
        refuse("num_heads is " + std::to_string(num_heads) + "; it must be a multiple of kv_heads, " + std::to_string(cache_->kv_heads()));
    }
    not_finite_ = std::make_unique<std::atomic<bool>[]>(static_cast<size_t>(limits.outputs));
    bad_rows_.reserve(static_cast<size_t>(limits.outputs));
    const int64_t rows = std::max(machine_->kernels.tile_rows(cache_->shape()), num_heads / cache_->kv_heads());
    need_scratch(round_up(partial_floats(rows, cache_->shape().padded_width) * 4, 64) +
                 machine_->kernels.attention_scratch_bytes(cache_->shape(), rows));
    cache_changed();
}

const Buffer& Program::expect(int buffer, int64_t width, bool prepared, const char* name) const {
    if (buffer < 0 || static_cast<size_t>(buffer) >= buffers_.size()) refuse(std::string(name) + ": there is no buffer " + std::to_string(buffer));
    const Buffer& found = buffers_[static_cast<size_t>(buffer)];
    if (width >= 0 && found.width != width) {
        refuse(std::string(name) + " is " + std::to_string(found.width) + " wide, expected " + std::to_string(width));
    }
    if (prepared != (found.own_rows >= 0)) refuse(std::string(name) + (prepared ? " must be prepared rows" : " must be plain floats"));
    return found;
}

void Program::need_scratch(int64_t bytes) {
    if (bytes <= scratch_bytes_) return;
    scratch_bytes_ = round_up(bytes, 4096);
    scratch_ = AlignedBytes(scratch_bytes_ * machine_->pool.workers());
}

template <typename Kind, typename... Arguments>
Kind& Program::append(Arguments&&... arguments) {
    auto made = std::make_unique<Kind>(std::forward<Arguments>(arguments)...);
    Kind& kind = *made;
    instructions_.push_back(std::move(made));
    profile_ns_.resize(instructions_.size());
    return kind;
}

int Program::add_buffer(int64_t width, Rows rows) {
    if (width < 1) refuse("a buffer must be at least 1 wide");
    const int64_t stride = round_up(width * 4, 64);
    buffers_.push_back({width, rows, stride, AlignedBytes(stride * (rows == Rows::Tokens ? limits_.tokens : limits_.outputs)), {}, -1, Form::F32});
    preparing_.push_back(nullptr);
    return static_cast<int>(buffers_.size()) - 1;
}

int Program::add_prepared(Form form, int64_t width, Rows rows) {
    if (width < 1) refuse("a buffer must be at least 1 wide");
    const int64_t stride = machine_->linear.prepared_bytes(form, width), most = rows == Rows::Tokens ? limits_.tokens : limits_.outputs;
    const int64_t workers = machine_->pool.workers();
    const int64_t own = workers == 1 ? 0 : std::min(most, std::max<int64_t>(1, kOwnFloats / width));
    buffers_.push_back({width, rows, stride, AlignedBytes(stride * most), AlignedBytes(stride * own * workers), own, form});
    preparing_.push_back(nullptr);
    need_scratch(width * 4);
    return static_cast<int>(buffers_.size()) - 1;
}

void Program::embed(MatrixPtr table, int out) {
    expect(out, table->columns, false, "out");
    if (table->rows < limits_.vocabulary) refuse("table has " + std::to_string(table->rows) + " rows, expected the vocabulary of " + std::to_string(limits_.vocabulary));
    append<Embed>(std::move(table), out);
}

void Program::rotary(std::vector<double> frequencies, double magnitude, int out) {
    expect(out, 2 * static_cast<int64_t>(frequencies.size()), false, "out");
    append<Rotary>(std::move(frequencies), magnitude, out);
}

void Program::norm(int x, FloatsPtr weight, float eps, int out) {
    const int64_t width = expect(x, -1, false, "x").width;
    expect(out, width, false, "out");
    if (weight && weight->size() != width * 4) refuse("weight of the norm must be " + std::to_string(width) + " floats");
    append<Norm>(x, std::move(weight), eps, out);
}

void Program::prepare(int x, bool has_norm, FloatsPtr weight, float eps, int out) {
    const Buffer& from = expect(x, -1, false, "x");
    const Buffer& to = expect(out, from.width, true, "out");
    if (weight && weight->size() != from.width * 4) refuse("weight of the norm must be " + std::to_string(from.width) + " floats");
    if (from.rows == Rows::Outputs && to.rows == Rows::Tokens) refuse("rows of outputs cannot become rows of tokens");
    preparing_[static_cast<size_t>(out)] = &append<Prepare>(x, has_norm, std::move(weight), eps, from.rows != to.rows, out);
}

void Program::product(std::vector<Term> terms, After after, AttentionInputs inputs, const std::string& label) {
    std::vector<const Prepare*> prepares;
    if (terms.empty()) refuse("a product needs a term");
    for (const Term& term : terms) {
        const Buffer& input = expect(term.input, term.matrix->columns, true, "input");
        const Buffer& out = expect(term.out, term.matrix->rows, false, "out");
        if (input.form != machine_->linear.form(*term.matrix)) refuse("input is prepared in another form than the matrix multiplies");
        if (input.rows != out.rows || out.rows != buffers_[static_cast<size_t>(terms[0].out)].rows) refuse("rows of input and out differ");
        if (term.bias && term.bias->size() != term.matrix->rows * 4) refuse("bias must be " + std::to_string(term.matrix->rows) + " floats");
        const Prepare* prepare = preparing_[static_cast<size_t>(term.input)];
        if (prepare == nullptr) refuse("input " + std::to_string(term.input) + " is not prepared yet");
        prepares.push_back(prepare);
        need_scratch(machine_->linear.scratch_bytes(*term.matrix, out.rows == Rows::Tokens ? limits_.tokens : limits_.outputs));
    }
    if (after == After::SiluGate && (terms.size() != 2 || terms[0].matrix->rows != terms[1].matrix->rows)) refuse("a gate needs two terms of one width");
    if (after == After::CheckFinite && terms.size() != 1) refuse("logits are one term");
    if (after == After::AttentionInputs) {
        const int64_t head_width = cache_->shape().head_width, kv_width = cache_->kv_heads() * head_width;
        if (terms.size() != 3 || terms[0].matrix->rows != num_heads_ * head_width || terms[1].matrix->rows != kv_width || terms[2].matrix->rows != kv_width) {
            refuse("attention inputs are queries, keys and values of the heads of the cache");
        }
        if (expect(inputs.rotary, -1, false, "rotary").width > head_width) refuse("rotary is wider than a head");
        if (inputs.layer < 0 || inputs.layer >= cache_->layers()) refuse("the cache has no layer " + std::to_string(inputs.layer));
    }
    append<Product>(label, std::move(terms), std::move(prepares), after, inputs);
}

void Program::rotate(int x, int rotary, int out, int64_t heads) {
    const int64_t width = expect(x, -1, false, "x").width;
    expect(out, width, false, "out");
    if (heads < 1 || width % heads != 0 || expect(rotary, -1, false, "rotary").width > width / heads) refuse("heads do not fit the rows that are rotated");
    append<Rotate>(x, rotary, out, heads);
}

void Program::store(int k, int v, int64_t layer) {
    const int64_t width = cache_->kv_heads() * cache_->shape().head_width;
    expect(k, width, false, "k");
    expect(v, width, false, "v");
    if (layer < 0 || layer >= cache_->layers()) refuse("the cache has no layer " + std::to_string(layer));
    append<Store>(k, v, layer);
}

void Program::attention(int q, int64_t layer, float scale, int out) {
    const int64_t width = num_heads_ * cache_->shape().head_width;
    expect(q, width, false, "q");
    expect(out, width, false, "out");
    if (layer < 0 || layer >= cache_->layers()) refuse("the cache has no layer " + std::to_string(layer));
    append<Attention>(q, layer, scale, num_heads_ / cache_->kv_heads(), out);
}

void Program::silu_gate(int gate, int up, int out) {
    const int64_t width = expect(gate, -1, false, "gate").width;
    expect(up, width, false, "up");
    expect(out, width, false, "out");
    append<SiluGate>(gate, up, out);
}

void Program::add(int x, int y, int out) {
    const int64_t width = expect(x, -1, false, "x").width;
    expect(y, width, false, "y");
    expect(out, width, false, "out");
    append<Add>(x, y, out);
}

void Program::select(int x, int out) {
    expect(out, expect(x, -1, false, "x").width, false, "out");
    append<Select>(x, out);
}

void Program::check_finite(int x) {
    if (expect(x, -1, false, "x").rows != Rows::Outputs) refuse("x must have rows of outputs");
    append<CheckFinite>(x);
}

void Program::finish(int logits) {
    if (expect(logits, limits_.vocabulary, false, "logits").rows != Rows::Outputs) refuse("logits must have rows of outputs");
    logits_ = logits;
}

void Program::cache_changed() {
    // Fewer than four tiles and heads per worker are ever shared out, each with the splits of a sequence as long as the cache.
    const int64_t workers = machine_->pool.workers(), tiles = 4 * workers;
    const int64_t splits = divide_up(cache_->pages() * kPageTokens, kSplitTokens);
    arrived_ = std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(tiles));
    partials_ = AlignedBytes(workers == 1 ? 0 : tiles * splits * partial_floats(Step::kSharedRows, cache_->shape().padded_width) * 4);
}

Context Program::context(int worker) {
    return {*machine_, step_, buffers_, *cache_, scratch_.data() + worker * scratch_bytes_, partials_.data(), arrived_.get(), not_finite_.get(), worker};
}

const std::vector<int32_t>& Program::run(std::span<const Span> spans) {
    if (logits_ < 0) refuse("the program is not finished");
    step_.set(spans, cache_->pages());
    const int64_t group = num_heads_ / cache_->kv_heads();
    step_.cut(std::max<int64_t>(1, machine_->kernels.tile_rows(cache_->shape()) / group), group, cache_->kv_heads());
    machine_->pool.reset_phases(static_cast<int>(instructions_.size()));
    machine_->pool.run([this](int worker) { work(worker); });
    bad_rows_.clear();
    for (int64_t row = 0; row < step_.rows(Rows::Outputs); ++row) {
        if (not_finite_[static_cast<size_t>(row)].exchange(false)) bad_rows_.push_back(static_cast<int32_t>(row));
    }
    return bad_rows_;
}

void Program::work(int worker) {
    const Context own = context(worker);
    const bool timing = profiling_ && worker == 0;
    int64_t before = timing ? now_ns() : 0;
    for (size_t i = 0; i < instructions_.size(); ++i) {
        const Instruction& instruction = *instructions_[i];
        const int64_t pieces = instruction.pieces(own);
        if (pieces == 0) continue;
        int64_t mine = 0;
        while (true) {
            const int64_t piece = machine_->pool.next_piece(static_cast<int>(i), worker, pieces);
            if (piece < 0) break;
            if (mine++ == 0) instruction.begin(own);
            instruction.run(own, piece);
        }
        machine_->pool.finish_phase(static_cast<int>(i), mine, pieces);
        if (timing) {
            const int64_t after = now_ns();
            profile_ns_[i] += after - before;
            before = after;
        }
    }
}

int64_t Program::buffer_bytes() const {
    int64_t bytes = scratch_.size() + partials_.size();
    for (const Buffer& buffer : buffers_) bytes += buffer.shared.size() + buffer.own.size();
    return bytes;
}

void Program::profile(bool on) {
    profiling_ = on;
    if (on) std::fill(profile_ns_.begin(), profile_ns_.end(), 0);
}

}  // namespace herd
