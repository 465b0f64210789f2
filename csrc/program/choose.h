// choose: the next token from a row of logits, as sampling/chain.py defines it.
//
//   logits -> bias -> penalties -> allowed -> (temperature 0: the largest) -> temperature -> top_k -> top_p -> min_p -> draw
//
// No full sort: weights above a falling threshold are collected until they hold what is asked for; if those are many, they
// are put into buckets, and only one bucket is sorted.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/cpu.h"
#include "base/memory.h"
#include "kernels/sample.h"

namespace herd {

constexpr int kMaxAlternatives = 20;

// Everything besides the logits that decides one token; the meanings are those of sampling/params.py and sampling/chain.py.
struct Draw {
    double temperature = 1.0, top_p = 1.0, min_p = 0.0;
    double repetition_penalty = 1.0, presence_penalty = 0.0, frequency_penalty = 0.0;
    int64_t top_k = 0;
    int64_t alternatives = 0;  // at most kMaxAlternatives
    uint64_t seed = 0;
    uint32_t position = 0, choice_index = 0;
    std::vector<int32_t> bias_ids;
    std::vector<double> biases;
    std::span<const int32_t> seen_ids, answer_counts;
    // One bit per token, from the lowest of the first word: whether it may be chosen. Empty: all may.
    std::span<const uint32_t> allowed;

    bool has_penalties() const { return repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0; }
};

// `token` is -1 if no distribution can be made of the row: it has NaN or +inf, or nothing but -inf; or if no token may be chosen.
struct Choice {
    int32_t token = -1;
    double logprob = 0.0;
    int64_t num_alternatives = 0;
    int32_t alternatives[kMaxAlternatives] = {};
    double alternative_logprobs[kMaxAlternatives] = {};
};

// Four words for a counter of four and a key of two: Philox 4x32 with 10 rounds. Source: sampling/random.py.
struct Words {
    uint32_t of[4];
};
Words philox(Words counter, uint32_t low_key, uint32_t high_key);

// A number in [0, 1), a multiple of 2^-53, for a draw.
double uniform(const Draw& draw);

// Chooses for rows of `vocabulary` logits, with scratch of its own: one per thread. Allocates nothing once made.
class Chooser {
  public:
    Chooser(Isa isa, int64_t vocabulary);
    // Ids in `draw` must be inside the vocabulary.
    Choice choose(const float* logits, const Draw& draw);

  private:
    struct Candidate {
        double logit, weight;
        int32_t id;
    };
    struct Found {
        int32_t id;
        double mass;  // the weights up to and including it
    };

    // The order of candidates: falling logit, rising id.
    static bool before(const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }
    bool has_top_k(const Draw& draw) const;
    bool adjust(const float* logits, const Draw& draw);
    void penalise(const Draw& draw);
    void forbid(std::span<const uint32_t> allowed);
    double weigh(const float* logits, double largest, double factor);
    int32_t pick(const float* logits, const Draw& draw, double total);
    void gather(const float* logits, const Draw& draw, double total, double u);
    double mass() const;
    Found find(double target);

    const SampleKernels& kernels_;
    const int64_t vocabulary_;
    AlignedBytes adjusted_, weights_, indices_;          // [V] double, double, int32
    AlignedBytes largest_logits_, largest_weights_;      // of every run: float, double
    bool is_adjusted_ = false;
    std::vector<Candidate> candidates_, bucket_, other_bucket_, ordered_;
};

}  // namespace herd
