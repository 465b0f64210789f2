// What one step consists of: tokens of several sequences packed one after another, and how attention is cut into tiles.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace herd {

// Buffers have one row per token of the step, or one per row of logits that is wanted.
enum class Rows { Tokens, Outputs };

// One sequence's part of a step, as the caller gives it. Meaning: backends/base.py.
struct Span {
    int64_t start;
    std::span<const int64_t> tokens;
    std::span<const int64_t> pages;
    int64_t outputs;
};

struct Limits {
    int64_t tokens, outputs, vocabulary;
};

class Step {
  public:
    // Consecutive tokens of one sequence, in the cache and in the step.
    struct Part {
        int64_t row, count, position;
        int64_t first_page;  // of the sequence, in `pages`
    };
    struct Piece {
        int32_t tile, split;
    };

    Step(const Limits& limits, int64_t workers);

    // Takes over the spans. Throws std::invalid_argument, before anything of the step has changed, for a token outside the
    // vocabulary, a page outside 0 .. pages-1, too few pages, or more tokens or outputs than the limits.
    void set(std::span<const Span> spans, int64_t pages);
    // Cuts the parts into tiles of at most `tile_tokens` tokens, and those into splits when there are few of them: when
    // tiles * kv_heads is below four per worker.
    void cut(int64_t tile_tokens, int64_t group, int64_t kv_heads);

    int64_t rows(Rows which) const { return which == Rows::Tokens ? tokens_ : outputs_; }
    const int32_t* pages_of(const Part& part) const { return pages.data() + part.first_page; }

    std::vector<int32_t> tokens;        // [T]
    std::vector<int32_t> positions;     // [T]
    std::vector<int32_t> output_rows;   // [R], rows of T
    std::vector<int32_t> pages;
    std::vector<Part> parts;            // one per span
    std::vector<Part> tiles;
    std::vector<Piece> pieces;          // one per split of a tile when `shared`
    std::vector<int32_t> first_piece;   // of each tile, when `shared`
    bool shared = false;                // the splits of a tile go to different workers

    static constexpr int64_t kSharedRows = 16;  // rows of queries of a tile that may be shared, at most

  private:
    Limits limits_;
    int64_t workers_;
    int64_t tokens_ = 0, outputs_ = 0;
};

}  // namespace herd
