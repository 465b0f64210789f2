// Attention inside packed documents, forwards and backwards: rows of tokens, one document after another, as training has them.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/learn.h"

namespace herd {

// [T][heads][head width], rows `stride` elements apart, heads side by side.
struct TokenRows {
    const void* data;
    int64_t stride;
};

struct DocumentAttention {
    Element element;
    std::span<const int64_t> lengths;  // of the documents, together T
    int64_t heads, kv_heads, head_width;
    float scale;
    Sight sight;

    int64_t tokens() const;
};

// Bytes of the memory that both of the following work in.
int64_t attention_workspace_bytes(const LearnKernels& kernels, int threads, const DocumentAttention& of, bool for_backward);

// y [T][heads][head width] and tops [heads][T] (the largest of each query's scaled scores), which the way back reads.
void attend_documents(const LearnKernels& kernels, int threads, const DocumentAttention& of, TokenRows q, TokenRows k, TokenRows v, void* y, float* tops,
                      uint8_t* workspace);

// dq [T][heads][head width], dk and dv [T][kv heads][head width], all without gaps.
void attend_documents_backward(const LearnKernels& kernels, const LearnRowKernels& row_kernels, int threads, const DocumentAttention& of, TokenRows q, TokenRows k, TokenRows v, const float* tops,
                               TokenRows dy, void* dq, void* dk, void* dv, uint8_t* workspace);

}  // namespace herd
