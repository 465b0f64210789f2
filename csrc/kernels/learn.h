// Attention over whole documents with a way back, for training: no cache, every query and key of a document at hand.
//
// Works on one head of one document at a time; csrc/learning/ hands them out. Numbers lie as torch has them, in float32 or bfloat16;
// sums, scores and softmaxes are float32. Over bfloat16 the set that has a dot product of pairs (avx512bf16) rounds weights and
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

// One query head of one document. `tops` [length]: log sum exp of each query's scaled scores.
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
    // to [count] = the sum of `parts` rows that lie `stride` floats apart, rounded once.
    void (*sum_parts)(Element element, const float* parts, int64_t num_parts, int64_t stride, int64_t count, void* to);
};

const LearnKernels& learn_kernels(Isa isa);

}  // namespace herd
