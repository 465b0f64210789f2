// Running a program. Building it: build.cpp.
#include "program/program.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "program/experts.h"
#include "program/instructions.h"

namespace herd {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Program::Program(std::shared_ptr<Machine> machine, std::shared_ptr<Cache> cache, int64_t num_heads, const Limits& limits)
    : machine_(std::move(machine)), cache_(std::move(cache)), num_heads_(num_heads), limits_(limits), step_(limits, machine_->pool.workers()),
      sights_(static_cast<size_t>(cache_->groups())) {
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

Program::~Program() = default;
Program::Program(Program&&) noexcept = default;

void Program::cache_changed() {
    // Fewer than four tiles and heads per worker are ever shared out, each with the splits of a sequence as long as the cache.
    const int64_t workers = machine_->pool.workers(), tiles = 4 * workers;
    // A sequence has no more blocks than there are pages (Step::set).
    const int64_t splits = divide_up(cache_->pages() * kPageTokens, kSplitTokens);
    arrived_ = std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(tiles));
    partials_ = AlignedBytes(workers == 1 ? 0 : tiles * splits * partial_floats(Step::kSharedRows, cache_->shape().padded_width) * 4);
}

Context Program::context(int worker) {
    return {*machine_, step_, buffers_, *cache_, scratch_.data() + worker * scratch_bytes_, partials_.data(), arrived_.get(), not_finite_.get(), worker, ahead_};
}

void Program::begin(std::span<const Span> spans, const Pictures& pictures) {
    if (logits_ < 0) refuse("the program is not finished");
    check(pictures);
    step_.set(spans, cache_->pages(), sights_);
    step_.set(pictures);
    const int64_t group = num_heads_ / cache_->kv_heads();
    step_.cut(std::max<int64_t>(1, machine_->kernels.tile_rows(cache_->shape()) / group), group, cache_->kv_heads());
    next_ = 0;
}

void Program::check(const Pictures& pictures) const {
    if (!pictures.picture_rows.empty() && (overlay_width_ < 0 || pictures.width != overlay_width_)) {
        refuse("features are " + std::to_string(pictures.width) + " wide; the program overlays " + std::to_string(overlay_width_));
    }
    for (const Seeing& part : pictures.seeing) {
        for (const auto& picture : part.pictures) {
            const int64_t heads = crossing_heads_, kv_heads = picture->kv_heads();
            if (heads == 0 || heads % kv_heads != 0 || kv_heads != part.pictures[0]->kv_heads() || picture->shape().head_width * heads != crossing_width_ ||
                picture->layers() < crossing_layers_ || picture->shape().format != part.pictures[0]->shape().format) {
                refuse("keys and values of a picture are not those that the program's layers cross over to");
            }
        }
    }
}

void Program::advance(size_t end) {
    if (end < next_ || end > instructions_.size()) refuse("instruction " + std::to_string(end) + " is not ahead");
    const size_t first = next_;
    machine_->pool.reset_phases(static_cast<int>(instructions_.size()));
    machine_->pool.run([this, first, end](int worker) { work(worker, first, end); });
    next_ = end;
}

const std::vector<int32_t>& Program::bad_rows() {
    bad_rows_.clear();
    for (int64_t row = 0; row < step_.rows(Rows::Outputs); ++row) {
        if (not_finite_[static_cast<size_t>(row)].exchange(false)) bad_rows_.push_back(static_cast<int32_t>(row));
    }
    return bad_rows_;
}

const std::vector<int32_t>& Program::run(std::span<const Span> spans, const Pictures& pictures) {
    begin(spans, pictures);
    advance(instructions_.size());
    return bad_rows();
}

void Program::work(int worker, size_t first, size_t end) {
    const Context own = context(worker);
    const bool timing = profiling_ && worker == 0;
    int64_t before = timing ? now_ns() : 0;
    for (size_t i = first; i < end; ++i) {
        const Instruction& instruction = *instructions_[i];
        if (instruction.only_if_seen && !step_.any_seen) continue;
        const int64_t pieces = instruction.pieces(own);
        if (pieces == 0) continue;
        if (worker == 0) ahead_.before(i);
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

float* Program::rows(int number, int64_t& count, int64_t& width, int64_t& stride) {
    if (number < 0 || static_cast<size_t>(number) >= buffers_.size() || buffers_[static_cast<size_t>(number)].own_rows >= 0) refuse("there is no plain buffer " + std::to_string(number));
    Buffer& buffer = buffers_[static_cast<size_t>(number)];
    count = step_.rows(buffer.rows);
    width = buffer.width;
    stride = buffer.stride / static_cast<int64_t>(sizeof(float));
    return buffer.shared.as<float>();
}

int64_t Program::buffer_bytes() const {
    int64_t bytes = scratch_.size() + partials_.size();
    for (const auto& room : rooms_) bytes += room->num_bytes();
    for (const Buffer& buffer : buffers_) bytes += buffer.shared.size() + buffer.own.size();
    return bytes;
}

void Program::profile(bool on) {
    profiling_ = on;
    if (on) std::fill(profile_ns_.begin(), profile_ns_.end(), 0);
}

}  // namespace herd
