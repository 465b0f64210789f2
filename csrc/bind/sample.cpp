// Choosing tokens - checks, signature, docstring; no arithmetic. What is computed: program/choose.h.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <memory>
#include <tuple>

#include "bind/bind.h"
#include "program/choose.h"

namespace herd {

using namespace nb::literals;

namespace {

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words1 = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows2 = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;

// A draw and the arrays that its spans look into.
struct HeldDraw {
    Draw draw;
    int64_t row = 0;
    Ids seen_ids, answer_counts;
    Words1 allowed;
};

void check_id(int64_t id, int64_t vocabulary, const char* what) {
    if (id < 0 || id >= vocabulary) {
        throw std::invalid_argument(std::string(what) + " contains token " + std::to_string(id) + "; the vocabulary is 0 to " + std::to_string(vocabulary - 1));
    }
}

void read_history(nb::handle source, int64_t vocabulary, HeldDraw& held) {
    held.seen_ids = nb::cast<Ids>(source.attr("seen_ids"));
    held.answer_counts = nb::cast<Ids>(source.attr("answer_counts"));
    Dim N{"N"};
    expect(held.seen_ids, "seen_ids").shape(N);
    expect(held.answer_counts, "answer_counts").shape(N);
    held.draw.seen_ids = {held.seen_ids.data(), held.seen_ids.size()};
    held.draw.answer_counts = {held.answer_counts.data(), held.answer_counts.size()};
    for (const int32_t id : held.draw.seen_ids) check_id(id, vocabulary, "seen_ids");
}

void read_allowed(nb::handle source, int64_t vocabulary, HeldDraw& held) {
    const nb::object allowed = source.attr("allowed");
    if (allowed.is_none()) return;
    held.allowed = nb::cast<Words1>(allowed);
    const int64_t words = divide_up(vocabulary, 32);
    if (static_cast<int64_t>(held.allowed.size()) != words) {
        throw std::invalid_argument("allowed has " + std::to_string(held.allowed.size()) + " words; a vocabulary of " + std::to_string(vocabulary) + " takes " + std::to_string(words));
    }
    held.draw.allowed = {held.allowed.data(), held.allowed.size()};
}

// From a herd.sampling.draw.Draw.
HeldDraw read_draw(nb::handle source, int64_t vocabulary) {
    HeldDraw held;
    Draw& draw = held.draw;
    const nb::object params = source.attr("params");
    draw.temperature = nb::cast<double>(params.attr("temperature"));
    draw.alternatives = nb::cast<int64_t>(params.attr("logprobs"));
    draw.repetition_penalty = nb::cast<double>(params.attr("repetition_penalty"));
    draw.presence_penalty = nb::cast<double>(params.attr("presence_penalty"));
    draw.frequency_penalty = nb::cast<double>(params.attr("frequency_penalty"));
    if (draw.alternatives < 0 || draw.alternatives > kMaxAlternatives) {
        throw std::invalid_argument("logprobs is " + std::to_string(draw.alternatives) + "; it must be from 0 to " + std::to_string(kMaxAlternatives));
    }
    if (draw.temperature != 0.0) {
        draw.top_k = nb::cast<int64_t>(params.attr("top_k"));
        draw.top_p = nb::cast<double>(params.attr("top_p"));
        draw.min_p = nb::cast<double>(params.attr("min_p"));
        draw.seed = nb::cast<uint64_t>(source.attr("seed"));
        draw.position = nb::cast<uint32_t>(source.attr("position"));
        draw.choice_index = nb::cast<uint32_t>(source.attr("choice_index"));
    }
    const nb::object biases = params.attr("logit_bias");
    if (nb::len(biases) != 0) {
        for (const nb::handle pair : biases.attr("items")()) {
            const auto [id, bias] = nb::cast<std::tuple<int64_t, double>>(pair);
            check_id(id, vocabulary, "logit_bias");
            draw.bias_ids.push_back(static_cast<int32_t>(id));
            draw.biases.push_back(bias);
        }
    }
    if (draw.has_penalties()) read_history(source, vocabulary, held);
    read_allowed(source, vocabulary, held);
    return held;
}

// Choosers for all workers of a machine, and the Python class of what they choose.
struct BoundChooser {
    std::shared_ptr<Machine> machine;
    int64_t vocabulary;
    std::vector<Chooser> choosers;
    nb::object choice_type;

    BoundChooser(std::shared_ptr<Machine> owner, int64_t vocabulary_size)
        : machine(std::move(owner)), vocabulary(vocabulary_size), choice_type(nb::module_::import_("herd.sampling.draw").attr("Choice")) {
        for (int worker = 0; worker < machine->pool.workers(); ++worker) choosers.emplace_back(machine->isa, vocabulary);
    }
    BoundChooser(const BoundChooser&) = delete;
    BoundChooser& operator=(const BoundChooser&) = delete;
};

nb::object to_python(const BoundChooser& self, const Choice& choice) {
    if (choice.token < 0) return nb::none();
    nb::list top;
    for (int64_t i = 0; i < choice.num_alternatives; ++i) top.append(nb::make_tuple(choice.alternatives[i], choice.alternative_logprobs[i]));
    return self.choice_type(choice.token, choice.logprob, nb::tuple(top));
}

std::vector<Choice> run(BoundChooser& self, const float* logits, int64_t stride, const std::vector<HeldDraw>& draws) {
    nb::gil_scoped_release unlocked;
    const std::lock_guard lock(self.machine->mutex);
    std::vector<Choice> choices(draws.size());
    const auto choose = [&](size_t i, int worker) {
        choices[i] = self.choosers[static_cast<size_t>(worker)].choose(logits + draws[i].row * stride, draws[i].draw);
    };
    if (draws.size() == 1) {
        choose(0, 0);
        return choices;
    }
    std::atomic<size_t> next{0};
    self.machine->pool.run([&](int worker) {
        for (size_t i = next++; i < draws.size(); i = next++) choose(i, worker);
    });
    return choices;
}

nb::list choose(BoundChooser& self, const Rows2& logits, const std::vector<int64_t>& rows, const nb::list& draws) {
    if (static_cast<int64_t>(logits.shape(1)) != self.vocabulary || logits.stride(1) != 1) {
        throw std::invalid_argument("logits has rows of " + std::to_string(logits.shape(1)) + "; expected contiguous rows of " + std::to_string(self.vocabulary));
    }
    if (rows.size() != nb::len(draws)) throw std::invalid_argument("rows and draws must be equally many");
    std::vector<HeldDraw> held;
    held.reserve(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
        if (rows[i] < 0 || rows[i] >= static_cast<int64_t>(logits.shape(0))) throw std::invalid_argument("rows contains " + std::to_string(rows[i]) + "; there are " + std::to_string(logits.shape(0)));
        held.push_back(read_draw(draws[i], self.vocabulary));
        held.back().row = rows[i];
    }
    nb::list result;
    if (held.empty()) return result;
    for (const Choice& choice : run(self, logits.data(), logits.stride(0), held)) result.append(to_python(self, choice));
    return result;
}

}  // namespace

void bind_sample(nb::module_& m) {
    nb::class_<BoundChooser>(m, "Chooser", "Chooses next tokens from rows of logits, as herd.sampling.chain.choose defines it.")
        .def(nb::new_([](std::shared_ptr<Machine> machine, int64_t vocabulary) {
                 if (vocabulary < 1 || vocabulary > INT32_MAX) throw std::invalid_argument("vocab_size is " + std::to_string(vocabulary) + "; it must be from 1 to 2^31 - 1");
                 return std::make_shared<BoundChooser>(std::move(machine), vocabulary);
             }),
             "machine"_a, "vocab_size"_a)
        .def("choose", &choose, "logits"_a, "rows"_a, "draws"_a, nb::sig("def choose(self, logits: memoryview, rows: list[int], draws: list) -> list"),
             "One herd.sampling.draw.Choice per (row of `logits` [R, V] float32, Draw); None where the row has NaN or +inf, or nothing but -inf, or where no token is allowed.");
    m.def("philox", [](std::tuple<uint32_t, uint32_t, uint32_t, uint32_t> counter, std::tuple<uint32_t, uint32_t> key) {
        const auto [a, b, c, d] = counter;
        const Words words = philox({{a, b, c, d}}, std::get<0>(key), std::get<1>(key));
        return std::tuple(words.of[0], words.of[1], words.of[2], words.of[3]);
    }, "counter"_a, "key"_a, "Philox 4x32 with 10 rounds.");
}

}  // namespace herd
