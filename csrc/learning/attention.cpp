#include "learning/attention.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/team.h"

namespace herd {

namespace {

int64_t element_bytes(Element element) { return element == Element::Float32 ? 4 : 2; }

// The documents in the order in which they are handed out: long ones first, so that no thread begins with one when the others are done.
struct Order {
    std::vector<int64_t> documents, first_tokens;

    explicit Order(std::span<const int64_t> lengths) : documents(lengths.size()), first_tokens(lengths.size()) {
        std::iota(documents.begin(), documents.end(), 0);
        std::ranges::stable_sort(documents, [&](int64_t a, int64_t b) { return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)]; });
        int64_t token = 0;
        for (size_t i = 0; i < lengths.size(); ++i) {
            first_tokens[i] = token;
            token += lengths[i];
        }
    }
};

// One head of one document.
struct Place {
    size_t document;
    int64_t first_token, head;
};

Place place_of(const Order& order, int64_t heads, int64_t piece) {
    const auto document = static_cast<size_t>(order.documents[static_cast<size_t>(piece / heads)]);
    return {document, order.first_tokens[document], piece % heads};
}

HeadRows rows_of(const DocumentAttention& of, TokenRows rows, int64_t first_token, int64_t head) {
    const int64_t offset = (first_token * rows.stride + head * of.head_width) * element_bytes(of.element);
    return {static_cast<const uint8_t*>(rows.data) + offset, rows.stride};
}

// As `rows_of`, of what is written and has no gaps.
void* written(const DocumentAttention& of, void* data, int64_t heads, int64_t first_token, int64_t head) {
    return static_cast<uint8_t*>(data) + (first_token * heads + head) * of.head_width * element_bytes(of.element);
}

// How the workspace is divided, in floats: what products read of keys and values, of each document and kv head; scratch for each thread;
// and on the way back dk and dv of each query head.
class Workspace {
  public:
    Workspace(const LearnKernels& kernels, int threads, const DocumentAttention& of, bool for_backward)
        : kernels_(kernels), of_(of), for_backward_(for_backward), begins_(of.lengths.size()) {
        for (size_t i = 0; i < of.lengths.size(); ++i) {
            begins_[i] = floats_;
            sizes_.push_back(kernels.kept_floats(of.element, of.lengths[i], of.head_width));
            floats_ += sizes_.back() * (for_backward ? 3 : 2) * of.kv_heads;
        }
        scratch_ = rounded();
        scratch_floats_ = kernels.scratch_floats(of.element, std::ranges::max(of.lengths), of.head_width);
        floats_ = scratch_ + scratch_floats_ * threads;
        parts_ = rounded();
        floats_ = parts_ + (for_backward ? 2 * of.heads * of.tokens() * of.head_width : 0);
    }

    int64_t bytes() const { return 4 * floats_; }
    float* scratch(uint8_t* memory, int worker) const { return at(memory, scratch_ + worker * scratch_floats_); }
    float* parts(uint8_t* memory) const { return at(memory, parts_); }

    KeptHead head(uint8_t* memory, size_t document, int64_t kv_head) const {
        const int64_t size = sizes_[document];
        float* base = at(memory, begins_[document] + kv_head * (for_backward_ ? 3 : 2) * size);
        if (for_backward_) return {base, base + size, base + 2 * size, nullptr};
        return {base, nullptr, nullptr, base + size};
    }

    void keep(uint8_t* memory, int threads, const Order& order, TokenRows k, TokenRows v) const {
        share(threads, static_cast<int64_t>(of_.lengths.size()) * of_.kv_heads, [&](int64_t piece, int) {
            const Place at = place_of(order, of_.kv_heads, piece);
            kernels_.keep(of_.element, of_.lengths[at.document], of_.head_width, rows_of(of_, k, at.first_token, at.head),
                          rows_of(of_, v, at.first_token, at.head), for_backward_, head(memory, at.document, at.head));
        });
    }

  private:
    static float* at(uint8_t* memory, int64_t floats) { return reinterpret_cast<float*>(memory) + floats; }
    int64_t rounded() const { return (floats_ + 15) / 16 * 16; }

    const LearnKernels& kernels_;
    const DocumentAttention& of_;
    bool for_backward_;
    std::vector<int64_t> begins_, sizes_;
    int64_t floats_ = 0, scratch_ = 0, scratch_floats_ = 0, parts_ = 0;
};

LearnedHead learned(const DocumentAttention& of, const Place& at, TokenRows q, const KeptHead& kept, const float* tops) {
    float* row = const_cast<float*>(tops) + at.head * of.tokens() + at.first_token;
    return {of.lengths[at.document], of.head_width, of.sight, of.scale, rows_of(of, q, at.first_token, at.head), kept, row};
}

}  // namespace

int64_t DocumentAttention::tokens() const { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }

int64_t attention_workspace_bytes(const LearnKernels& kernels, int threads, const DocumentAttention& of, bool for_backward) {
    return Workspace(kernels, threads, of, for_backward).bytes();
}

void attend_documents(const LearnKernels& kernels, int threads, const DocumentAttention& of, TokenRows q, TokenRows k, TokenRows v, void* y, float* tops,
                      uint8_t* memory) {
    const Order order(of.lengths);
    const Workspace workspace(kernels, threads, of, false);
    const int64_t group = of.heads / of.kv_heads;
    workspace.keep(memory, threads, order, k, v);
    share(threads, static_cast<int64_t>(of.lengths.size()) * of.heads, [&](int64_t piece, int worker) {
        const Place at = place_of(order, of.heads, piece);
        const LearnedHead head = learned(of, at, q, workspace.head(memory, at.document, at.head / group), tops);
        kernels.attend(of.element, head, written(of, y, of.heads, at.first_token, at.head), of.heads * of.head_width, workspace.scratch(memory, worker));
    });
}

void attend_documents_backward(const LearnKernels& kernels, const LearnRowKernels& row_kernels, int threads, const DocumentAttention& of, TokenRows q, TokenRows k, TokenRows v, const float* tops,
                               TokenRows dy, void* dq, void* dk, void* dv, uint8_t* memory) {
    const Order order(of.lengths);
    const Workspace workspace(kernels, threads, of, true);
    const int64_t tokens = of.tokens(), group = of.heads / of.kv_heads, plane = tokens * of.head_width;
    // dk and dv of each query head: those that share a kv head are summed in one order.
    float *for_keys = workspace.parts(memory), *for_values = for_keys + of.heads * plane;
    workspace.keep(memory, threads, order, k, v);
    share(threads, static_cast<int64_t>(of.lengths.size()) * of.heads, [&](int64_t piece, int worker) {
        const Place at = place_of(order, of.heads, piece);
        const int64_t part = at.head * plane + at.first_token * of.head_width, floats = of.lengths[at.document] * of.head_width;
        std::fill_n(for_keys + part, floats, 0.0f);
        std::fill_n(for_values + part, floats, 0.0f);
        const LearnedHead head = learned(of, at, q, workspace.head(memory, at.document, at.head / group), tops);
        kernels.attend_backward(of.element, head, rows_of(of, dy, at.first_token, at.head), written(of, dq, of.heads, at.first_token, at.head),
                                of.heads * of.head_width, for_keys + part, for_values + part, workspace.scratch(memory, worker));
    });
    constexpr int64_t kRows = 64;
    share(threads, (tokens + kRows - 1) / kRows, [&](int64_t piece, int) {
        for (int64_t token = piece * kRows; token < std::min(tokens, (piece + 1) * kRows); ++token) {
            for (int64_t head = 0; head < of.kv_heads; ++head) {
                const int64_t part = head * group * plane + token * of.head_width;
                row_kernels.sum_parts(of.element, for_keys + part, group, plane, of.head_width, written(of, dk, of.kv_heads, token, head));
                row_kernels.sum_parts(of.element, for_values + part, group, plane, of.head_width, written(of, dv, of.kv_heads, token, head));
            }
        }
    });
}

}  // namespace herd
