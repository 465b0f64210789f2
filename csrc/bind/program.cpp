// Cache and programs - checks, signature, docstring; no arithmetic. What a program is: program/program.h.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <tuple>

#include "bind/bind.h"

namespace herd {

using namespace nb::literals;

CacheFormat cache_format(const std::string& name, int64_t head_width) {
    const bool is_integer = name == "int8" || name == "int4";
    if (is_integer && head_width > kMostHeadWidth) {
        throw std::invalid_argument("heads of " + std::to_string(head_width) + " are too wide for keys and values in " + name + "; it goes up to " +
                                    std::to_string(kMostHeadWidth));
    }
    if (is_integer) return name == "int8" ? CacheFormat::Int8 : CacheFormat::Int4;
    if (name == "float32") return CacheFormat::Float32;
    if (name == "float16") return CacheFormat::Float16;
    throw std::invalid_argument("keys and values cannot be kept as \"" + name + "\"; there are float32, float16, int8, int4");
}

namespace {

using SpanTuple = std::tuple<int64_t, std::vector<int64_t>, std::vector<int64_t>, int64_t>;
using UpdateTuple = std::optional<std::pair<std::shared_ptr<Matrix>, std::shared_ptr<Matrix>>>;
using Indices = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;
using Matrices = std::vector<std::shared_ptr<Matrix>>;
using SeeingTuple = std::tuple<int64_t, int64_t, std::vector<std::shared_ptr<KeyValues>>>;
using TermTuple = std::tuple<std::shared_ptr<Matrix>, std::optional<FloatsIn>, int, int, bool>;

FloatsPtr keep(const std::optional<FloatsIn>& floats, const char* name) {
    if (!floats) return nullptr;
    Dim D{"D"};
    expect(*floats, name).shape(D);
    auto kept = std::make_shared<AlignedBytes>(D.size * 4);
    std::memcpy(kept->data(), floats->data(), static_cast<size_t>(D.size) * 4);
    return kept;
}

After after_of(const std::string& name) {
    if (name == "nothing") return After::Nothing;
    if (name == "silu_gate") return After::SiluGate;
    if (name == "attention_inputs") return After::AttentionInputs;
    if (name == "check_finite") return After::CheckFinite;
    throw std::invalid_argument("after \"" + name + "\" is unknown; there are nothing, silu_gate, attention_inputs, check_finite");
}

// The program with what the bindings hold for it.
struct BoundProgram {
    std::shared_ptr<Machine> machine;
    Program program;
    std::optional<Indices> picture_rows{};
    std::optional<FloatsIn> features{};
    std::vector<Seeing> seeing{};
};

void product(BoundProgram& self, const std::vector<TermTuple>& tuples, const std::string& after, int rotary, int64_t layer,
             const std::string& label) {
    std::vector<Term> terms;
    for (const auto& [matrix, bias, input, out, accumulate] : tuples) terms.push_back({matrix, keep(bias, "bias"), input, out, accumulate});
    self.program.product(std::move(terms), after_of(after), {rotary, layer}, label);
}

void low_rank(BoundProgram& self, int x, const std::vector<UpdateTuple>& tuples, int out) {
    std::vector<Update> updates;
    for (const auto& update : tuples) updates.push_back(update ? Update{update->first, update->second} : Update{});
    self.program.low_rank(x, std::move(updates), out);
}

// What `begin` was given stays alive until the next step.
void take_pictures(BoundProgram& self, std::optional<Indices> picture_rows, std::optional<FloatsIn> features,
                   const std::vector<SeeingTuple>& seeing) {
    Dim I{"I"}, D{"D"};
    if (picture_rows.has_value() != features.has_value()) throw std::invalid_argument("picture_rows and features come together");
    if (picture_rows) {
        expect(*picture_rows, "picture_rows").shape(I);
        expect(*features, "features").shape(I, D);
    }
    self.picture_rows = std::move(picture_rows);
    self.features = std::move(features);
    self.seeing.clear();
    for (const auto& [row, count, pictures] : seeing) self.seeing.push_back({row, count, {pictures.begin(), pictures.end()}});
}

void begin(BoundProgram& self, const std::vector<SpanTuple>& tuples, std::optional<Indices> picture_rows, std::optional<FloatsIn> features,
           const std::vector<SeeingTuple>& seeing, const std::vector<int64_t>& adapters) {
    take_pictures(self, std::move(picture_rows), std::move(features), seeing);
    std::vector<Span> spans;
    spans.reserve(tuples.size());
    for (const auto& [start, tokens, pages, outputs] : tuples) spans.push_back({start, tokens, pages, outputs});
    if (!adapters.empty() && adapters.size() != spans.size()) throw std::invalid_argument("adapters are one for each span, or none");
    for (size_t i = 0; i < adapters.size(); ++i) spans[i].adapter = adapters[i];
    Pictures pictures;
    pictures.seeing = self.seeing;
    if (self.picture_rows) {
        pictures.picture_rows = {self.picture_rows->data(), self.picture_rows->size()};
        pictures.features = self.features->data();
        pictures.width = static_cast<int64_t>(self.features->shape(1));
    }
    self.program.begin(spans, pictures);
}

void advance(BoundProgram& self, size_t end) {
    nb::gil_scoped_release unlocked;
    const std::lock_guard lock(self.machine->mutex);
    self.program.advance(end);
}

std::vector<int32_t> step(BoundProgram& self, const std::vector<SpanTuple>& tuples, std::optional<Indices> picture_rows,
                          std::optional<FloatsIn> features, const std::vector<SeeingTuple>& seeing, const std::vector<int64_t>& adapters) {
    begin(self, tuples, std::move(picture_rows), std::move(features), seeing, adapters);
    advance(self, self.program.num_instructions());
    return self.program.bad_rows();
}

nb::ndarray<nb::memview, float> rows(nb::handle self, int buffer) {
    int64_t count = 0, width = 0, stride = 0;
    float* data = nb::cast<BoundProgram&>(self).program.rows(buffer, count, width, stride);
    const size_t shape[2] = {static_cast<size_t>(count), static_cast<size_t>(width)};
    const int64_t strides[2] = {stride, 1};
    return {data, 2, shape, self, strides};
}

nb::ndarray<nb::memview, float> logits(nb::handle self) {
    const auto& program = nb::cast<BoundProgram&>(self).program;
    const size_t shape[2] = {static_cast<size_t>(program.outputs()), static_cast<size_t>(program.logits_width())};
    const int64_t strides[2] = {round_up(program.logits_width(), 16), 1};
    return {const_cast<float*>(program.logits()), 2, shape, self, strides};
}

std::vector<std::tuple<std::string, double>> profile(const BoundProgram& self) {
    std::vector<std::tuple<std::string, double>> times;
    for (size_t i = 0; i < self.program.num_instructions(); ++i) {
        times.emplace_back(self.program.instruction(i).label(), static_cast<double>(self.program.profile_ns()[i]) * 1e-9);
    }
    return times;
}

nb::ndarray<nb::memview, uint8_t> page_of(nb::handle self, int64_t layer, int64_t page) {
    auto& cache = nb::cast<Cache&>(self);
    if (layer < 0 || layer >= cache.layers() || page < 0 || page >= cache.pages()) {
        throw std::invalid_argument("there is no page " + std::to_string(page) + " of layer " + std::to_string(layer));
    }
    const auto bytes = static_cast<size_t>(cache.kv_heads() * cache.shape().bytes());
    return {cache.at(layer, 0) + page * cache.page_stride(), {bytes}, self};
}

void bind_cache(nb::module_& m) {
    nb::class_<Cache>(m, "Cache", "Keys and values of pages of 64 tokens, in the format float32, float16, int8 or int4.")
        .def(nb::new_([](int64_t layers, int64_t kv_heads, int64_t head_width, const std::string& format, std::vector<int64_t> groups) {
                 if (layers < 1 || kv_heads < 1 || head_width < 1) throw std::invalid_argument("layers, kv_heads and head_width must be at least 1");
                 return std::make_shared<Cache>(layers, kv_heads, head_width, cache_format(format, head_width), std::move(groups));
             }),
             "layers"_a, "kv_heads"_a, "head_width"_a, "format"_a, "groups"_a = std::vector<int64_t>{},
             "`groups`: of each layer the number of its group, whose layers share a page; none: all are in one.")
        .def_prop_ro("page_bytes", &Cache::page_bytes, "Bytes of one page over the layers of a group.")
        .def_prop_ro("num_pages", &Cache::pages)
        .def("page", [](nb::handle self, int64_t layer, int64_t page) { return page_of(self, layer, page); }, "layer"_a, "page"_a,
             nb::sig("def page(self, layer: int, page: int) -> memoryview"),
             "One layer of a page as bytes: per kv head keys, then values, laid out as kernels/kernels.h says. A view that `allocate` invalidates.")
        .def(
            "allocate",
            [](Cache& cache, int64_t pages) {
                if (pages < 0 || pages > INT32_MAX) {
                     throw std::invalid_argument("num_pages is " + std::to_string(pages) + "; it must be from 0 to 2^31 - 1");
                 }
                cache.allocate(pages);
            },
            "num_pages"_a, "Room for pages 0 .. num_pages-1; what was cached is dropped.");
}

Rows rows_of(bool outputs) { return outputs ? Rows::Outputs : Rows::Tokens; }

}  // namespace

Sight sight_of(const std::string& name, int64_t tokens) {
    if (name == "past") return {};
    if (name == "chunks") return {Sight::Kind::Chunks, tokens};
    if (name == "sliding") return {Sight::Kind::Sliding, tokens};
    throw std::invalid_argument("window \"" + name + "\" is unknown; there are past, chunks, sliding");
}

void bind_program(nb::module_& m) {
    bind_cache(m);
    nb::class_<BoundProgram>(m, "Program", "A flat list of instructions over buffers made once; `step` runs it with the GIL released.")
        .def(nb::new_([](std::shared_ptr<Machine> machine, std::shared_ptr<Cache> cache, int64_t num_heads, int64_t tokens, int64_t outputs,
                         int64_t vocabulary, int64_t embeddings, int64_t adapters) {
                 const Limits limits{tokens, outputs, vocabulary, embeddings, adapters};
                 return std::make_shared<BoundProgram>(machine, Program(machine, cache, num_heads, limits));
             }),
             "machine"_a, "cache"_a, "num_heads"_a, "max_tokens"_a, "max_outputs"_a, "vocab_size"_a, "num_embeddings"_a = 0, "num_adapters"_a = 0)
        .def("buffer", [](BoundProgram& self, int64_t width, bool outputs) { return self.program.add_buffer(width, rows_of(outputs)); },
             "width"_a, "outputs"_a, "A buffer of float32 rows, one per token or per row of logits. Returns its number.")
        .def("prepared", [](BoundProgram& self, const Matrix& matrix, bool outputs) {
                 return self.program.add_prepared(self.machine->linear.form(matrix), matrix.columns, rows_of(outputs));
             },
             "matrix"_a, "outputs"_a, "A buffer of rows in the form that `matrix` multiplies. Returns its number.")
        .def("form", [](const BoundProgram& self, const Matrix& matrix) { return static_cast<int>(self.machine->linear.form(matrix)); },
             "matrix"_a, "A number that is equal for matrices that multiply the same prepared rows.")
        .def(
             "embed",
             [](BoundProgram& self, std::shared_ptr<Matrix> table, int out, Aliases aliases) { self.program.embed(table, out, std::move(aliases)); },
             "table"_a, "out"_a, "aliases"_a = Aliases{},
             "out = rows of `table` [V, D] at the step's tokens; a token in `aliases` reads the row beside it.")
        .def(
             "rotary",
             [](BoundProgram& self, std::vector<double> frequencies, double magnitude, int out) {
                 self.program.rotary(std::move(frequencies), magnitude, out);
             },
             "frequencies"_a, "magnitude"_a, "out"_a, "out = cosines, then sines, of the step's positions times the frequencies.")
        .def("norm", [](BoundProgram& self, int x, std::optional<FloatsIn> weight, float eps, int out, int64_t heads) {
                 self.program.norm(x, keep(weight, "weight"), eps, heads, out);
             },
             "x"_a, "weight"_a.none(), "eps"_a, "out"_a, "num_heads"_a = 1, "out = rms_norm(x) * weight, of each head by itself.")
        .def("temper", [](BoundProgram& self, int x, double floor, double scale, int out) { self.program.temper(x, floor, scale, out); },
             "x"_a, "floor"_a, "scale"_a, "out"_a, "out = x * (1 + scale * ln(floor((position + 1) / floor) + 1)).")
        .def("prepare", [](BoundProgram& self, int x, int out) { self.program.prepare(x, false, nullptr, 0.0f, out); },
             "x"_a, "out"_a, "out = x in the form of the prepared buffer; rows of outputs are selected from rows of tokens.")
        .def("norm_prepare", [](BoundProgram& self, int x, std::optional<FloatsIn> weight, float eps, int out) {
                 self.program.prepare(x, true, keep(weight, "weight"), eps, out);
             },
             "x"_a, "weight"_a.none(), "eps"_a, "out"_a, "As `prepare`, of rms_norm(x) * weight.")
        .def("product", &product, "terms"_a, "after"_a = "nothing", "rotary"_a = -1, "layer"_a = -1, "label"_a = "product",
             "out (+)= input w^T + bias for each term (matrix, bias or None, input, out, accumulate). `after`: silu_gate makes the first term's out "
             "silu(first) * second; attention_inputs rotates terms 0 and 1 and stores terms 1 and 2 in the cache; check_finite looks for NaN.")
        .def("low_rank", &low_rank, "x"_a, "updates"_a, "out"_a,
             "out += (x down^T) up^T in rows of spans with an adapter; `updates` has (down, up), float32, or None for each adapter.")
        .def("rotate", [](BoundProgram& self, int x, int rotary, int out, int64_t heads) { self.program.rotate(x, rotary, out, heads); },
             "x"_a, "rotary"_a, "out"_a, "num_heads"_a, "out = x with the interleaved pairs of each head rotated.")
        .def("store", [](BoundProgram& self, int k, int v, int64_t layer) { self.program.store(k, v, layer); },
             "k"_a, "v"_a, "layer"_a, "Writes keys and values at this step's positions of the cache.")
        .def("attention", [](BoundProgram& self, int q, int64_t layer, float scale, int out, const std::string& window, int64_t tokens) {
                 self.program.attention(q, layer, scale, out, sight_of(window, tokens));
             },
             "q"_a, "layer"_a, "scale"_a, "out"_a, "window"_a = "past", "window_tokens"_a = 0,
             "out = causal softmax(scale q k^T) v over what `window` lets through of the cache.")
        .def(
             "cross_attention",
             [](BoundProgram& self, int q, int64_t layer, int64_t heads, float scale, int out) {
                 self.program.cross_attention(q, layer, heads, scale, out);
             },
             "q"_a, "layer"_a, "num_heads"_a, "scale"_a, "out"_a,
             "out = softmax(scale q k^T) v over crossing layer `layer` of the pictures that a row sees; else 0.")
        .def("sigmoid_gate", [](BoundProgram& self, int x, int gate, int out) { self.program.sigmoid_gate(x, gate, out); }, "x"_a, "gate"_a, "out"_a,
             "out = x * sigmoid(gate).")
        .def("soft_cap", [](BoundProgram& self, int x, float factor, float cap, int out) { self.program.soft_cap(x, factor, cap, out); },
             "x"_a, "factor"_a, "cap"_a, "out"_a, "out = cap * tanh(factor * x / cap).")
        .def(
             "gated_add",
             [](BoundProgram& self, int x, int y, float factor, bool if_seen, int out) { self.program.gated_add(x, y, factor, if_seen, out); },
             "x"_a, "y"_a, "factor"_a, "if_seen"_a, "out"_a, "out = x + factor * y; with `if_seen` only in rows that see a picture.")
        .def("overlay", [](BoundProgram& self, int x, int out) { self.program.overlay(x, out); }, "x"_a, "out"_a,
             "out = x with the rows of pictures replaced by the step's features.")
        .def("copy", [](BoundProgram& self, int x, int out) { self.program.copy(x, out); }, "x"_a, "out"_a, "out = x.")
        .def("expert_room", [](BoundProgram& self, const Matrix& gate, const Matrix& up, const Matrix& down, int64_t experts, int64_t chosen) {
                 return self.program.add_expert_room(gate, up, down, experts, chosen);
             },
             "gate"_a, "up"_a, "down"_a, "num_experts"_a, "num_chosen"_a, "Where experts of these shapes and forms compute. Returns its number.")
        .def("experts", [](BoundProgram& self, int x, int scores, const Matrices& gates, const Matrices& ups, const Matrices& downs, int room,
                            int out, const std::shared_ptr<Matrix>& router) {
                 const auto constant = [](const Matrices& matrices) { return std::vector<MatrixPtr>(matrices.begin(), matrices.end()); };
                 self.program.experts(x, scores, constant(gates), constant(ups), constant(downs), router, room, out);
             },
             "x"_a, "scores"_a, "gates"_a, "ups"_a, "downs"_a, "room"_a, "out"_a, "router"_a.none() = nb::none(),
             "out = the sum of each row's chosen experts. `router`: what made the scores, for `read_ahead` to guess by.")
        .def("only_if_seen", [](BoundProgram& self, bool on) { self.program.only_if_seen(on); }, "on"_a,
             "Whether the instructions that follow are left out of steps in which no token sees a picture.")
        .def("silu_gate", [](BoundProgram& self, int gate, int up, int out) { self.program.silu_gate(gate, up, out); }, "gate"_a, "up"_a, "out"_a,
             "out = silu(gate) * up.")
        .def("add", [](BoundProgram& self, int x, int y, int out) { self.program.add(x, y, out); }, "x"_a, "y"_a, "out"_a, "out = x + y.")
        .def("select", [](BoundProgram& self, int x, int out) { self.program.select(x, out); }, "x"_a, "out"_a,
             "out = the rows of x whose logits are wanted.")
        .def("check_finite", [](BoundProgram& self, int x) { self.program.check_finite(x); }, "logits"_a,
             "Looks for NaN and infinities in rows of logits.")
        .def("finish", [](BoundProgram& self, int logits) { self.program.finish(logits); }, "logits"_a, "Says which buffer holds the logits.")
        .def("cache_changed", [](BoundProgram& self) { self.program.cache_changed(); }, "To be called after the cache was given other pages.")
        .def("read_ahead", [](BoundProgram& self, int64_t keep, int64_t window) {
                 if (keep < 0 || window < 0) throw std::invalid_argument("keep and window must be at least 0");
                 self.program.read_ahead(keep, window);
             },
             "keep"_a, "window"_a,
             "Weights are mapped and memory does not hold them: they are asked for `window` bytes ahead of their use, and `keep` bytes of them stay.")
        .def("step", &step, "spans"_a, "picture_rows"_a = nb::none(), "features"_a = nb::none(), "seeing"_a = std::vector<SeeingTuple>{},
             "adapters"_a = std::vector<int64_t>{},
             "One forward of spans (start, tokens, pages, num_outputs), pages block by block, in each one of every group of layers; `adapters`: the number of each one's, or -1. "
             "Rows `picture_rows` [I] are overlaid with `features` [I, D]; `seeing`: (row, count, pictures) for rows "
             "that see pictures. Returns the rows of logits that are not finite. ValueError for impossible spans, before anything is written.")
        .def("begin", &begin, "spans"_a, "picture_rows"_a = nb::none(), "features"_a = nb::none(), "seeing"_a = std::vector<SeeingTuple>{},
             "adapters"_a = std::vector<int64_t>{}, "As `step`, but runs nothing yet.")
        .def("advance", &advance, "end"_a, "Runs the instructions of the step that was begun up to number `end`.")
        .def("bad_rows", [](BoundProgram& self) { return self.program.bad_rows(); }, "The rows of logits of the step that are not finite.")
        .def("rows", [](nb::handle self, int buffer) { return rows(self, buffer); }, "buffer"_a, nb::sig("def rows(self, buffer: int) -> memoryview"),
             "The step's rows of a plain buffer: a view, to read and to write.")
        .def("logits", [](nb::handle self) { return logits(self); }, nb::sig("def logits(self) -> memoryview"),
             "The logits [R, V] of the last step, float32: a view that the next step overwrites.")
        .def_prop_ro("buffer_bytes", [](const BoundProgram& self) { return self.program.buffer_bytes(); })
        .def_prop_ro("num_instructions", [](const BoundProgram& self) { return self.program.num_instructions(); })
        .def("profile", [](BoundProgram& self, bool on) { self.program.profile(on); }, "on"_a,
             "Switches timing of instructions on (from zero) or off.")
        .def("profile_seconds", &profile, "(label, seconds) of every instruction since profiling was switched on.");
}

}  // namespace herd
