// Building a program: every instruction's arguments are checked here, so that running needs no checks.
#include <algorithm>
#include <stdexcept>

#include "program/experts.h"
#include "program/instructions.h"
#include "program/low_rank.h"
#include "program/program.h"

namespace herd {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

// Up to this many floats are prepared by every worker for itself: it costs less than waiting for each other.
constexpr int64_t kOwnFloats = 4096;

}  // namespace

const Buffer& Program::expect(int buffer, int64_t width, bool prepared, const char* name) const {
    if (buffer < 0 || static_cast<size_t>(buffer) >= buffers_.size()) refuse(std::string(name) + ": there is no buffer " + std::to_string(buffer));
    const Buffer& found = buffers_[static_cast<size_t>(buffer)];
    if (width >= 0 && found.width != width) {
        refuse(std::string(name) + " is " + std::to_string(found.width) + " wide, expected " + std::to_string(width));
    }
    if (prepared != (found.own_rows >= 0)) refuse(std::string(name) + (prepared ? " must be prepared rows" : " must be plain floats"));
    return found;
}

// x and out: plain floats of one width and of the same rows. Returns the width.
int64_t Program::expect_pair(int x, int out) const {
    const Buffer& from = expect(x, -1, false, "x");
    if (expect(out, from.width, false, "out").rows != from.rows) refuse("rows of x and out differ");
    return from.width;
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
    kind.only_if_seen = only_if_seen_;
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

void Program::embed(MatrixPtr table, int out, Aliases aliases) {
    expect(out, table->columns, false, "out");
    if (table->rows < limits_.ids()) refuse("table has " + std::to_string(table->rows) + " rows, expected the vocabulary of " + std::to_string(limits_.ids()));
    for (const auto& [token, row] : aliases) {
        if (row < 0 || row >= table->rows) refuse("token " + std::to_string(token) + " stands for row " + std::to_string(row) + "; table has " + std::to_string(table->rows));
    }
    append<Embed>(std::move(table), std::move(aliases), out);
}

void Program::rotary(std::vector<double> frequencies, double magnitude, int out) {
    expect(out, 2 * static_cast<int64_t>(frequencies.size()), false, "out");
    append<Rotary>(std::move(frequencies), magnitude, out);
}

void Program::norm(int x, FloatsPtr weight, float eps, int64_t heads, int out) {
    const int64_t width = expect_pair(x, out);
    if (heads < 1 || width % heads != 0) refuse("rows " + std::to_string(width) + " wide have no " + std::to_string(heads) + " heads");
    if (weight && weight->size() != width / heads * 4) refuse("weight of the norm must be " + std::to_string(width / heads) + " floats");
    append<Norm>(x, std::move(weight), eps, heads, out);
}

void Program::temper(int x, double floor, double scale, int out) {
    expect_pair(x, out);
    if (!(floor > 0)) refuse("floor must be above zero");
    append<Temper>(x, floor, scale, out);
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
    for (const Term& term : terms) ahead_.add(instructions_.size(), *term.matrix);
    append<Product>(label, std::move(terms), std::move(prepares), after, inputs);
}

void Program::low_rank(int x, std::vector<Update> updates, int out) {
    const Buffer& from = expect(x, -1, false, "x");
    const Buffer& to = expect(out, -1, false, "out");
    if (from.rows != Rows::Tokens || to.rows != Rows::Tokens) refuse("adapters are for rows of tokens");
    if (static_cast<int64_t>(updates.size()) != limits_.adapters) {
        refuse(std::to_string(updates.size()) + " updates for " + std::to_string(limits_.adapters) + " adapters");
    }
    for (const Update& update : updates) {
        if (!update.down && !update.up) continue;
        if (!update.down || !update.up || update.down->storage != Storage::F32 || update.up->storage != Storage::F32) refuse("an update is two float32 matrices");
        if (update.down->columns != from.width || update.up->rows != to.width || update.down->rows != update.up->columns) refuse("an update does not fit x and out");
        need_scratch(LowRank::scratch_bytes(machine_->linear, update));
    }
    append<LowRank>(x, std::move(updates), out);
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

void Program::attention(int q, int64_t layer, float scale, int out, Sight sight) {
    const int64_t width = num_heads_ * cache_->shape().head_width;
    expect(q, width, false, "q");
    expect(out, width, false, "out");
    if (layer < 0 || layer >= cache_->layers()) refuse("the cache has no layer " + std::to_string(layer));
    if (sight.kind != Sight::Kind::Past && sight.tokens < 1) refuse("a window has at least one token");
    sights_[static_cast<size_t>(cache_->group(layer))].push_back(sight);
    append<Attention>(q, layer, scale, num_heads_ / cache_->kv_heads(), sight, out);
}

void Program::cross_attention(int q, int64_t layer, int64_t heads, float scale, int out) {
    const int64_t width = expect_pair(q, out);
    if (heads < 1 || width % heads != 0) refuse("rows " + std::to_string(width) + " wide have no " + std::to_string(heads) + " heads");
    if (layer < 0) refuse("crossing layers are numbered from 0");
    if (buffers_[static_cast<size_t>(q)].rows != Rows::Tokens) refuse("queries must have rows of tokens");
    if (crossing_heads_ != 0 && (crossing_heads_ != heads || crossing_width_ != width)) refuse("all layers that cross over have the same heads");
    crossing_heads_ = heads;
    crossing_width_ = width;
    crossing_layers_ = std::max(crossing_layers_, layer + 1);
    const int64_t head_width = width / heads;
    for (const CacheFormat format : {CacheFormat::Float32, CacheFormat::Int8, CacheFormat::Int4}) {
        need_scratch(whole_scratch_bytes(machine_->kernels, PageShape::of(head_width, format), std::max<int64_t>(60, heads)));
    }
    append<CrossAttention>(q, layer, heads, scale, out);
}

void Program::silu_gate(int gate, int up, int out) {
    expect(up, expect_pair(gate, out), false, "up");
    append<SiluGate>(gate, up, out);
}

void Program::add(int x, int y, int out) {
    expect(y, expect_pair(x, out), false, "y");
    append<Add>(x, y, out);
}

void Program::sigmoid_gate(int x, int gate, int out) {
    expect(gate, expect_pair(x, out), false, "gate");
    append<SigmoidGate>(x, gate, out);
}

void Program::soft_cap(int x, float factor, float cap, int out) {
    expect_pair(x, out);
    if (!(cap > 0)) refuse("cap must be above zero");
    append<SoftCap>(x, factor, cap, out);
}

void Program::gated_add(int x, int y, float factor, bool if_seen, int out) {
    expect(y, expect_pair(x, out), false, "y");
    if (if_seen && buffers_[static_cast<size_t>(x)].rows != Rows::Tokens) refuse("x must have rows of tokens");
    append<GatedAdd>(x, y, factor, if_seen, out);
}

void Program::overlay(int x, int out) {
    const int64_t width = expect_pair(x, out);
    if (buffers_[static_cast<size_t>(x)].rows != Rows::Tokens) refuse("x must have rows of tokens");
    if (overlay_width_ >= 0 && overlay_width_ != width) refuse("all overlays are of one width");
    overlay_width_ = width;
    append<Overlay>(x, out);
}

void Program::copy(int x, int out) {
    expect_pair(x, out);
    append<Copy>(x, out);
}

int Program::add_expert_room(const Matrix& gate, const Matrix& up, const Matrix& down, int64_t experts, int64_t chosen) {
    if (experts < 1 || chosen < 1 || chosen > experts) refuse(std::to_string(chosen) + " of " + std::to_string(experts) + " experts cannot be chosen");
    if (gate.rows != up.rows || gate.columns != up.columns || down.rows != gate.columns || down.columns != gate.rows) refuse("gate, up and down do not fit together");
    auto room = std::make_unique<ExpertRoom>();
    const LinearKernels& linear = machine_->linear;
    room->num_experts = experts;
    room->num_chosen = chosen;
    room->width = gate.columns;
    room->ffn_width = gate.rows;
    room->gate_form = linear.form(gate);
    room->up_form = linear.form(up);
    room->down_form = linear.form(down);
    const int64_t entries = limits_.tokens * chosen;
    room->starts.resize(static_cast<size_t>(experts) + 1);
    room->active.reserve(static_cast<size_t>(experts));
    room->rows.resize(static_cast<size_t>(entries));
    room->factors.resize(static_cast<size_t>(entries));
    room->entries.resize(static_cast<size_t>(entries));
    const auto rows = [entries](int64_t stride) { return ExpertRoom::Rows{stride, AlignedBytes(stride * entries)}; };
    room->gate_input = rows(linear.prepared_bytes(room->gate_form, gate.columns));
    if (room->up_form != room->gate_form) room->up_input = rows(linear.prepared_bytes(room->up_form, gate.columns));
    room->gate = rows(round_up(gate.rows * 4, 64));
    room->up = rows(round_up(gate.rows * 4, 64));
    room->down_input = rows(linear.prepared_bytes(room->down_form, gate.rows));
    room->out = rows(round_up(gate.columns * 4, 64));
    need_scratch(gate.columns * 4);
    rooms_.push_back(std::move(room));
    return static_cast<int>(rooms_.size()) - 1;
}

void Program::experts(int x, int scores, std::vector<MatrixPtr> gates, std::vector<MatrixPtr> ups, std::vector<MatrixPtr> downs, MatrixPtr router, int room_number,
                      int out) {
    if (room_number < 0 || static_cast<size_t>(room_number) >= rooms_.size()) refuse("there is no room " + std::to_string(room_number) + " for experts");
    ExpertRoom& room = *rooms_[static_cast<size_t>(room_number)];
    if (expect_pair(x, out) != room.width) refuse("x is not as wide as the experts");
    const auto& scored = expect(scores, room.num_experts, false, "scores");
    if (scored.rows != Rows::Tokens || buffers_[static_cast<size_t>(x)].rows != Rows::Tokens) refuse("experts take rows of tokens");
    const auto check = [&](const std::vector<MatrixPtr>& matrices, int64_t rows, int64_t columns, Form form, const char* name) {
        if (static_cast<int64_t>(matrices.size()) != room.num_experts) refuse(std::string(name) + " must have a matrix for each expert");
        for (const MatrixPtr& matrix : matrices) {
            if (matrix->rows != rows || matrix->columns != columns || machine_->linear.form(*matrix) != form) refuse(std::string(name) + " has matrices of another shape than the room");
            need_scratch(machine_->linear.scratch_bytes(*matrix, limits_.tokens));
        }
    };
    check(gates, room.ffn_width, room.width, room.gate_form, "gates");
    check(ups, room.ffn_width, room.width, room.up_form, "ups");
    check(downs, room.width, room.ffn_width, room.down_form, "downs");
    if (router && (router->rows != room.num_experts || router->columns != room.width)) refuse("the router is of another shape than the room");
    Route& route = append<Route>(x, scores, room, Route::Weights{gates, ups, downs});
    if (router) {
        need_scratch(Route::scratch_bytes(machine_->linear, *router));
        if (last_route_ != nullptr) last_route_->guess(route, std::move(router));
    }
    last_route_ = &route;
    append<PrepareEntries>(x, room);
    append<ExpertProduct>(std::move(gates), std::move(ups), room);
    append<PrepareHidden>(room);
    append<ExpertProduct>(std::move(downs), room);
    append<SumEntries>(room, out);
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

}  // namespace herd
