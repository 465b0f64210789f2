// Choosing tokens: published random numbers, and every path at sizes where vectors end in the middle of a run.
// What is chosen is compared with the definition in numpy by tests/sampling/test_native_sample.py.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "program/choose.h"

namespace {

int failures = 0;

void check(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "failed: %s\n", what);
    ++failures;
}

// Known answers for philox4x32-10 from Random123, the library of the paper's authors (tests/kat_vectors).
void philox_gives_the_published_words() {
    const herd::Words zero = herd::philox({{0, 0, 0, 0}}, 0, 0);
    check(zero.of[0] == 0x6627e8d5u && zero.of[1] == 0xe169c58du && zero.of[2] == 0xbc57ac4cu && zero.of[3] == 0x9b00dbd8u, "philox of zeros");
    const herd::Words pi = herd::philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0);
    check(pi.of[0] == 0xd16cfe09u && pi.of[1] == 0x94fdccebu && pi.of[2] == 0x5001e420u && pi.of[3] == 0x24126ea1u, "philox of pi");
}

std::vector<herd::Draw> draws() {
    std::vector<herd::Draw> all(1);
    all[0].temperature = 0.0;
    for (const double top_p : {1.0, 0.9, 0.0}) {
        for (const double min_p : {0.0, 0.2}) {
            for (const int64_t top_k : {0, 3, 1000}) {
                herd::Draw draw;
                draw.temperature = 1.5;
                draw.top_p = top_p;
                draw.min_p = min_p;
                draw.top_k = top_k;
                draw.alternatives = herd::kMaxAlternatives;
                draw.seed = 12345678901234567u;
                all.push_back(draw);
            }
        }
    }
    return all;
}

void every_path_at_every_size(herd::Isa isa) {
    static const int32_t seen[] = {0};
    static const int32_t counts[] = {2};
    for (const int64_t size : {1, 2, 7, 8, 9, 127, 128, 129, 1000, 5003}) {
        std::vector<float> logits(static_cast<size_t>(size));
        for (int64_t i = 0; i < size; ++i) logits[static_cast<size_t>(i)] = static_cast<float>((i * 7919) % 1009) * 0.01f;
        herd::Chooser chooser(isa, size);
        for (herd::Draw draw : draws()) {
            for (draw.position = 0; draw.position < 8; ++draw.position) {
                draw.frequency_penalty = draw.position % 2 == 0 ? 0.0 : 0.5;
                draw.seen_ids = seen;
                draw.answer_counts = counts;
                const herd::Choice choice = chooser.choose(logits.data(), draw);
                check(choice.token >= 0 && choice.token < size && choice.logprob <= 1e-12, "a token of the vocabulary");
                check(choice.num_alternatives == std::min<int64_t>(size, draw.alternatives), "as many alternatives as asked for");
            }
        }
    }
}

void rows_without_a_distribution(herd::Isa isa) {
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float bad : {std::nanf(""), infinity}) {
        for (const size_t where : {0u, 127u, 128u, 300u}) {
            std::vector<float> logits(301, 0.0f);
            logits[where] = bad;
            check(herd::Chooser(isa, 301).choose(logits.data(), {}).token == -1, "no choice from NaN or +inf");
        }
    }
    const std::vector<float> nothing(301, -infinity);
    check(herd::Chooser(isa, 301).choose(nothing.data(), {}).token == -1, "no choice from nothing but -inf");
}

// Of allowed tokens alone, each at its place in a word; and none where none is allowed.
void only_what_is_allowed(herd::Isa isa) {
    for (const int64_t size : {1, 31, 32, 33, 300}) {
        std::vector<float> logits(static_cast<size_t>(size), 0.0f);
        logits[0] = 5.0f;
        herd::Chooser chooser(isa, size);
        for (herd::Draw draw : draws()) {
            std::vector<uint32_t> words(static_cast<size_t>((size + 31) / 32));
            draw.allowed = words;
            check(chooser.choose(logits.data(), draw).token == -1, "no choice where nothing is allowed");
            for (int64_t id = 0; id < size; ++id) {
                words.assign(words.size(), 0u);
                words[static_cast<size_t>(id / 32)] = 1u << (id % 32);
                check(chooser.choose(logits.data(), draw).token == id, "the one token that is allowed");
            }
        }
    }
}

}  // namespace

int main() {
    philox_gives_the_published_words();
    for (const herd::Isa isa : herd::available_isas()) {
        every_path_at_every_size(isa);
        rows_without_a_distribution(isa);
        only_what_is_allowed(isa);
    }
    return failures == 0 ? 0 : 1;
}
