// Attention, norms, rotation and the exponential on every instruction set of this machine, against plain loops in double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/memory.h"
#include "kernels/kernels.h"
#include "tests/check.h"

using namespace herd;

namespace {

struct Case {
    int64_t head_width, group, tokens, position;
    CacheFormat format;
    Sight sight{};
};

// One sequence in a cache of shuffled pages, and its queries.
struct Sequence {
    Case at;
    PageShape shape;
    std::vector<float> q, k, v;
    std::vector<int32_t> pages;
    AlignedBytes cache;

    Sequence(const Kernels& kernels, const Case& given) : at(given), shape(PageShape::of(at.head_width, at.format)) {
        std::mt19937 random(static_cast<uint32_t>(at.head_width * 1000 + at.position));
        std::normal_distribution<float> normal;
        const int64_t length = at.position + at.tokens, count = divide_up(length, kPageTokens);
        q.resize(static_cast<size_t>(at.tokens * at.group * at.head_width));
        k.resize(static_cast<size_t>(length * at.head_width));
        v.resize(k.size());
        for (auto* values : {&q, &k, &v}) {
            for (float& value : *values) value = normal(random);
        }
        for (int64_t page = 0; page < count; ++page) pages.push_back(static_cast<int32_t>(count - 1 - page));
        cache = AlignedBytes(count * shape.bytes());
        std::memset(cache.data(), 0xff, static_cast<size_t>(cache.size()));  // what nobody wrote is not a number
        for (int64_t t = 0; t < length;) {
            const int64_t place = t % kPageTokens, some = std::min({kPageTokens - place, length - t, 1 + t % 23});
            uint8_t* page = cache.data() + pages[static_cast<size_t>(t / kPageTokens)] * shape.bytes();
            kernels.store_keys(shape, k.data() + t * at.head_width, at.head_width, some, place, page);
            kernels.store_values(shape, v.data() + t * at.head_width, at.head_width, some, place, page);
            t += some;
        }
    }

    std::vector<float> attend(const Kernels& kernels, int64_t first, int64_t count) const {
        const int64_t rows = count * at.group, end = at.position + first + count;
        AlignedBytes scratch(kernels.attention_scratch_bytes(shape, rows)), partial(partial_floats(rows, shape.padded_width) * 4);
        const AttentionTile tile{shape, cache.data(), shape.bytes(), pages.data(), q.data() + first * at.group * at.head_width, at.group * at.head_width,
                                 count, at.group, at.position + first, 0, divide_up(end, kSplitTokens), 0.3f, at.sight, (end - 1) / kPageTokens};
        kernels.attend(tile, scratch.data(), partial.as<float>());
        std::vector<float> y(static_cast<size_t>(rows * at.head_width));
        kernels.finish(shape, partial.as<float>(), count, at.group, y.data(), at.group * at.head_width);
        return y;
    }

    // Splits by themselves, folded afterwards: what several workers do.
    std::vector<float> attend_in_splits(const Kernels& kernels) const {
        const int64_t rows = at.tokens * at.group, floats = partial_floats(rows, shape.padded_width);
        const int64_t splits = divide_up(at.position + at.tokens, kSplitTokens);
        AlignedBytes scratch(kernels.attention_scratch_bytes(shape, rows)), partials(splits * floats * 4);
        for (int64_t split = 0; split < splits; ++split) {
            const AttentionTile tile{shape, cache.data(), shape.bytes(), pages.data(), q.data(), at.group * at.head_width,
                                     at.tokens, at.group, at.position, split, split + 1, 0.3f, at.sight, (at.position + at.tokens - 1) / kPageTokens};
            kernels.attend(tile, scratch.data(), partials.as<float>() + split * floats);
            if (split > 0) kernels.fold(shape, rows, partials.as<float>() + split * floats, partials.as<float>());
        }
        std::vector<float> y(static_cast<size_t>(rows * at.head_width));
        kernels.finish(shape, partials.as<float>(), at.tokens, at.group, y.data(), at.group * at.head_width);
        return y;
    }

    double exact(int64_t token, int64_t head, int64_t component) const {
        const float* query = q.data() + (token * at.group + head) * at.head_width;
        double largest = -1e300, total = 0, sum = 0;
        std::vector<double> scores(static_cast<size_t>(at.sight.end(at.position + token)));
        const auto first = static_cast<size_t>(at.sight.first(at.position + token));
        for (size_t s = first; s < scores.size(); ++s) {
            for (int64_t h = 0; h < at.head_width; ++h) scores[s] += 0.3 * query[h] * k[s * static_cast<size_t>(at.head_width) + static_cast<size_t>(h)];
            largest = std::max(largest, scores[s]);
        }
        for (size_t s = first; s < scores.size(); ++s) {
            const double weight = std::exp(scores[s] - largest);
            total += weight;
            sum += weight * v[s * static_cast<size_t>(at.head_width) + static_cast<size_t>(component)];
        }
        return sum / total;
    }
};

// Of values that spread by 1, kept in each format.
constexpr double kError[] = {4e-6, 4e-3, 4e-2, 0.5};

void attention_is_right_and_does_not_depend_on_tiles(const Kernels& kernels, const char* isa) {
    const auto F32 = CacheFormat::Float32, F16 = CacheFormat::Float16, I8 = CacheFormat::Int8, I4 = CacheFormat::Int4;
    for (const Case& at : {Case{64, 3, 20, 0, F16}, Case{64, 3, 7, 300, F32}, Case{8, 2, 30, 50, F16}, Case{128, 4, 15, 500, F16},
                           Case{48, 1, 33, 63, F32}, Case{80, 8, 1, 1023, F16}, Case{6, 5, 3, 255, F32}, Case{64, 1, 5, 700, F16}, Case{64, 2, 2, 400, F32},
                           Case{64, 3, 20, 300, F16, {Sight::Kind::Sliding, 70}}, Case{16, 2, 30, 90, F32, {Sight::Kind::Sliding, 1}},
                           Case{32, 2, 30, 500, F32, {Sight::Kind::Chunks, 256}}, Case{8, 3, 20, 120, F16, {Sight::Kind::Chunks, 7}},
                           Case{24, 2, 9, 400, F32, {Sight::Kind::Whole, 409}}, Case{64, 4, 20, 0, I8}, Case{64, 3, 7, 300, I8}, Case{128, 4, 15, 500, I8},
                           Case{6, 5, 3, 255, I8}, Case{80, 8, 1, 1023, I8}, Case{48, 1, 33, 63, I8}, Case{64, 2, 20, 300, I8, {Sight::Kind::Sliding, 70}},
                           Case{8, 3, 20, 120, I8, {Sight::Kind::Chunks, 7}}, Case{24, 2, 9, 400, I8, {Sight::Kind::Whole, 409}}, Case{64, 4, 20, 0, I4},
                           Case{96, 3, 7, 300, I4}, Case{128, 4, 15, 500, I4}, Case{6, 5, 3, 255, I4}, Case{33, 1, 4, 130, I4}, Case{80, 8, 1, 1023, I4},
                           Case{64, 2, 20, 300, I4, {Sight::Kind::Sliding, 70}}, Case{16, 1, 30, 500, I4, {Sight::Kind::Chunks, 256}}}) {
        const Sequence sequence(kernels, at);
        const std::vector<float> y = sequence.attend(kernels, 0, at.tokens);
        for (size_t i = 0; i < y.size(); i += 7) {
            const auto place = static_cast<int64_t>(i), row = place / at.head_width;
            const double exact = sequence.exact(row / at.group, row % at.group, place % at.head_width);
            CHECK(std::abs(y[i] - exact) < kError[static_cast<size_t>(at.format)], "%s H %ld: %g, exact %g", isa, static_cast<long>(at.head_width), static_cast<double>(y[i]), exact);
        }
        for (int64_t token = 0; token < at.tokens; ++token) {
            const std::vector<float> alone = sequence.attend(kernels, token, 1);
            CHECK(std::memcmp(alone.data(), y.data() + token * at.group * at.head_width, alone.size() * 4) == 0, "%s H %ld: token %ld alone has other bits", isa,
                  static_cast<long>(at.head_width), static_cast<long>(token));
        }
        const std::vector<float> folded = sequence.attend_in_splits(kernels);
        CHECK(std::memcmp(folded.data(), y.data(), y.size() * 4) == 0, "%s H %ld: splits have other bits", isa, static_cast<long>(at.head_width));
    }
}

void a_value_that_is_no_number_stays_where_it_is(const Kernels& kernels, const char* isa, CacheFormat format) {
    Sequence sequence(kernels, {64, 2, 10, 70, format});
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> good = sequence.attend(kernels, 0, 10);
    std::vector<float> row(64, nan);
    kernels.store_values(sequence.shape, row.data(), 64, 1, 75 % kPageTokens, sequence.cache.data() + sequence.pages[1] * sequence.shape.bytes());
    const std::vector<float> y = sequence.attend(kernels, 0, 10);
    CHECK(std::memcmp(y.data(), good.data(), 5 * 2 * 64 * 4) == 0, "%s: tokens before it changed", isa);
    for (size_t i = 5 * 2 * 64; i < y.size(); ++i) CHECK(std::isnan(y[i]), "%s: %zu is %g", isa, i, static_cast<double>(y[i]));
}

void the_exponential_is_exact_to_two_units(const Kernels& kernels, const char* isa) {
    std::vector<float> x, y;
    for (float value = -86.9f; value < 88.0f; value += 0.00137f) x.push_back(value);
    x.insert(x.end(), {0.0f, -0.0f, -87.5f, -1000.0f, -std::numeric_limits<float>::infinity()});
    y.resize(x.size());
    kernels.exponential(x.data(), static_cast<int64_t>(x.size()), y.data());
    double worst = 0;
    for (size_t i = 0; i < x.size() - 5; ++i) {
        const double exact = std::exp(static_cast<double>(x[i])), unit = std::ldexp(1.0, std::ilogb(exact) - 23);
        worst = std::max(worst, std::abs(y[i] - exact) / unit);
    }
    CHECK(worst <= 2.0, "%s: %g units", isa, worst);
    CHECK(y[x.size() - 5] == 1.0f && y[x.size() - 4] == 1.0f, "%s: e^0 is not 1", isa);
    for (size_t i = x.size() - 3; i < x.size(); ++i) CHECK(y[i] == 0.0f, "%s: e^%g is %g", isa, static_cast<double>(x[i]), static_cast<double>(y[i]));
}

void rows_are_normed_and_rotated(const Kernels& kernels, const char* isa) {
    for (const int64_t width : {1, 7, 64, 576, 1000}) {
        std::vector<float> x(static_cast<size_t>(width)), weight(x.size()), y(x.size());
        double squares = 0;
        for (size_t i = 0; i < x.size(); ++i) {
            x[i] = std::sin(static_cast<float>(i)) + 0.1f;
            weight[i] = std::cos(static_cast<float>(i));
            squares += static_cast<double>(x[i]) * x[i];
        }
        kernels.rms_norm(x.data(), weight.data(), 1e-5f, width, y.data());
        const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
        for (size_t i = 0; i < x.size(); ++i) CHECK(std::abs(y[i] - x[i] * factor * weight[i]) < 1e-6, "%s width %ld", isa, static_cast<long>(width));
    }
    float x[6] = {1, 2, 3, 4, 5, 6};
    const float cosine[2] = {0.0f, 0.5f}, sine[2] = {1.0f, 0.25f};
    kernels.rotate(x, cosine, sine, 2);
    const float expected[6] = {-2, 1, 0.5f, 2.75f, 5, 6};
    CHECK(std::memcmp(x, expected, sizeof(x)) == 0, "%s: %g %g %g %g", isa, static_cast<double>(x[0]), static_cast<double>(x[1]), static_cast<double>(x[2]), static_cast<double>(x[3]));
}

void an_element_does_not_depend_on_its_place(const Kernels& kernels, const char* isa) {
    std::vector<float> gate(173), up(173), y(173), one(1);
    for (size_t i = 0; i < gate.size(); ++i) {
        gate[i] = 0.37f * static_cast<float>(i) - 30.0f;
        up[i] = 1.0f / (1.0f + static_cast<float>(i));
    }
    kernels.silu_gate(gate.data(), up.data(), 173, y.data());
    for (size_t i = 0; i < gate.size(); ++i) {
        kernels.silu_gate(&gate[i], &up[i], 1, one.data());
        CHECK(std::memcmp(one.data(), &y[i], 4) == 0, "%s: element %zu", isa, i);
        const double exact = gate[i] / (1 + std::exp(-static_cast<double>(gate[i]))) * up[i];
        CHECK(std::abs(y[i] - exact) <= 1e-6 * std::abs(exact) + 1e-9, "%s: %g, exact %g", isa, static_cast<double>(y[i]), exact);
    }
    CHECK(kernels.all_finite(y.data(), 173), "%s", isa);
    for (const size_t at : {size_t{0}, size_t{100}, size_t{172}}) {
        std::vector<float> bad = y;
        bad[at] = std::numeric_limits<float>::infinity();
        CHECK(!kernels.all_finite(bad.data(), 173), "%s: place %zu", isa, at);
        bad[at] = std::numeric_limits<float>::quiet_NaN();
        CHECK(!kernels.all_finite(bad.data(), 173), "%s: place %zu", isa, at);
    }
}

}  // namespace

int main() {
    for (const Isa isa : available_isas()) {
        const Kernels& table = kernels(isa);
        attention_is_right_and_does_not_depend_on_tiles(table, isa_name(isa));
        for (const CacheFormat format : {CacheFormat::Float32, CacheFormat::Float16, CacheFormat::Int8, CacheFormat::Int4}) {
            a_value_that_is_no_number_stays_where_it_is(table, isa_name(isa), format);
        }
        the_exponential_is_exact_to_two_units(table, isa_name(isa));
        rows_are_normed_and_rotated(table, isa_name(isa));
        an_element_does_not_depend_on_its_place(table, isa_name(isa));
    }
    return herd::test::report("attention");
}
