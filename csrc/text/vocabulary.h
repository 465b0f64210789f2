// A byte-level vocabulary out of a GGUF file, read without making an object for each of its strings.
//
// Only what is in good order is read: `read_vocabulary` gives nothing for anything else, and the caller reads the same bytes
// again in Python (herd/text/gguf_file.py), which accepts what is merely unusual and names what is wrong.
// Merging is that of the `tokenizers` library, choice for choice: tests/text/test_native_vocabulary.py holds the two together.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace herd {

// GGUF's numbers of what a token is; all others are refused.
enum class TokenKind : uint8_t { Normal = 1, Unknown = 2, Control = 3, UserDefined = 4, Unused = 5, Byte = 6 };

// A list of strings as GGUF stores it: for each a length of 8 bytes, little-endian, then its bytes.
struct StoredStrings {
    std::span<const uint8_t> bytes;
    int64_t count = 0;
};

// Position after `count` strings that begin at `start`, or -1 if they do not all lie in `bytes`.
int64_t skip_strings(std::span<const uint8_t> bytes, int64_t start, int64_t count);

class Vocabulary {
  public:
    int64_t size() const { return static_cast<int64_t>(ends_.size()); }
    std::string_view token(int64_t id) const;
    // Ids that are not plain text, ascending.
    const std::vector<std::pair<int32_t, TokenKind>>& exceptions() const { return exceptions_; }

    // Appends the ids of one piece of text, which is written in the byte-level alphabet. Characters that are no token are left
    // out. With `whole_first` a piece that is a token is that token.
    void merge(std::string_view piece, bool whole_first, std::vector<int32_t>& ids) const;

  private:
    friend std::optional<Vocabulary> read_vocabulary(const StoredStrings&, std::span<const int32_t>, const StoredStrings&);

    // Slots of open addressing; a token of 0 and a result of 0 are empty.
    struct TokenSlot {
        uint32_t hash = 0;
        uint32_t id_plus_1 = 0;
    };
    struct MergeSlot {
        int32_t left = 0;
        int32_t right = 0;
        uint32_t rank = 0;
        uint32_t result_plus_1 = 0;
    };

    bool add_tokens(const StoredStrings& tokens, std::span<const int32_t> kinds);
    bool add_merges(const StoredStrings& merges);
    bool add_token(int32_t id);
    bool add_merge(const MergeSlot& merge);
    // The id of a token that merging can produce or meet, or -1.
    int32_t find(std::string_view text) const;
    const MergeSlot* find_merge(int32_t left, int32_t right) const;
    bool merges_text(int32_t id) const;

    std::string text_;             // all tokens, one after another
    std::vector<uint32_t> ends_;   // where each ends
    std::vector<TokenKind> kinds_; // empty: all Normal
    std::vector<std::pair<int32_t, TokenKind>> exceptions_;
    std::vector<TokenSlot> tokens_;
    std::vector<MergeSlot> merges_;
};

// `kinds` is empty (all plain) or has one for each token. Nothing is given unless tokens are distinct, valid UTF-8 of 1 to 1024
// characters, plain ones in the byte-level alphabet, and every merge is two tokens with a space between that make a third one.
std::optional<Vocabulary> read_vocabulary(const StoredStrings& tokens, std::span<const int32_t> kinds, const StoredStrings& merges);

}  // namespace herd
