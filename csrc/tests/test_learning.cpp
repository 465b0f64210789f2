// Attention that learns, on every instruction set of this machine, against plain loops in double: forwards and backwards.
//
// The budget is that of the project: error(ours) <= 2 * error(plain loops in the same type), where plain loops round what they store. There are
// no threads here, as torch is not loaded: with torch's threads tests/training/test_native_attention.py asks for the same bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/cpu.h"
#include "kernels/learn.h"
#include "learning/attention.h"
#include "tests/check.h"
#include "tests/learning_numbers.h"

using namespace herd;
using namespace herd::test;

namespace {

constexpr Sight kPast{}, kChunks{Sight::Kind::Chunks, 33}, kSliding{Sight::Kind::Sliding, 20};

const std::vector<int64_t> kLengths{1, 2, 15, 16, 17, 47, 48, 49, 97, 200};

struct Case {
    Element element;
    int64_t kv_heads, group, head_width;
    Sight sight;
    std::vector<int64_t> lengths = kLengths;
    float scale = 0.3f;

    std::string name() const {
        const char* kinds[] = {"past", "chunks", "sliding", "whole"};
        return std::string(element == Element::Float32 ? "float32" : "bfloat16") + " H " + std::to_string(head_width) + " G " + std::to_string(group) + " " +
               kinds[static_cast<int>(sight.kind)] + " " + std::to_string(sight.tokens);
    }
};

// q, k and v as columns of one matrix, dy as columns of another; what lies between them is not a number.
struct Inputs {
    Case of;
    int64_t heads, tokens, stride, dy_stride;
    std::vector<uint8_t> rows, slopes;

    explicit Inputs(const Case& given) : of(given), heads(of.kv_heads * of.group), tokens(attention().tokens()) {
        stride = 3 + (heads + 2 * of.kv_heads) * of.head_width + 4;
        dy_stride = heads * of.head_width + 5;
        rows.assign(at(tokens * stride * bytes_of(of.element)), 0xff);
        slopes.assign(at(tokens * dy_stride * bytes_of(of.element)), 0xff);
        std::mt19937 random(static_cast<uint32_t>(of.head_width * 10 + of.group));
        std::normal_distribution<float> normal;
        for (int64_t token = 0; token < tokens; ++token) {
            for (const auto& [column, count] : {std::pair{q_column(), heads}, {k_column(), of.kv_heads}, {v_column(), of.kv_heads}}) {
                for (int64_t i = 0; i < count * of.head_width; ++i) write(of.element, rows.data(), token * stride + column + i, normal(random));
            }
            for (int64_t i = 0; i < heads * of.head_width; ++i) write(of.element, slopes.data(), token * dy_stride + 2 + i, normal(random));
        }
    }

    // Odd, so that rows of bfloat16 begin at any even address.
    int64_t q_column() const { return 3; }
    int64_t k_column() const { return q_column() + heads * of.head_width; }
    int64_t v_column() const { return k_column() + of.kv_heads * of.head_width + 1; }

    DocumentAttention attention() const { return {of.element, of.lengths, of.kv_heads * of.group, of.kv_heads, of.head_width, of.scale, of.sight}; }
    TokenRows columns(int64_t column, int64_t token = 0) const { return {rows.data() + (token * stride + column) * bytes_of(of.element), stride}; }
    TokenRows dy(int64_t token = 0) const { return {slopes.data() + (token * dy_stride + 2) * bytes_of(of.element), dy_stride}; }
};

// What the kernels make of them.
struct Results {
    Guarded y, tops, dq, dk, dv;

    bool operator==(const Results&) const = default;
};

// The documents from token `begin` on whose lengths these are, which need not be all.
Results found(Isa isa, int threads, const Inputs& in, std::vector<int64_t> lengths, int64_t begin = 0) {
    const LearnKernels& kernels = learn_kernels(isa);
    DocumentAttention of = in.attention();
    of.lengths = lengths;
    const int64_t bytes = bytes_of(of.element), for_q = of.tokens() * of.heads * of.head_width * bytes, for_k = for_q / of.heads * of.kv_heads;
    Results made{Guarded(for_q), Guarded(of.heads * of.tokens() * 4), Guarded(for_q), Guarded(for_k), Guarded(for_k)};
    const TokenRows q = in.columns(in.q_column(), begin), k = in.columns(in.k_column(), begin), v = in.columns(in.v_column(), begin);
    auto* tops = reinterpret_cast<float*>(made.tops.data());
    Guarded there(attention_workspace_bytes(kernels, threads, of, false)), back(attention_workspace_bytes(kernels, threads, of, true));
    attend_documents(kernels, threads, of, q, k, v, made.y.data(), tops, there.data());
    const Guarded tops_before = made.tops;
    attend_documents_backward(kernels, learn_row_kernels(isa), threads, of, q, k, v, tops, in.dy(begin), made.dq.data(), made.dk.data(), made.dv.data(), back.data());
    for (const Guarded* each : {&made.y, &made.tops, &made.dq, &made.dk, &made.dv, &there, &back}) {
        CHECK(each->is_whole(), "%s %s: written outside", isa_name(isa), in.of.name().c_str());
    }
    CHECK(made.tops == tops_before, "%s %s: the way back wrote tops", isa_name(isa), in.of.name().c_str());
    return made;
}

Results found(Isa isa, int threads, const Inputs& in) { return found(isa, threads, in, in.of.lengths); }

// Plain loops, in doubles or in floats that are rounded to `element` wherever a tensor would be stored.
template <typename Number>
struct Plain {
    std::vector<Number> y, tops, dq, dk, dv;

    explicit Plain(const Inputs& in) : y(at(in.tokens * in.heads * in.of.head_width)), tops(at(in.heads * in.tokens)), dq(y.size()), dk(y.size() / at(in.of.group)), dv(dk.size()) {
        int64_t begin = 0;
        for (const int64_t length : in.of.lengths) {
            for (int64_t head = 0; head < in.heads; ++head) {
                for (int64_t token = 0; token < length; ++token) row(in, begin, token, head);
            }
            begin += length;
        }
        for (auto* values : {&dk, &dv}) {
            for (Number& value : *values) value = stored(in, value);
        }
    }

  private:
    static Number stored(const Inputs& in, Number value) {
        if constexpr (std::is_same_v<Number, double>) return value;
        else return rounded(in.of.element, value);
    }

    // Of one query.
    void row(const Inputs& in, int64_t begin, int64_t token, int64_t head) {
        const int64_t width = in.of.head_width, kv_head = head / in.of.group, first = in.of.sight.first(token);
        const auto values = [&](int64_t column, int64_t which, int64_t t) {
            std::vector<Number> found(at(width));
            for (int64_t h = 0; h < width; ++h) found[at(h)] = read(in.of.element, in.rows.data(), (begin + t) * in.stride + column + which * width + h);
            return found;
        };
        const std::vector<Number> q = values(in.q_column(), head, token);
        std::vector<Number> dy(at(width)), weights(at(token + 1)), slopes(at(token + 1));
        for (int64_t h = 0; h < width; ++h) dy[at(h)] = read(in.of.element, in.slopes.data(), (begin + token) * in.dy_stride + 2 + head * width + h);
        Number most = -std::numeric_limits<Number>::infinity(), total = 0, common = 0;
        for (int64_t s = first; s <= token; ++s) {
            const std::vector<Number> k = values(in.k_column(), kv_head, s), v = values(in.v_column(), kv_head, s);
            Number score = 0, slope = 0;
            for (size_t h = 0; h < q.size(); ++h) {
                score += q[h] * k[h];
                slope += dy[h] * v[h];
            }
            weights[at(s)] = stored(in, static_cast<Number>(in.of.scale) * score);
            slopes[at(s)] = stored(in, slope);
            most = std::max(most, weights[at(s)]);
        }
        for (int64_t s = first; s <= token; ++s) total += std::exp(weights[at(s)] - most);
        for (int64_t s = first; s <= token; ++s) {
            weights[at(s)] = stored(in, std::exp(weights[at(s)] - most) / total);
            common += weights[at(s)] * slopes[at(s)];
        }
        tops[at(head * in.tokens + begin + token)] = most;
        std::vector<Number> mixed(at(width)), for_q(at(width));
        for (int64_t s = first; s <= token; ++s) {
            const std::vector<Number> k = values(in.k_column(), kv_head, s), v = values(in.v_column(), kv_head, s);
            const Number weight = weights[at(s)], slope = stored(in, static_cast<Number>(in.of.scale) * (weight * (slopes[at(s)] - common)));
            const size_t to = at(((begin + s) * in.of.kv_heads + kv_head) * width);
            for (size_t h = 0; h < q.size(); ++h) {
                mixed[h] += weight * v[h];
                for_q[h] += slope * k[h];
                dk[to + h] += slope * q[h];
                dv[to + h] += weight * dy[h];
            }
        }
        const size_t to = at(((begin + token) * in.heads + head) * width);
        for (size_t h = 0; h < q.size(); ++h) {
            y[to + h] = stored(in, mixed[h]);
            dq[to + h] = stored(in, for_q[h]);
        }
    }
};

std::vector<Case> cases() {
    std::vector<Case> all;
    for (const Element element : {Element::Float32, Element::BFloat16}) {
        for (const auto& [kv_heads, group, width, sight] :
             {std::tuple{1, 3, 16, kPast}, {2, 1, 16, kChunks}, {1, 1, 16, kSliding}, {2, 3, 64, kPast}, {1, 1, 64, kChunks}, {1, 3, 64, kSliding}, {1, 1, 80, kPast},
              {1, 3, 80, kChunks}, {1, 1, 80, kSliding}, {1, 1, 128, kPast}, {1, 3, 128, kSliding}, {1, 1, 128, kChunks}, {1, 1, 16, Sight{Sight::Kind::Chunks, 16}},
              {1, 1, 16, Sight{Sight::Kind::Sliding, 1000}}}) {
            all.push_back({element, kv_heads, group, width, sight});
        }
        all.push_back({element, 1, 2, 64, kPast, {70}, 4.0f});  // scores far from 0, of which one takes all
    }
    return all;
}

// Of the same inputs by plain loops, in doubles and as they are stored.
struct Expected {
    Plain<double> exact;
    Plain<float> plain;

    explicit Expected(const Inputs& in) : exact(in), plain(in) {}
};

// Results against `expected`, by the errors of the plain loops of `budget`.
void are_right(Isa isa, const Inputs& in, const Expected& expected, const Expected& budget) {
    const std::string where = std::string(isa_name(isa)) + " " + in.of.name() + " ";
    const Element element = in.of.element;
    const Results ours = found(isa, 1, in);
    is_within_budget(element, ours.y, expected.exact.y, error_of(budget.plain.y, budget.exact.y), where + "y");
    is_within_budget(Element::Float32, ours.tops, expected.exact.tops, error_of(budget.plain.tops, budget.exact.tops), where + "tops");
    is_within_budget(element, ours.dq, expected.exact.dq, error_of(budget.plain.dq, budget.exact.dq), where + "dq");
    is_within_budget(element, ours.dk, expected.exact.dk, error_of(budget.plain.dk, budget.exact.dk), where + "dk");
    is_within_budget(element, ours.dv, expected.exact.dv, error_of(budget.plain.dv, budget.exact.dv), where + "dv");
}

void values_and_slopes_are_right(const Case& of) {
    const Inputs in(of);
    const Expected expected(in);
    for (const Isa isa : available_isas()) are_right(isa, in, expected, expected);
}

// Where a query sees itself alone, plain loops make no error: e^0 is 1, and a number less itself 0. Ours rounds the top before it is subtracted:
// it may have the error that plain loops have as soon as two tokens are seen.
void a_window_of_one_token_is_right(Element element, Sight::Kind kind) {
    const Inputs in({element, 1, 1, 16, {kind, 1}});
    Case wider = in.of;
    wider.sight.tokens = 2;
    const Expected expected(in), budget{Inputs(wider)};
    for (const Isa isa : available_isas()) are_right(isa, in, expected, budget);
}

// Places in the workspace depend on how many threads there are, and what a document costs on its company: bits on neither.
void bits_do_not_depend_on_threads_or_company(Isa isa) {
    for (const Element element : {Element::Float32, Element::BFloat16}) {
        const Inputs in({element, 2, 3, 80, kSliding});
        const Results all = found(isa, 1, in);
        for (const int threads : {2, 3, 7}) CHECK(found(isa, threads, in) == all, "%s %s: other bits with %d threads", isa_name(isa), in.of.name().c_str(), threads);
        int64_t begin = 0;
        for (const int64_t length : in.of.lengths) {
            const Results alone = found(isa, 1, in, {length}, begin);
            const int64_t q_row = in.heads * in.of.head_width * bytes_of(element), k_row = q_row / in.of.group;
            const auto is_same = [&](const Guarded& one, const Guarded& whole, int64_t row) { return std::memcmp(one.data(), whole.data() + begin * row, at(length * row)) == 0; };
            CHECK(is_same(alone.y, all.y, q_row) && is_same(alone.dq, all.dq, q_row) && is_same(alone.dk, all.dk, k_row) && is_same(alone.dv, all.dv, k_row),
                  "%s %s: a document of %ld tokens has other bits alone", isa_name(isa), in.of.name().c_str(), static_cast<long>(length));
            begin += length;
        }
    }
}

// Several callers at once, each with memory of its own.
void callers_do_not_meet(Isa isa) {
    const Inputs in({Element::BFloat16, 1, 3, 64, kPast});
    const Results all = found(isa, 1, in);
    std::vector<int> same(4);
    std::vector<std::thread> callers;
    for (int& each : same) callers.emplace_back([&] { each = found(isa, 2, in) == all; });
    for (std::thread& caller : callers) caller.join();
    CHECK(same == std::vector<int>(4, 1), "%s: other bits beside other callers", isa_name(isa));
}

// A key or value that is not a number is met by its own document only, and there by no query of a block before it. Within the block of 48 queries
// that it lies in, a value (and in gradients a key too) reaches earlier queries as well: what they do not see is multiplied by a weight
// of 0, and 0 times that is not a number. A loss that is not a number is found at once by whoever trains.
void what_is_not_a_number_stays_behind_its_block(Isa isa) {
    for (const Element element : {Element::Float32, Element::BFloat16}) {
        const Inputs good({element, 1, 2, 32, kPast, {30, 110, 20}});
        const Results before = found(isa, 1, good);
        constexpr int64_t kBegin = 30, kLength = 110, kBlock = 48, kBad = 50;  // of the second document
        for (const bool is_key : {true, false}) {
            Inputs bad = good;
            for (int64_t h = 0; h < bad.of.head_width; ++h) {
                write(element, bad.rows.data(), (kBegin + kBad) * bad.stride + (is_key ? bad.k_column() : bad.v_column()) + h, std::numeric_limits<float>::infinity());
            }
            const Results after = found(isa, 1, bad);
            const std::string where = std::string(isa_name(isa)) + " " + bad.of.name() + (is_key ? " key" : " value");
            const auto same_rows = [&](const Guarded& a, const Guarded& b, int64_t heads, int64_t from, int64_t to) {
                const int64_t row = heads * bad.of.head_width * bytes_of(element);
                return std::memcmp(a.data() + from * row, b.data() + from * row, at((to - from) * row)) == 0;
            };
            const int64_t safe = kBegin + (is_key ? kBad : kBlock);
            CHECK(same_rows(before.y, after.y, 2, 0, safe), "%s: earlier tokens changed", where.c_str());
            CHECK(same_rows(before.dq, after.dq, 2, 0, kBegin + kBlock), "%s: slopes of earlier queries changed", where.c_str());
            for (const auto& [a, b, heads] : {std::tuple{&before.y, &after.y, 2}, {&before.dq, &after.dq, 2}, {&before.dk, &after.dk, 1}, {&before.dv, &after.dv, 1}}) {
                CHECK(same_rows(*a, *b, heads, 0, kBegin) && same_rows(*a, *b, heads, kBegin + kLength, bad.tokens), "%s: another document changed", where.c_str());
            }
            CHECK(!std::isfinite(read(element, after.y.data(), ((kBegin + kBad) * 2) * bad.of.head_width)), "%s: it is not seen where it is", where.c_str());
        }
    }
}

}  // namespace

int main() {
    const FlushDenormals flush;  // plain loops as the kernels have it
    for (const Case& of : cases()) values_and_slopes_are_right(of);
    for (const Element element : {Element::Float32, Element::BFloat16}) {
        for (const Sight::Kind kind : {Sight::Kind::Chunks, Sight::Kind::Sliding}) a_window_of_one_token_is_right(element, kind);
    }
    for (const Isa isa : available_isas()) {
        bits_do_not_depend_on_threads_or_company(isa);
        callers_do_not_meet(isa);
        what_is_not_a_number_stays_behind_its_block(isa);
    }
    return herd::test::report("learning");
}
