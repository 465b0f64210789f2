#include "program/step.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "base/memory.h"
#include "kernels/kernels.h"

namespace herd {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

using Sights = std::span<const std::vector<Sight>>;

// Pages of all groups that hold what the span's tokens see, and what they write, are in the cache.
void check_pages(const Span& span, const std::string& at, int64_t pages, Sights sights) {
    const int64_t end = span.start + static_cast<int64_t>(span.tokens.size()), blocks = divide_up(end, kPageTokens);
    const auto groups = static_cast<int64_t>(sights.size()), needed = blocks * groups;
    if (static_cast<int64_t>(span.pages.size()) < needed) {
        refuse(at + " needs " + std::to_string(needed) + " pages for its " + std::to_string(end) + " tokens and has " +
               std::to_string(span.pages.size()));
    }
    if (blocks > pages) refuse(at + " has " + std::to_string(blocks) + " blocks of tokens; there are " + std::to_string(pages) + " pages");
    for (int64_t group = 0; group < groups; ++group) {
        int64_t first = span.start;
        for (const Sight& sight : sights[static_cast<size_t>(group)]) first = std::min(first, sight.first(span.start));
        for (int64_t block = first / kPageTokens; block < blocks; ++block) {
            const int64_t page = span.pages[static_cast<size_t>(block * groups + group)];
            if (page < 0 || page >= pages) refuse(at + " names page " + std::to_string(page) + "; there are " + std::to_string(pages));
        }
    }
}

void check(const Span& span, size_t index, const Limits& limits, int64_t pages, Sights sights) {
    const std::string at = "span " + std::to_string(index);
    const auto count = static_cast<int64_t>(span.tokens.size());
    if (count == 0) refuse(at + " has no tokens");
    constexpr int64_t kLastStart = int64_t{1} << 30;  // positions are 32-bit
    if (span.start < 0 || span.start > kLastStart) {
        refuse(at + " starts at position " + std::to_string(span.start) + "; positions go from 0 to " + std::to_string(kLastStart));
    }
    if (span.outputs < 0 || span.outputs > count) {
        refuse(at + " asks for logits of " + std::to_string(span.outputs) + " of its " + std::to_string(count) + " tokens");
    }
    for (size_t i = 0; i < span.tokens.size(); ++i) {
        if (span.tokens[i] < 0 || span.tokens[i] >= limits.ids()) {
            refuse("token " + std::to_string(span.tokens[i]) + " at position " + std::to_string(span.start + static_cast<int64_t>(i)) + " of " + at +
                   " is outside the vocabulary of " + std::to_string(limits.ids()));
        }
    }
    if (span.adapter < -1 || span.adapter >= limits.adapters) {
        refuse(at + " names adapter " + std::to_string(span.adapter) + "; there are " + std::to_string(limits.adapters));
    }
    check_pages(span, at, pages, sights);
}

}  // namespace

Step::Step(const Limits& limits, int64_t workers) : limits_(limits), workers_(workers) {
    const auto most = static_cast<size_t>(limits.tokens);
    tokens.reserve(most);
    positions.reserve(most);
    output_rows.reserve(static_cast<size_t>(limits.outputs));
    parts.reserve(most);
    adapted.reserve(most);
    tiles.reserve(most);
    first_piece.reserve(most);
    seen.reserve(most);
    feature_rows.reserve(most);
    sighted.reserve(most);
}

void Step::set(std::span<const Span> spans, int64_t num_pages, Sights sights) {
    int64_t count = 0, outputs = 0;
    for (size_t i = 0; i < spans.size(); ++i) {
        check(spans[i], i, limits_, num_pages, sights);
        count += static_cast<int64_t>(spans[i].tokens.size());
        outputs += spans[i].outputs;
    }
    if (count == 0) refuse("a step needs at least one token");
    if (count > limits_.tokens) refuse("a step of " + std::to_string(count) + " tokens; the buffers hold " + std::to_string(limits_.tokens));
    if (outputs > limits_.outputs) {
        refuse("a step with " + std::to_string(outputs) + " rows of logits; the buffers hold " + std::to_string(limits_.outputs));
    }
    tokens_ = count;
    outputs_ = outputs;
    tokens.clear();
    positions.clear();
    output_rows.clear();
    pages.clear();
    parts.clear();
    adapted.clear();
    for (const Span& span : spans) {
        const auto row = static_cast<int64_t>(tokens.size()), length = static_cast<int64_t>(span.tokens.size());
        const int64_t blocks = divide_up(span.start + length, kPageTokens);
        parts.push_back({row, length, span.start, static_cast<int64_t>(pages.size()), blocks});
        for (int64_t i = 0; i < length; ++i) {
            tokens.push_back(static_cast<int32_t>(span.tokens[static_cast<size_t>(i)]));
            positions.push_back(static_cast<int32_t>(span.start + i));
        }
        if (span.adapter >= 0) {
            for (int64_t i = 0; i < length; i += kAdaptedRows) adapted.push_back({row + i, std::min(length - i, kAdaptedRows), span.adapter});
        }
        for (int64_t i = length - span.outputs; i < length; ++i) output_rows.push_back(static_cast<int32_t>(row + i));
        for (size_t group = 0; group < sights.size(); ++group) {
            for (size_t at = group; at < static_cast<size_t>(blocks) * sights.size(); at += sights.size()) pages.push_back(static_cast<int32_t>(span.pages[at]));
        }
    }
}

void Step::set(const Pictures& pictures) {
    seen.assign(static_cast<size_t>(tokens_), 0);
    feature_rows.assign(static_cast<size_t>(tokens_), -1);
    sighted.clear();
    any_seen = false;
    features = pictures.features;
    feature_width = pictures.width;
    for (size_t i = 0; i < pictures.picture_rows.size(); ++i) {
        const int32_t row = pictures.picture_rows[i];
        if (row < 0 || row >= tokens_) refuse("row " + std::to_string(row) + " cannot be a picture's; the step has " + std::to_string(tokens_));
        feature_rows[static_cast<size_t>(row)] = static_cast<int32_t>(i);
    }
    int64_t row = 0;
    for (const Seeing& part : pictures.seeing) {
        if (part.row < row || part.count < 1 || part.row + part.count > tokens_) {
            refuse("rows from " + std::to_string(part.row) + " cannot see a picture; the step has " + std::to_string(tokens_));
        }
        if (part.row > row) sighted.push_back({row, part.row - row, {}});
        sighted.push_back({part.row, part.count, part.pictures});
        row = part.row + part.count;
        if (part.pictures.empty()) continue;
        any_seen = true;
        for (int64_t at = part.row; at < row; ++at) seen[static_cast<size_t>(at)] = 1;
    }
    if (row < tokens_) sighted.push_back({row, tokens_ - row, {}});
}

void Step::cut(int64_t tile_tokens, int64_t group, int64_t kv_heads) {
    tiles.clear();
    pieces.clear();
    first_piece.clear();
    int64_t longest = 0;
    for (const Part& part : parts) {
        for (int64_t done = 0; done < part.count; done += tile_tokens) {
            const int64_t count = std::min(tile_tokens, part.count - done);
            tiles.push_back({part.row + done, count, part.position + done, part.first_page, part.blocks});
            longest = std::max(longest, count);
        }
    }
    shared = workers_ > 1 && static_cast<int64_t>(tiles.size()) * kv_heads < 4 * workers_ && longest * group <= kSharedRows;
    if (!shared) return;
    for (size_t tile = 0; tile < tiles.size(); ++tile) {
        first_piece.push_back(static_cast<int32_t>(pieces.size()));
        const int64_t splits = divide_up(tiles[tile].position + tiles[tile].count, kSplitTokens);
        for (int64_t split = 0; split < splits; ++split) pieces.push_back({static_cast<int32_t>(tile), static_cast<int32_t>(split)});
    }
}

}  // namespace herd
