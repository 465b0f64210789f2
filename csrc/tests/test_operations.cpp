// Experts, crossing to pictures, rows of pictures and encoders, without Python: right against plain loops in double, and the same bits
// for any number of threads and whatever else is in the step.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "program/eager.h"
#include "program/program.h"
#include "tests/check.h"

using namespace herd;

namespace {

constexpr int64_t kWidth = 32, kHeads = 4, kHeadWidth = 8, kKvHeads = 2, kFfn = 48, kExperts = 5, kChosen = 2, kVocabulary = 40, kTokens = 100;

std::vector<float> normal(int64_t count, uint32_t seed, float spread = 1.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> draw(0.0f, spread);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = draw(random);
    return values;
}

MatrixPtr pack(Machine& machine, const float* values, int64_t rows, int64_t columns) {
    auto made = std::make_shared<Matrix>();
    made->storage = Storage::F32;
    made->rows = rows;
    made->columns = columns;
    made->panels = panels_of(rows);
    made->data = AlignedBytes(machine.linear.packed_bytes(Storage::F32, Arithmetic::Int8, rows, columns));
    machine.linear.pack(Storage::F32, Arithmetic::Int8, reinterpret_cast<const uint8_t*>(values), rows, columns, made->data.data(), 0, made->panels);
    return made;
}

// One expert's or a row's product in double.
std::vector<double> product(const std::vector<double>& x, const float* w, int64_t rows) {
    std::vector<double> y(static_cast<size_t>(rows));
    for (size_t r = 0; r < y.size(); ++r) {
        for (size_t k = 0; k < x.size(); ++k) y[r] += x[k] * static_cast<double>(w[r * x.size() + k]);
    }
    return y;
}

struct Weights {
    std::vector<float> table = normal(kVocabulary * kWidth, 1), router = normal(kExperts * kWidth, 2, 0.3f);
    std::vector<float> gates = normal(kExperts * kFfn * kWidth, 3, 0.2f), ups = normal(kExperts * kFfn * kWidth, 4, 0.2f);
    std::vector<float> downs = normal(kExperts * kWidth * kFfn, 5, 0.2f);
};

// embed -> overlay -> experts -> + cross attention, read as logits of every row.
struct Model {
    std::shared_ptr<Machine> machine;
    std::shared_ptr<Cache> cache;
    Program program;

    Model(int workers, Isa isa, const Weights& w)
        : machine(std::make_shared<Machine>(workers, isa)), cache(std::make_shared<Cache>(1, kKvHeads, kHeadWidth, CacheFormat::Float32)),
          program(machine, cache, kHeads, {kTokens, kTokens, kWidth, kVocabulary}) {
        const Rows tokens = Rows::Tokens;
        std::vector<MatrixPtr> gates, ups, downs;
        for (int64_t e = 0; e < kExperts; ++e) {
            gates.push_back(pack(*machine, w.gates.data() + e * kFfn * kWidth, kFfn, kWidth));
            ups.push_back(pack(*machine, w.ups.data() + e * kFfn * kWidth, kFfn, kWidth));
            downs.push_back(pack(*machine, w.downs.data() + e * kWidth * kFfn, kWidth, kFfn));
        }
        const MatrixPtr router = pack(*machine, w.router.data(), kExperts, kWidth);
        const int x = program.add_buffer(kWidth, tokens), scores = program.add_buffer(kExperts, tokens), y = program.add_buffer(kWidth, tokens);
        const int crossed = program.add_buffer(kWidth, tokens), logits = program.add_buffer(kWidth, Rows::Outputs);
        const int prepared = program.add_prepared(machine->linear.form(*router), kWidth, tokens);
        program.embed(pack(*machine, w.table.data(), kVocabulary, kWidth), x, {{kVocabulary - 1, 3}});
        program.overlay(x, x);
        program.prepare(x, false, nullptr, 0.0f, prepared);
        program.product({{router, nullptr, prepared, scores, false}}, After::Nothing, {-1, -1}, "router");
        const int room = program.add_expert_room(*gates[0], *ups[0], *downs[0], kExperts, kChosen);
        program.experts(x, scores, gates, ups, downs, nullptr, room, y);
        program.only_if_seen(true);
        program.cross_attention(x, 1, kHeads, 0.5f, crossed);
        program.only_if_seen(false);
        program.gated_add(y, crossed, 0.25f, true, y);
        program.select(y, logits);
        program.finish(logits);
        cache->allocate(4);
        program.cache_changed();
    }

    std::vector<float> run(const std::vector<int64_t>& tokens, const Pictures& pictures) {
        const std::vector<int64_t> pages{0, 1};
        const Span span{0, tokens, pages, static_cast<int64_t>(tokens.size())};
        program.run(std::span(&span, 1), pictures);
        std::vector<float> rows;
        for (int64_t row = 0; row < program.outputs(); ++row) rows.insert(rows.end(), program.logits() + row * kWidth, program.logits() + (row + 1) * kWidth);
        return rows;
    }
};

struct Seen {
    std::vector<float> keys, values;
    std::shared_ptr<KeyValues> packed;
    Seen(const Kernels& kernels, int64_t rows, uint32_t seed) : keys(normal(rows * kKvHeads * kHeadWidth, seed)), values(normal(rows * kKvHeads * kHeadWidth, seed + 1)) {
        packed = std::make_shared<KeyValues>(2, rows, kKvHeads, kHeadWidth, CacheFormat::Float32);
        packed->store(kernels, 1, keys.data(), values.data());
    }
};

// The row of the model in double.
std::vector<double> exact(const Weights& w, const std::vector<double>& x, const std::vector<const Seen*>& seen) {
    const std::vector<double> scores = product(x, w.router.data(), kExperts);
    std::vector<int64_t> order(kExperts);
    for (int64_t e = 0; e < kExperts; ++e) order[static_cast<size_t>(e)] = e;
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)]; });
    std::vector<double> y(kWidth);
    for (int64_t i = 0; i < kChosen; ++i) {
        const int64_t e = order[static_cast<size_t>(i)];
        std::vector<double> scaled = x;
        for (double& value : scaled) value /= 1 + std::exp(-scores[static_cast<size_t>(e)]);
        std::vector<double> hidden = product(scaled, w.gates.data() + e * kFfn * kWidth, kFfn);
        const std::vector<double> up = product(scaled, w.ups.data() + e * kFfn * kWidth, kFfn);
        for (size_t f = 0; f < hidden.size(); ++f) hidden[f] = hidden[f] / (1 + std::exp(-hidden[f])) * up[f];
        const std::vector<double> down = product(hidden, w.downs.data() + e * kWidth * kFfn, kWidth);
        for (size_t d = 0; d < y.size(); ++d) y[d] += down[d];
    }
    for (int64_t head = 0; head < kHeads && !seen.empty(); ++head) {
        const int64_t kv = head / (kHeads / kKvHeads);
        double total = 0;
        std::vector<double> sums(kHeadWidth);
        for (const Seen* picture : seen) {
            for (int64_t row = 0; row < picture->packed->rows(); ++row) {
                const auto at = static_cast<size_t>((row * kKvHeads + kv) * kHeadWidth);
                double score = 0;
                for (size_t h = 0; h < kHeadWidth; ++h) score += 0.5 * x[static_cast<size_t>(head * kHeadWidth) + h] * static_cast<double>(picture->keys[at + h]);
                total += std::exp(score);
                for (size_t h = 0; h < kHeadWidth; ++h) sums[h] += std::exp(score) * static_cast<double>(picture->values[at + h]);
            }
        }
        for (size_t h = 0; h < kHeadWidth; ++h) y[static_cast<size_t>(head * kHeadWidth) + h] += 0.25 * sums[h] / total;
    }
    return y;
}

void experts_and_pictures_are_right_for_any_number_of_threads(Isa isa) {
    const Weights w;
    std::vector<int64_t> tokens;
    for (int64_t t = 0; t < kTokens; ++t) tokens.push_back((t * 17 + 5) % kVocabulary);
    const Seen one(kernels(isa), 70, 20), other(kernels(isa), 300, 30);
    const std::vector<float> features = normal(3 * kWidth, 40);
    const std::vector<int32_t> picture_rows{4, 50, 51};
    const std::vector<Seeing> seeing{{10, 45, {one.packed}}, {60, 3, {one.packed, other.packed}}, {90, 10, {other.packed}}};
    Pictures pictures;
    pictures.picture_rows = picture_rows;
    pictures.features = features.data();
    pictures.width = kWidth;
    pictures.seeing = seeing;
    const std::vector<float> first = Model(1, isa, w).run(tokens, pictures);
    for (const int workers : {2, 3, 5}) {
        Model model(workers, isa, w);
        for (int again = 0; again < 20; ++again) CHECK(model.run(tokens, pictures) == first, "%s: %d workers", isa_name(isa), workers);
    }
    for (int64_t t = 0; t < kTokens; ++t) {
        const int64_t id = tokens[static_cast<size_t>(t)];
        const float* row = w.table.data() + (id == kVocabulary - 1 ? 3 : id) * kWidth;
        for (size_t i = 0; i < picture_rows.size(); ++i) {
            if (picture_rows[i] == t) row = features.data() + i * kWidth;
        }
        std::vector<const Seen*> seen;
        if ((t >= 10 && t < 55) || (t >= 60 && t < 63)) seen.push_back(&one);
        if ((t >= 60 && t < 63) || t >= 90) seen.push_back(&other);
        const std::vector<double> right = exact(w, std::vector<double>(row, row + kWidth), seen);
        for (size_t d = 0; d < kWidth; ++d) {
            const double found = first[static_cast<size_t>(t) * kWidth + d];
            CHECK(std::abs(found - right[d]) < 2e-5, "%s token %ld: %g, exact %g", isa_name(isa), static_cast<long>(t), found, right[d]);
        }
        if (t > 12) continue;
        Model model(2, isa, w);
        const std::vector<Seeing> alone{{0, 1, seen.empty() ? std::vector<std::shared_ptr<const KeyValues>>{} : std::vector<std::shared_ptr<const KeyValues>>{one.packed}}};
        const std::vector<int32_t> at{0};
        Pictures own;
        own.seeing = alone;
        if (t == 4) {
            own.picture_rows = at;
            own.features = features.data();
            own.width = kWidth;
        }
        const std::vector<float> single = model.run({id}, own);
        CHECK(std::memcmp(single.data(), first.data() + t * kWidth, kWidth * 4) == 0, "%s: token %ld alone has other bits", isa_name(isa), static_cast<long>(t));
    }
}

void a_program_runs_in_parts_and_its_rows_may_be_written(Isa isa) {
    const Weights w;
    Model model(2, isa, w);
    const std::vector<int64_t> tokens{1, 2, 3}, pages{0};
    const std::vector<float> whole = model.run(tokens, {});
    const Span span{0, tokens, pages, 3};
    model.program.begin(std::span(&span, 1), {});
    int64_t count = 0, width = 0, stride = 0;
    for (size_t end = 1; end <= model.program.num_instructions(); ++end) model.program.advance(end);
    CHECK(model.program.bad_rows().empty(), "%s", isa_name(isa));
    CHECK(std::memcmp(model.program.logits(), whole.data(), whole.size() * 4) == 0, "%s: in parts", isa_name(isa));
    model.program.begin(std::span(&span, 1), {});
    model.program.advance(1);
    float* rows = model.program.rows(0, count, width, stride);
    CHECK(count == 3 && width == kWidth && stride == kWidth, "%ld rows", static_cast<long>(count));
    std::copy_n(w.table.data() + 9 * kWidth, kWidth, rows + stride);
    model.program.advance(model.program.num_instructions());
    const std::vector<float> other = model.run({1, 9, 3}, {});
    CHECK(std::memcmp(model.program.logits(), other.data(), other.size() * 4) == 0, "%s: a row that was written", isa_name(isa));
}

void encoders_multiply_and_attend(Isa isa) {
    Machine machine(3, isa), single(1, isa);
    for (const int64_t rows : {1, 59, 600}) {
        const std::vector<float> x = normal(rows * 40, 50), w = normal(37 * 40, 51, 0.2f), bias = normal(37, 52);
        std::vector<float> y(static_cast<size_t>(rows * 37)), again(y.size());
        multiply_rows(machine, *pack(machine, w.data(), 37, 40), bias.data(), x.data(), rows, y.data());
        multiply_rows(single, *pack(single, w.data(), 37, 40), bias.data(), x.data(), rows, again.data());
        CHECK(y == again, "%s: products of %ld rows", isa_name(isa), static_cast<long>(rows));
        const std::vector<double> right = product(std::vector<double>(x.end() - 40, x.end()), w.data(), 37);
        for (size_t r = 0; r < 37; ++r) CHECK(std::abs(y[y.size() - 37 + r] - right[r] - static_cast<double>(bias[r])) < 1e-5, "%s row %zu", isa_name(isa), r);

        const Seen seen(kernels(isa), rows, 60);
        const std::vector<float> q = normal(rows * kWidth, 61);
        std::vector<float> z(q.size()), other(q.size());
        attend_rows(machine, q.data(), rows, kHeads, *seen.packed, 1, 0.5f, z.data());
        attend_rows(single, q.data(), rows, kHeads, *seen.packed, 1, 0.5f, other.data());
        CHECK(z == other, "%s: attention of %ld rows", isa_name(isa), static_cast<long>(rows));
        std::vector<float> curve(static_cast<size_t>(rows)), normed(q.size());
        gelu_all(machine, q.data(), rows, curve.data());
        const std::vector<float> ones(kWidth, 1.0f), zeros(kWidth);
        layer_norm_rows(machine, q.data(), ones.data(), zeros.data(), 1e-5f, rows, kWidth, normed.data());
        const double exact = q[0] * 0.5 * std::erfc(-static_cast<double>(q[0]) / std::sqrt(2.0));
        CHECK(std::abs(curve[0] - exact) < 1e-6, "%s: gelu %g, exact %g", isa_name(isa), static_cast<double>(curve[0]), exact);
    }
}

}  // namespace

int main() {
    for (const Isa isa : available_isas()) {
        experts_and_pictures_are_right_for_any_number_of_threads(isa);
        a_program_runs_in_parts_and_its_rows_may_be_written(isa);
        encoders_multiply_and_attend(isa);
    }
    return herd::test::report("operations");
}
