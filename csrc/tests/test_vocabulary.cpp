// Vocabularies: what is read, what is left to others, and how pieces merge.
#include <cstring>
#include <string>
#include <vector>

#include "base/memory.h"
#include "tests/check.h"
#include "text/vocabulary.h"

using namespace herd;

namespace {

std::vector<uint8_t> stored(const std::vector<std::string>& texts) {
    std::vector<uint8_t> bytes;
    for (const std::string& text : texts) {
        const uint64_t size = text.size();
        const auto* length = reinterpret_cast<const uint8_t*>(&size);
        bytes.insert(bytes.end(), length, length + 8);
        bytes.insert(bytes.end(), text.begin(), text.end());
    }
    return bytes;
}

const std::vector<std::string> kTokens = {"<s>", "a", "b", "c", "ab", "bc", "abc", "\xC4\xA0", "\xC4\xA0" "ab"};
const std::vector<int32_t> kKinds = {3, 1, 1, 1, 1, 1, 1, 1, 1};
const std::vector<std::string> kMerges = {"b c", "a b", "a bc", "\xC4\xA0 ab"};

std::optional<Vocabulary> read(const std::vector<uint8_t>& tokens, int64_t count, const std::vector<int32_t>& kinds, const std::vector<uint8_t>& merges,
                               int64_t merge_count) {
    return read_vocabulary({tokens, count}, kinds, {merges, merge_count});
}

std::vector<int32_t> ids(const Vocabulary& vocabulary, const std::string& piece, bool whole_first = false) {
    std::vector<int32_t> found;
    vocabulary.merge(piece, whole_first, found);
    return found;
}

void pieces_merge_by_rank_and_from_the_left() {
    const auto vocabulary = read(stored(kTokens), 9, kKinds, stored(kMerges), 4);
    CHECK(vocabulary.has_value(), "not read");
    CHECK(vocabulary->size() == 9 && vocabulary->token(8) == kTokens[8], "tokens");
    CHECK(vocabulary->exceptions().size() == 1 && vocabulary->exceptions()[0].first == 0, "exceptions");
    CHECK((ids(*vocabulary, "abc") == std::vector<int32_t>{6}), "b c comes first, then a bc");
    CHECK((ids(*vocabulary, "abab") == std::vector<int32_t>{4, 4}), "twice");
    CHECK((ids(*vocabulary, "\xC4\xA0" "ab") == std::vector<int32_t>{8}), "two-byte characters");
    CHECK((ids(*vocabulary, "axb") == std::vector<int32_t>{4}), "what is no token is left out before merging");
    CHECK(ids(*vocabulary, "").empty() && ids(*vocabulary, "<s>").empty(), "control tokens are never made from text");
    CHECK((ids(*vocabulary, "abc", true) == std::vector<int32_t>{6}), "whole");
}

void nothing_is_read_past_the_end() {
    const std::vector<uint8_t> tokens = stored(kTokens), merges = stored(kMerges);
    for (size_t size = 0; size < tokens.size(); ++size) {
        const std::vector<uint8_t> cut(tokens.begin(), tokens.begin() + static_cast<int64_t>(size));
        CHECK(!read(cut, 9, kKinds, merges, 4), "tokens cut to %zu bytes", size);
        CHECK(skip_strings(cut, 0, 9) == -1, "skipped in %zu bytes", size);
    }
    for (size_t size = 0; size < merges.size(); ++size) {
        const std::vector<uint8_t> cut(merges.begin(), merges.begin() + static_cast<int64_t>(size));
        CHECK(!read(tokens, 9, kKinds, cut, 4), "merges cut to %zu bytes", size);
    }
    CHECK(skip_strings(tokens, 0, 9) == static_cast<int64_t>(tokens.size()), "all");
}

void any_changed_byte_is_read_or_refused() {
    const std::vector<uint8_t> tokens = stored(kTokens), merges = stored(kMerges);
    for (size_t at = 0; at < tokens.size() + merges.size(); ++at) {
        for (const int value : {0x00, 0x20, 0x7F, 0x80, 0xC3, 0xE2, 0xF0, 0xFF}) {
            std::vector<uint8_t> odd_tokens = tokens, odd_merges = merges;
            (at < tokens.size() ? odd_tokens[at] : odd_merges[at - tokens.size()]) = static_cast<uint8_t>(value);
            if (const auto vocabulary = read(odd_tokens, 9, kKinds, odd_merges, 4)) ids(*vocabulary, "abcab\xC4\xA0" "ab\xFF\xC4");
        }
    }
}

void memory_of_others_is_kept_alive_and_not_freed() {
    auto owner = std::make_shared<AlignedBytes>(256);
    owner->data()[64] = 7;
    const std::weak_ptr<AlignedBytes> watched = owner;
    {
        AlignedBytes part(owner->data() + 64, 64, owner);
        owner.reset();
        AlignedBytes moved(std::move(part));
        CHECK(!watched.expired() && moved.data()[0] == 7, "a part keeps its owner");
    }
    CHECK(watched.expired(), "and lets go of it");
}

}  // namespace

int main() {
    pieces_merge_by_rank_and_from_the_left();
    nothing_is_read_past_the_end();
    any_changed_byte_is_read_or_refused();
    memory_of_others_is_kept_alive_and_not_freed();
    return test::report("vocabulary");
}
