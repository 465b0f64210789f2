// What one step consists of: tokens of several sequences packed one after another, and how attention is cut into tiles.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "program/key_values.h"

namespace herd {

// Buffers have one row per token of the step, or one per row of logits that is wanted.
enum class Rows { Tokens, Outputs };

// One sequence's part of a step, as the caller gives it. Meaning: backends/base.py.
struct Span {
    int64_t start;
    std::span<const int64_t> tokens;
    std::span<const int64_t> pages;
    int64_t outputs;
    int64_t adapter = -1;  // whose updates its rows have; -1: none
};

// Consecutive rows of a step that see the same pictures, in order.
struct Seeing {
    int64_t row, count;
    std::vector<std::shared_ptr<const KeyValues>> pictures;
};

// What a step's tokens have to do with pictures. Nothing, for most.
struct Pictures {
    std::span<const int32_t> picture_rows;  // rows of the step that `features` replaces
    const float* features = nullptr;        // [picture_rows][width]
    int64_t width = 0;
    std::span<const Seeing> seeing;         // by rising row
};

// `vocabulary` is the width of logits; a model may know further ids, `embeddings` in all (0: as many).
struct Limits {
    int64_t tokens, outputs, vocabulary;
    int64_t embeddings = 0;
    int64_t adapters = 0;

    int64_t ids() const { return embeddings > 0 ? embeddings : vocabulary; }
};

class Step {
  public:
    // Consecutive tokens of one sequence, in the cache and in the step.
    struct Part {
        int64_t row, count, position;
        int64_t first_page;  // of the sequence, in `pages`: those of one group of layers after the other
        int64_t blocks;      // pages of each group
    };
    struct Piece {
        int32_t tile, split;
    };

    Step(const Limits& limits, int64_t workers);

    // Takes over the spans. Throws std::invalid_argument, before anything of the step has changed, for a token outside the
    // vocabulary, a page outside 0 .. pages-1 that the tokens see, too few pages, or more tokens or outputs than the limits. `sights`:
    // of each group of layers what they see.
    void set(std::span<const Span> spans, int64_t pages, std::span<const std::vector<Sight>> sights);
    // Takes over, after `set`, what belongs to the same step. Throws std::invalid_argument for rows that the step does not have.
    void set(const Pictures& pictures);
    // Cuts the parts into tiles of at most `tile_tokens` tokens, and those into splits when there are few of them: when
    // tiles * kv_heads is below four per worker.
    void cut(int64_t tile_tokens, int64_t group, int64_t kv_heads);

    int64_t rows(Rows which) const { return which == Rows::Tokens ? tokens_ : outputs_; }
    const int32_t* pages_of(const Part& part, int64_t group) const { return pages.data() + part.first_page + group * part.blocks; }

    std::vector<int32_t> tokens;        // [T]
    std::vector<int32_t> positions;     // [T]
    std::vector<int32_t> output_rows;   // [R], rows of T
    std::vector<int32_t> pages;
    std::vector<Part> parts;            // one per span
    std::vector<Part> tiles;
    std::vector<Piece> pieces;          // one per split of a tile when `shared`
    std::vector<int32_t> first_piece;   // of each tile, when `shared`
    bool shared = false;                // the splits of a tile go to different workers

    // Runs of rows that see the same pictures; together they cover all rows.
    struct Sighted {
        int64_t row, count;
        std::span<const std::shared_ptr<const KeyValues>> pictures;
    };
    std::vector<Sighted> sighted;
    // Runs of rows of one adapter, at most kAdaptedRows each.
    struct Adapted {
        int64_t row, count, adapter;
    };
    std::vector<Adapted> adapted;

    std::vector<uint8_t> seen;          // [T], whether the row sees a picture
    bool any_seen = false;
    std::vector<int32_t> feature_rows;  // [T], of `features`, or -1
    const float* features = nullptr;    // [..][feature_width]
    int64_t feature_width = 0;

    static constexpr int64_t kAdaptedRows = 32;
    static constexpr int64_t kSharedRows = 16;  // rows of queries of a tile that may be shared, at most

  private:
    Limits limits_;
    int64_t workers_;
    int64_t tokens_ = 0, outputs_ = 0;
};

}  // namespace herd
