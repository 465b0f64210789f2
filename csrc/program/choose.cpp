// choose: see choose.h. The few candidates that matter are handled here, once for all instruction sets.
#include "program/choose.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace herd {

namespace {

// A row's candidates are those with weights above the first of these that holds enough.
constexpr double kThresholds[] = {0x1p-4, 0x1p-7, 0x1p-11, 0x1p-16, 0x1p-24, 0.0};
constexpr double kLargestFactor = 1e300;  // of the exponents: the reciprocal of the temperature
constexpr size_t kSorted = 256;    // so many candidates are sorted, more are divided
constexpr size_t kBuckets = 1024;

}  // namespace

Words philox(Words counter, uint32_t low_key, uint32_t high_key) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t low = uint64_t{0xD2511F53} * counter.of[0];
        const uint64_t high = uint64_t{0xCD9E8D57} * counter.of[2];
        counter = {{static_cast<uint32_t>(high >> 32) ^ counter.of[1] ^ low_key, static_cast<uint32_t>(high),
                    static_cast<uint32_t>(low >> 32) ^ counter.of[3] ^ high_key, static_cast<uint32_t>(low)}};
        low_key += 0x9E3779B9u;
        high_key += 0xBB67AE85u;
    }
    return counter;
}

double uniform(const Draw& draw) {
    const Words words = philox({{draw.position, draw.choice_index, 0, 0}}, static_cast<uint32_t>(draw.seed), static_cast<uint32_t>(draw.seed >> 32));
    return static_cast<double>(uint64_t{words.of[0] >> 5} << 26 | words.of[1] >> 6) * 0x1p-53;
}

Chooser::Chooser(Isa isa, int64_t vocabulary)
    : kernels_(sample_kernels(isa)),
      vocabulary_(vocabulary),
      adjusted_(vocabulary * 8),
      weights_(vocabulary * 8),
      indices_(vocabulary * 4),
      largest_logits_(divide_up(vocabulary, kRun) * 4),
      largest_weights_(divide_up(vocabulary, kRun) * 8) {
    // Choosing runs inside the pool, where nothing may throw: room for every token is taken now. It costs memory only once used.
    for (std::vector<Candidate>* list : {&candidates_, &bucket_, &other_bucket_, &ordered_}) list->reserve(static_cast<size_t>(vocabulary));
}

Choice Chooser::choose(const float* logits, const Draw& draw) {
    Choice choice;
    float* runs = largest_logits_.as<float>();
    const Largest raw = kernels_.largest(logits, vocabulary_, runs);
    if (raw.has_nan || !std::isfinite(raw.value)) return choice;
    is_adjusted_ = adjust(logits, draw);
    const Largest largest = is_adjusted_ ? kernels_.largest_double(adjusted_.as<double>(), vocabulary_) : raw;
    if (!std::isfinite(largest.value)) return choice;  // nothing is allowed
    double total = 0.0;  // of exp(logit - largest), known already if the weights are just these
    if (draw.temperature == 0.0) {
        choice.token = static_cast<int32_t>(largest.index);
    } else {
        const double weighed = weigh(logits, largest.value, std::min(1.0 / draw.temperature, kLargestFactor));
        choice.token = pick(logits, draw, weighed);
        if (!is_adjusted_ && draw.temperature == 1.0) total = weighed;
    }
    if (total == 0.0) total = kernels_.sum(logits, vocabulary_, raw.value);
    const double normaliser = raw.value + std::log(total);
    choice.logprob = logits[choice.token] - normaliser;
    choice.num_alternatives = kernels_.most(logits, runs, vocabulary_, draw.alternatives, choice.alternatives);
    for (int64_t i = 0; i < choice.num_alternatives; ++i) choice.alternative_logprobs[i] = logits[choice.alternatives[i]] - normaliser;
    return choice;
}

// Fills the weights; returns their sum.
double Chooser::weigh(const float* logits, double largest, double factor) {
    double* weights = weights_.as<double>();
    double* runs = largest_weights_.as<double>();
    if (is_adjusted_) return kernels_.weigh_double(adjusted_.as<double>(), vocabulary_, largest, factor, weights, runs);
    return kernels_.weigh(logits, vocabulary_, largest, factor, weights, runs);
}

// Logits after bias, penalties and what is not allowed, if there is any of it.
bool Chooser::adjust(const float* logits, const Draw& draw) {
    if (draw.bias_ids.empty() && !draw.has_penalties() && draw.allowed.empty()) return false;
    double* adjusted = adjusted_.as<double>();
    std::copy(logits, logits + vocabulary_, adjusted);
    for (size_t i = 0; i < draw.bias_ids.size(); ++i) adjusted[draw.bias_ids[i]] += draw.biases[i];
    if (draw.has_penalties()) penalise(draw);
    if (!draw.allowed.empty()) forbid(draw.allowed);
    return true;
}

void Chooser::penalise(const Draw& draw) {
    double* adjusted = adjusted_.as<double>();
    for (size_t i = 0; i < draw.seen_ids.size(); ++i) {
        double& value = adjusted[draw.seen_ids[i]];
        value = value > 0.0 ? value / draw.repetition_penalty : value * draw.repetition_penalty;
        value -= (draw.answer_counts[i] > 0 ? draw.presence_penalty : 0.0) + draw.frequency_penalty * draw.answer_counts[i];
    }
}

// What is not allowed becomes -inf.
void Chooser::forbid(std::span<const uint32_t> allowed) {
    constexpr int64_t kBits = 32;
    constexpr double kNever = -std::numeric_limits<double>::infinity();
    double* adjusted = adjusted_.as<double>();
    for (size_t word = 0; word < allowed.size(); ++word) {
        const uint32_t bits = allowed[word];
        const int64_t begin = static_cast<int64_t>(word) * kBits, size = std::min(kBits, vocabulary_ - begin);
        if (bits == ~uint32_t{0}) continue;
        if (bits == 0) {
            std::fill_n(adjusted + begin, size, kNever);
            continue;
        }
        for (int64_t i = 0; i < size; ++i) {
            if ((bits >> i & 1u) == 0) adjusted[begin + i] = kNever;
        }
    }
}

// A token by the weights, whose sum is `total`.
int32_t Chooser::pick(const float* logits, const Draw& draw, double total) {
    const double u = uniform(draw);
    gather(logits, draw, total, u);
    if (has_top_k(draw)) {
        const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(std::min<size_t>(candidates_.size(), static_cast<size_t>(draw.top_k)));
        if (end < candidates_.end()) std::nth_element(candidates_.begin(), end, candidates_.end(), before);
        candidates_.erase(end, candidates_.end());
        total = mass();
    }
    const double nucleus = draw.top_p * total;
    if (draw.min_p > 0.0) {
        std::erase_if(candidates_, [&](const Candidate& candidate) { return candidate.weight < draw.min_p; });
        total = mass();
    }
    if (draw.top_p < 1.0) total = find(nucleus).mass;
    return find(u * total).id;
}

bool Chooser::has_top_k(const Draw& draw) const { return draw.top_k > 0 && draw.top_k < vocabulary_; }

double Chooser::mass() const {
    double sum = 0.0;
    for (const Candidate& candidate : candidates_) sum += candidate.weight;
    return sum;
}

// Fills the candidates with at least those that can be drawn and, with top_k, all of the k.
void Chooser::gather(const float* logits, const Draw& draw, double total, double u) {
    const double* weights = weights_.as<double>();
    int32_t* indices = indices_.as<int32_t>();
    const double lowest = has_top_k(draw) ? 0.0 : draw.min_p;
    const double needed = (draw.top_p < 1.0 ? draw.top_p : draw.min_p > 0.0 ? 1.0 : u) * total * (1.0 + 1e-9);
    int64_t count = 0;
    for (const double step : kThresholds) {
        const double threshold = std::max(step, lowest);
        count = kernels_.collect(weights, largest_weights_.as<double>(), vocabulary_, threshold, indices);
        if (threshold == lowest) break;  // nothing below can be drawn
        if (has_top_k(draw)) {
            if (count >= draw.top_k) break;
            continue;
        }
        double sum = 0.0;
        for (int64_t i = 0; i < count; ++i) sum += weights[indices[i]];
        if (sum > needed) break;
    }
    candidates_.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
        const int32_t id = indices[i];
        candidates_[static_cast<size_t>(i)] = {is_adjusted_ ? adjusted_.as<double>()[id] : static_cast<double>(logits[id]), weights[id], id};
    }
}

// The first candidate, in order, up to which the weights sum to more than `target`; the last one if none does.
// Many candidates are put into buckets by their logits first, and only the bucket that the sum passes `target` in is looked into.
Chooser::Found Chooser::find(double target) {
    const std::vector<Candidate>* all = &candidates_;
    double below = 0.0;  // the weights of all candidates before those in `all`
    while (all->size() > kSorted) {
        const auto [low, high] = std::minmax_element(all->begin(), all->end(), [](const Candidate& a, const Candidate& b) { return a.logit < b.logit; });
        const double top = high->logit, scale = (kBuckets - 1) / (top - low->logit);
        if (!std::isfinite(scale)) break;  // they are equal
        const auto bucket_of = [&](const Candidate& candidate) { return static_cast<size_t>((top - candidate.logit) * scale); };
        std::array<double, kBuckets> sums{};
        for (const Candidate& candidate : *all) sums[bucket_of(candidate)] += candidate.weight;
        size_t bucket = 0, last = 0;
        for (size_t i = 0; i < kBuckets; ++i) last = sums[i] > 0.0 ? i : last;
        while (bucket < last && below + sums[bucket] <= target) below += sums[bucket++];
        std::vector<Candidate>& inside = all == &bucket_ ? other_bucket_ : bucket_;
        inside.clear();
        for (const Candidate& candidate : *all) {
            if (bucket_of(candidate) == bucket) inside.push_back(candidate);
        }
        all = &inside;
    }
    ordered_ = *all;
    std::sort(ordered_.begin(), ordered_.end(), before);
    for (const Candidate& candidate : ordered_) {
        below += candidate.weight;
        if (below > target) return {candidate.id, below};
    }
    return {ordered_.back().id, below};
}

}  // namespace herd
