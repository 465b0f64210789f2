// What training asks of a processor besides products of weights: operations with a way back.
//
// Attention works on one head of one document at a time, everything else on a row; csrc/learning/ hands them out. Numbers lie as torch
// has them, in float32 or bfloat16; sums, scores and softmaxes are float32. Over bfloat16 the set that has a dot product of pairs (avx512bf16) rounds weights and
// slopes to bfloat16 before products, as flash attention does; the others multiply in float32.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace herd {

enum class Element : int32_t { Float32, BFloat16 };

// The rows of one head: `stride` elements apart.
struct HeadRows {
    const void* data;
    int64_t stride;
};

// Keys and values of one head of a document as products read them, made once for all query heads that share them. Each part is
// `kept_floats` floats: keys and values with tokens side by side, keys and values with components side by side.
struct KeptHead {
    float *keys_by_token, *values_by_token, *keys_by_component, *values_by_component;
};

// One query head of one document. `tops` [length]: the largest of each query's scaled scores.
struct LearnedHead {
    int64_t length, head_width;
    Sight sight;
    float scale;
    HeadRows q;
    KeptHead kept;
    float* tops;
};

// `head_width` is a multiple of 16.
struct LearnKernels {
    int64_t (*kept_floats)(Element element, int64_t length, int64_t head_width);
    int64_t (*scratch_floats)(Element element, int64_t length, int64_t head_width);
    // Of a key head: `for_backward` also what only the way back reads.
    void (*keep)(Element element, int64_t length, int64_t head_width, HeadRows keys, HeadRows values, bool for_backward, const KeptHead& kept);
    // y = softmax(scale q k^T) v, rows `y_stride` elements apart; fills `tops`.
    void (*attend)(Element element, const LearnedHead& head, void* y, int64_t y_stride, float* scratch);
    // With P the softmax, dP = dy v^T and dS = P (dP - sum(P dP)): dq = scale dS k, dk += scale dS^T q, dv += P^T dy; dk and dv
    // are float32 [length][head width]. Reads `tops`.
    void (*attend_backward)(Element element, const LearnedHead& head, HeadRows dy, void* dq, int64_t dq_stride, float* dk, float* dv, float* scratch);
};

struct SoftmaxSum {
    float top, total;
};

// Single rows of `width` numbers. A result may not lie where an argument does, but where it says so.
struct LearnRowKernels {
    // to = the sum of `num_parts` rows of floats that lie `stride` floats apart, rounded once.
    void (*sum_parts)(Element element, const float* parts, int64_t num_parts, int64_t stride, int64_t width, void* to);
    // y = x factor scales, factor = 1 / sqrt(mean(x^2) + eps); `scales` may be null. Gives the factor.
    float (*rms_norm)(Element element, const void* x, const float* scales, float eps, int64_t width, void* y);
    // With n = x factor and g = scales dy: dx = factor (g - n mean(g n)); adds dy n to `for_scales` if that is not null.
    void (*rms_norm_backward)(Element element, const void* x, const float* scales, float factor, const void* dy, int64_t width, void* dx, float* for_scales);
    // Pairs of neighbours as complex numbers times cosine + i sine; `width` / 2 of these. y may be x.
    void (*rotate)(Element element, const void* x, const float* cosine, const float* sine, int64_t width, void* y);
    // y = silu(gate) up.
    void (*silu_gate)(Element element, const void* gate, const void* up, int64_t width, void* y);
    void (*silu_gate_backward)(Element element, const void* gate, const void* up, const void* dy, int64_t width, void* for_gate, void* for_up);
    // Of logits: the largest, and the sum of e^(logits - largest). Apart, as their log sum exp has no more digits than large logits leave it.
    SoftmaxSum (*softmax_sum)(Element element, const void* logits, int64_t width);
    // slopes = factor e^(logits - top), less 1 at `target`; may lie where the logits do.
    void (*softmax_slopes)(Element element, const void* logits, float top, float factor, int64_t target, int64_t width, void* slopes);
    float (*number_at)(Element element, const void* row, int64_t place);
};

const LearnKernels& learn_kernels(Isa isa);
const LearnRowKernels& learn_row_kernels(Isa isa);

}  // namespace herd
