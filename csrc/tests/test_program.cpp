// A small model as a program, without Python: the same bits for any number of threads, any cutting of the prompt and any
// company; refusals before anything is written; a value that is no number is reported.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "program/program.h"
#include "tests/check.h"

using namespace herd;

namespace {

constexpr int64_t kWidth = 64, kHeads = 4, kKvHeads = 2, kHeadWidth = 16, kFfn = 96, kVocabulary = 50, kLayers = 2, kPages = 12;

MatrixPtr matrix(Machine& machine, int64_t rows, int64_t columns, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(columns)));
    std::vector<float> values(static_cast<size_t>(rows * columns));
    for (float& value : values) value = normal(random);
    auto made = std::make_shared<Matrix>();
    made->storage = Storage::F32;
    made->rows = rows;
    made->columns = columns;
    made->panels = panels_of(rows);
    made->data = AlignedBytes(machine.linear.packed_bytes(Storage::F32, Arithmetic::Int8, rows, columns));
    machine.linear.pack(Storage::F32, Arithmetic::Int8, reinterpret_cast<const uint8_t*>(values.data()), rows, columns, made->data.data(), 0, made->panels);
    return made;
}

FloatsPtr ones(int64_t count, float value = 1.0f) {
    auto made = std::make_shared<AlignedBytes>(count * 4);
    std::fill_n(made->as<float>(), count, value);
    return made;
}

struct Model {
    std::shared_ptr<Machine> machine;
    std::shared_ptr<Cache> cache;
    Program program;

    Model(int workers, Isa isa, float last_norm = 1.0f)
        : machine(std::make_shared<Machine>(workers, isa)),
          cache(std::make_shared<Cache>(kLayers, kKvHeads, kHeadWidth, CacheFormat::Float16)),
          program(machine, cache, kHeads, {200, 40, kVocabulary}) {
        const Rows tokens = Rows::Tokens, outputs = Rows::Outputs;
        const Form form = machine->linear.form(*matrix(*machine, 16, kWidth, 0));
        const int x = program.add_buffer(kWidth, tokens), rotary = program.add_buffer(kHeadWidth, tokens);
        const int q = program.add_buffer(kWidth, tokens), k = program.add_buffer(32, tokens), v = program.add_buffer(32, tokens);
        const int gate = program.add_buffer(kFfn, tokens), up = program.add_buffer(kFfn, tokens), logits = program.add_buffer(kVocabulary, outputs);
        const int wide = program.add_prepared(form, kFfn, tokens), last = program.add_prepared(form, kWidth, outputs);
        program.embed(matrix(*machine, kVocabulary, kWidth, 1), x);
        program.rotary({1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003}, 1.0, rotary);
        for (int64_t layer = 0; layer < kLayers; ++layer) {
            const auto seed = static_cast<uint32_t>(10 + 10 * layer);
            const auto prepared = [&] { return program.add_prepared(form, kWidth, tokens); };
            const int first = prepared(), attended = prepared(), second = prepared(), y = program.add_buffer(kWidth, tokens);
            program.prepare(x, true, ones(kWidth), 1e-5f, first);
            program.product({{matrix(*machine, kWidth, kWidth, seed), nullptr, first, q, false},
                             {matrix(*machine, 32, kWidth, seed + 1), ones(32, 0.1f), first, k, false},
                             {matrix(*machine, 32, kWidth, seed + 2), nullptr, first, v, false}},
                            After::AttentionInputs, {rotary, layer}, "q, k, v");
            program.attention(q, layer, 0.25f, y);
            program.prepare(y, false, nullptr, 0.0f, attended);
            program.product({{matrix(*machine, kWidth, kWidth, seed + 3), nullptr, attended, x, true}}, After::Nothing, {-1, -1}, "out");
            program.prepare(x, true, ones(kWidth), 1e-5f, second);
            program.product({{matrix(*machine, kFfn, kWidth, seed + 4), nullptr, second, gate, false}, {matrix(*machine, kFfn, kWidth, seed + 5), nullptr, second, up, false}},
                            After::SiluGate, {-1, -1}, "gate, up");
            program.prepare(gate, false, nullptr, 0.0f, wide);
            program.product({{matrix(*machine, kWidth, kFfn, seed + 6), nullptr, wide, x, true}}, After::Nothing, {-1, -1}, "down");
        }
        program.prepare(x, true, ones(kWidth, last_norm), 1e-5f, last);
        program.product({{matrix(*machine, kVocabulary, kWidth, 2), nullptr, last, logits, false}}, After::CheckFinite, {-1, -1}, "head");
        program.finish(logits);
        cache->allocate(kPages);
        program.cache_changed();
    }

    // Rows [outputs][kVocabulary] of the last step.
    std::vector<float> rows() const {
        std::vector<float> all;
        const int64_t stride = round_up(kVocabulary, 16);
        for (int64_t row = 0; row < program.outputs(); ++row) all.insert(all.end(), program.logits() + row * stride, program.logits() + row * stride + kVocabulary);
        return all;
    }
};

std::vector<int64_t> text(int64_t length) {
    std::vector<int64_t> tokens;
    for (int64_t i = 0; i < length; ++i) tokens.push_back((i * 31 + 7) % kVocabulary);
    return tokens;
}

// The last token's logits after a prompt in pieces of `chunk`, perhaps with a second sequence in every step.
std::vector<float> last_logits(Model& model, int64_t length, int64_t chunk, bool in_company) {
    const std::vector<int64_t> tokens = text(length), pages{5, 2, 7, 0, 9, 4}, other{17}, others{8, 1, 3, 6, 10, 11};
    std::vector<float> last;
    for (int64_t start = 0; start < length; start += chunk) {
        const int64_t count = std::min(chunk, length - start);
        std::vector<Span> spans{{start, std::span(tokens).subspan(static_cast<size_t>(start), static_cast<size_t>(count)), pages, 1}};
        if (in_company) spans.insert(spans.begin(), {start / chunk, other, others, 1});
        CHECK(model.program.run(spans).empty(), "logits are not finite");
        const std::vector<float> rows = model.rows();
        last.assign(rows.end() - kVocabulary, rows.end());
    }
    return last;
}

void bits_do_not_depend_on_threads_chunks_or_company(Isa isa) {
    Model first(1, isa);
    for (const int64_t length : {1, 65, 150}) {
        const std::vector<float> expected = last_logits(first, length, length, false);
        for (const int workers : {1, 2, 3}) {
            Model model(workers, isa);
            for (const int64_t chunk : {int64_t{1}, int64_t{7}, int64_t{64}, length}) {
                for (const bool in_company : {false, true}) {
                    const std::vector<float> found = last_logits(model, length, std::min(chunk, length), in_company);
                    CHECK(std::memcmp(found.data(), expected.data(), expected.size() * 4) == 0, "%s: length %ld, %d workers, chunk %ld, company %d", isa_name(isa),
                          static_cast<long>(length), workers, static_cast<long>(chunk), in_company);
                }
            }
        }
    }
}

// Long enough for several splits: they are shared out and folded.
void a_long_sequence_is_split_without_other_bits(Isa isa) {
    Model one(1, isa), three(3, isa);
    const std::vector<float> expected = last_logits(one, 380, 190, false);
    CHECK(last_logits(three, 380, 190, false) == expected, "%s: prompt", isa_name(isa));
    CHECK(last_logits(three, 380, 1, false) == expected, "%s: token by token", isa_name(isa));
}

void refuses(Model& model, const Span& span, const char* part) {
    try {
        model.program.run(std::span(&span, 1));
        CHECK(false, "not refused: %s", part);
    } catch (const std::invalid_argument& problem) {
        CHECK(std::strstr(problem.what(), part) != nullptr, "%s", problem.what());
    }
}

void impossible_spans_are_refused_by_name() {
    Model model(2, Isa::Portable);
    const std::vector<int64_t> good{1, 2, 3}, bad{1, kVocabulary, 3}, negative{-1}, many(201, 1), page{0}, no_page{kPages};
    const std::vector<int64_t> pages{0, 1, 2, 3};
    refuses(model, {0, bad, page, 1}, "outside the vocabulary");
    refuses(model, {0, negative, page, 1}, "outside the vocabulary");
    refuses(model, {0, good, no_page, 1}, "names page");
    refuses(model, {63, good, page, 1}, "needs 2 pages");
    refuses(model, {0, good, page, 4}, "logits");
    refuses(model, {-1, good, page, 1}, "position");
    refuses(model, {0, {}, page, 0}, "no tokens");
    refuses(model, {0, many, pages, 1}, "201 tokens");
    refuses(model, {0, std::span(many).first(50), page, 41}, "41 rows");
}

void a_logit_that_is_no_number_is_reported() {
    Model model(2, Isa::Portable, std::numeric_limits<float>::infinity());
    const std::vector<int64_t> tokens{1, 2, 3}, pages{0};
    const Span span{0, tokens, pages, 2};
    const std::vector<int32_t> bad = model.program.run(std::span(&span, 1));
    CHECK(bad == (std::vector<int32_t>{0, 1}), "%zu rows were reported", bad.size());
}

}  // namespace

int main() {
    for (const Isa isa : available_isas()) {
        bits_do_not_depend_on_threads_chunks_or_company(isa);
        a_long_sequence_is_split_without_other_bits(isa);
    }
    impossible_spans_are_refused_by_name();
    a_logit_that_is_no_number_is_reported();
    return herd::test::report("program");
}
