#include "text/vocabulary.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <queue>

namespace herd {

namespace {

constexpr int64_t kMostCharacters = 1024;
// A table is at most half full; a run of so many taken slots means that somebody chose the texts to make one.
constexpr int kMostProbes = 128;

uint64_t read_u64(const uint8_t* bytes) {
    uint64_t value;
    std::memcpy(&value, bytes, 8);
    return value;
}

uint64_t mix(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 32;
}

uint32_t hash_of(std::string_view text) {
    uint64_t hash = text.size();
    for (; text.size() >= 8; text.remove_prefix(8)) hash = mix(hash, read_u64(reinterpret_cast<const uint8_t*>(text.data())));
    uint64_t rest = 0;
    for (size_t i = 0; i < text.size(); ++i) rest |= static_cast<uint64_t>(static_cast<uint8_t>(text[i])) << 8 * i;
    hash = mix(hash, rest);
    return static_cast<uint32_t>(hash ^ hash >> 29);
}

size_t hash_of(int32_t left, int32_t right) {
    return static_cast<size_t>(mix(0, static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right)));
}

size_t slots_for(int64_t count) { return std::bit_ceil(static_cast<size_t>(2 * count + 2)); }

// Bytes of the character that `text` begins with, or 0 if it is not valid UTF-8.
size_t character_bytes(std::string_view text) {
    const auto at = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
    const auto continues = [&](size_t i) { return (at(i) & 0xC0) == 0x80; };
    const uint8_t first = at(0);
    if (first < 0x80) return 1;
    if (first >= 0xC2 && first < 0xE0) return continues(1) ? 2 : 0;
    if (first >= 0xE0 && first < 0xF0) {
        const bool overlong = first == 0xE0 && at(1) < 0xA0, surrogate = first == 0xED && at(1) >= 0xA0;
        return continues(1) && continues(2) && !overlong && !surrogate ? 3 : 0;
    }
    if (first >= 0xF0 && first < 0xF5) {
        const bool overlong = first == 0xF0 && at(1) < 0x90, beyond = first == 0xF4 && at(1) >= 0x90;
        return continues(1) && continues(2) && continues(3) && !overlong && !beyond ? 4 : 0;
    }
    return 0;
}

// Whether the first `length` bytes of `text` are a character of the byte-level alphabet (herd/text/byte_level.py).
bool is_of_alphabet(std::string_view text, size_t length) {
    const auto first = static_cast<uint8_t>(text[0]);
    if (length == 1) return first >= 33 && first <= 126;
    if (length != 2) return false;
    const int point = (first & 0x1F) << 6 | (static_cast<uint8_t>(text[1]) & 0x3F);
    return point >= 161 && point <= 323 && point != 173;
}

bool is_good(std::string_view token, bool is_plain) {
    if (token.empty()) return false;
    int64_t characters = 0;
    while (!token.empty()) {
        const size_t length = character_bytes(token);
        if (length == 0 || (is_plain && !is_of_alphabet(token, length)) || ++characters > kMostCharacters) return false;
        token.remove_prefix(length);
    }
    return true;
}

// Walks over stored strings. `next` gives false at the end, and where a length is not believable.
class Walk {
  public:
    explicit Walk(const StoredStrings& strings) : bytes_(strings.bytes), left_(strings.count) {}

    bool next(std::string_view& text) {
        if (left_ == 0 || bytes_.size() - at_ < 8) return false;
        const uint64_t length = read_u64(bytes_.data() + at_);
        if (length > bytes_.size() - at_ - 8) return false;
        text = {reinterpret_cast<const char*>(bytes_.data()) + at_ + 8, static_cast<size_t>(length)};
        at_ += 8 + static_cast<size_t>(length);
        --left_;
        return true;
    }
    bool is_over() const { return left_ == 0; }
    size_t position() const { return at_; }

  private:
    std::span<const uint8_t> bytes_;
    int64_t left_;
    size_t at_ = 0;
};

}  // namespace

int64_t skip_strings(std::span<const uint8_t> bytes, int64_t start, int64_t count) {
    Walk walk({bytes.subspan(static_cast<size_t>(start)), count});
    std::string_view text;
    while (walk.next(text)) {}
    return walk.is_over() ? start + static_cast<int64_t>(walk.position()) : -1;
}

std::optional<Vocabulary> read_vocabulary(const StoredStrings& tokens, std::span<const int32_t> kinds, const StoredStrings& merges) {
    Vocabulary vocabulary;
    if (!vocabulary.add_tokens(tokens, kinds) || !vocabulary.add_merges(merges)) return std::nullopt;
    return vocabulary;
}

std::string_view Vocabulary::token(int64_t id) const {
    const auto at = static_cast<size_t>(id);
    const size_t begin = at == 0 ? 0 : ends_[at - 1];
    return std::string_view(text_).substr(begin, ends_[at] - begin);
}

bool Vocabulary::merges_text(int32_t id) const {
    if (kinds_.empty()) return true;
    const TokenKind kind = kinds_[static_cast<size_t>(id)];
    return kind == TokenKind::Normal || kind == TokenKind::Unknown || kind == TokenKind::Byte;
}

bool Vocabulary::add_tokens(const StoredStrings& tokens, std::span<const int32_t> kinds) {
    if (tokens.count < 1 || tokens.count > INT32_MAX / 4 || tokens.bytes.size() > UINT32_MAX) return false;
    if (!kinds.empty() && static_cast<int64_t>(kinds.size()) != tokens.count) return false;
    tokens_.resize(slots_for(tokens.count));
    text_.reserve(tokens.bytes.size());
    ends_.reserve(static_cast<size_t>(tokens.count));
    kinds_.reserve(kinds.size());
    Walk walk(tokens);
    std::string_view text;
    for (int32_t id = 0; walk.next(text); ++id) {
        const int32_t kind = kinds.empty() ? 1 : kinds[static_cast<size_t>(id)];
        if (kind < 1 || kind > 6 || !is_good(text, kind == 1)) return false;
        if (!kinds.empty()) kinds_.push_back(static_cast<TokenKind>(kind));
        if (kind != 1) exceptions_.emplace_back(id, static_cast<TokenKind>(kind));
        text_.append(text);
        ends_.push_back(static_cast<uint32_t>(text_.size()));
        if (!add_token(id)) return false;
    }
    return walk.is_over();
}

bool Vocabulary::add_token(int32_t id) {
    const std::string_view text = token(id);
    const uint32_t hash = hash_of(text);
    const size_t mask = tokens_.size() - 1;
    for (size_t probe = 0; probe < kMostProbes; ++probe) {
        TokenSlot& slot = tokens_[(hash + probe) & mask];
        if (slot.id_plus_1 == 0) {
            slot = {hash, static_cast<uint32_t>(id) + 1};
            return true;
        }
        if (slot.hash == hash && token(slot.id_plus_1 - 1) == text) return false;
    }
    return false;
}

int32_t Vocabulary::find(std::string_view text) const {
    const uint32_t hash = hash_of(text);
    const size_t mask = tokens_.size() - 1;
    for (size_t at = hash & mask; tokens_[at].id_plus_1 != 0; at = (at + 1) & mask) {
        const auto id = static_cast<int32_t>(tokens_[at].id_plus_1 - 1);
        if (tokens_[at].hash == hash && token(id) == text) return merges_text(id) ? id : -1;
    }
    return -1;
}

bool Vocabulary::add_merges(const StoredStrings& merges) {
    if (merges.count < 0 || merges.count > INT32_MAX / 4) return false;
    merges_.resize(slots_for(merges.count));
    Walk walk(merges);
    std::string_view line;
    std::string joined;
    int32_t result = -1;
    for (uint32_t rank = 0; walk.next(line); ++rank) {
        const size_t space = line.find(' ');
        if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) return false;
        const std::string_view left = line.substr(0, space), right = line.substr(space + 1);
        joined.assign(left).append(right);
        // Vocabularies mostly list tokens in the order in which they are merged: the next one is a good guess.
        const int32_t guess = result + 1;
        result = guess < size() && merges_text(guess) && token(guess) == joined ? guess : find(joined);
        const MergeSlot merge{find(left), find(right), rank, static_cast<uint32_t>(result) + 1};
        if (merge.left < 0 || merge.right < 0 || result < 0 || !add_merge(merge)) return false;
    }
    return walk.is_over();
}

bool Vocabulary::add_merge(const MergeSlot& merge) {
    const size_t mask = merges_.size() - 1, hash = hash_of(merge.left, merge.right);
    for (size_t probe = 0; probe < kMostProbes; ++probe) {
        MergeSlot& slot = merges_[(hash + probe) & mask];
        if (slot.result_plus_1 == 0) {
            slot = merge;
            return true;
        }
        if (slot.left == merge.left && slot.right == merge.right) return false;
    }
    return false;
}

const Vocabulary::MergeSlot* Vocabulary::find_merge(int32_t left, int32_t right) const {
    const size_t mask = merges_.size() - 1;
    for (size_t at = hash_of(left, right) & mask; merges_[at].result_plus_1 != 0; at = (at + 1) & mask) {
        if (merges_[at].left == left && merges_[at].right == right) return &merges_[at];
    }
    return nullptr;
}

void Vocabulary::merge(std::string_view piece, bool whole_first, std::vector<int32_t>& ids) const {
    if (whole_first) {
        if (const int32_t whole = find(piece); whole >= 0) {
            ids.push_back(whole);
            return;
        }
    }
    // The characters' tokens as a list with holes: what was merged into its left neighbour has the id -1.
    struct Part {
        int32_t id, before, after;
    };
    std::vector<Part> parts;
    for (std::string_view rest = piece; !rest.empty();) {
        const size_t length = std::max<size_t>(character_bytes(rest), 1);
        if (const int32_t id = find(rest.substr(0, length)); id >= 0) {
            const auto at = static_cast<int32_t>(parts.size());
            parts.push_back({id, at - 1, at + 1});
        }
        rest.remove_prefix(length);
    }
    const auto count = static_cast<int32_t>(parts.size());
    struct Candidate {
        uint32_t rank;
        int32_t at, left, right, result;
        bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
    };
    std::priority_queue<Candidate> candidates;
    const auto consider = [&](int32_t at) {
        if (at < 0 || parts[at].after >= count) return;
        const int32_t left = parts[at].id, right = parts[parts[at].after].id;
        if (const MergeSlot* found = find_merge(left, right)) {
            candidates.push({found->rank, at, left, right, static_cast<int32_t>(found->result_plus_1 - 1)});
        }
    };
    for (int32_t at = 0; at < count; ++at) consider(at);
    while (!candidates.empty()) {
        const Candidate best = candidates.top();
        candidates.pop();
        Part& part = parts[best.at];
        const int32_t next = part.after;
        if (part.id != best.left || next >= count || parts[next].id != best.right) continue;
        part.id = best.result;
        part.after = parts[next].after;
        if (part.after < count) parts[part.after].before = best.at;
        parts[next].id = -1;
        consider(part.before);
        consider(best.at);
    }
    for (int32_t at = 0; at < count; at = parts[at].after) ids.push_back(parts[at].id);
}

}  // namespace herd
