#include "program/ahead.h"

#include <algorithm>

#include <sys/mman.h>
#include <unistd.h>

namespace herd {

namespace {

// Advice about the whole pages of a range, or of all that it touches. Advice may be refused; nothing depends on it.
void advise(const uint8_t* data, int64_t bytes, int advice, bool whole) {
    static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + static_cast<uintptr_t>(bytes);
    const uintptr_t first = (whole ? begin + page - 1 : begin) / page * page, last = whole ? end / page * page : end;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, advice);
}

}  // namespace

void ask_for(const uint8_t* data, int64_t bytes) { advise(data, bytes, MADV_WILLNEED, false); }

void Ahead::add(size_t instruction, const Matrix& matrix) {
    parts_.push_back({instruction, matrix.data.data(), matrix.data.size(), total_});
    total_ += matrix.data.size();
}

void Ahead::start(int64_t keep, int64_t window) {
    keep_ = keep;
    window_ = std::min(window, total_ / 2);
    is_on_ = total_ > 0;
}

void Ahead::ask(int64_t at, int64_t bytes) const {
    auto part = std::upper_bound(parts_.begin(), parts_.end(), at, [](int64_t place, const Part& each) { return place < each.at; }) - 1;
    for (; part != parts_.end() && part->at < at + bytes; ++part) {
        const int64_t begin = std::max<int64_t>(0, at - part->at), end = std::min(part->bytes, at + bytes - part->at);
        if (end > begin) ask_for(part->data + begin, end - begin);
    }
}

void Ahead::before(size_t instruction) const {
    if (!is_on_) return;
    const auto earlier = [](const Part& part, size_t number) { return part.instruction < number; };
    auto part = std::lower_bound(parts_.begin(), parts_.end(), instruction, earlier);
    if (part == parts_.end() || part->instruction != instruction) return;
#if defined(MADV_PAGEOUT)
    // Everything before has been used; what does not stay goes, but for what will be asked for anew at once.
    const auto last = part == parts_.begin() ? parts_.end() : part;
    for (auto used = last; used != parts_.begin() && (used - 1)->instruction == (last - 1)->instruction;) {
        --used;
        const int64_t stays = std::clamp<int64_t>(keep_ - used->at, 0, used->bytes);
        advise(used->data + stays, used->bytes - stays, MADV_PAGEOUT, true);
    }
#endif
    for (; part != parts_.end() && part->instruction == instruction; ++part) {
        const int64_t begin = part->at + window_, end = begin + part->bytes;
        if (begin < total_) ask(begin, std::min(end, total_) - begin);
        if (end > total_) ask(std::max(begin, total_) - total_, end - std::max(begin, total_));
    }
}

}  // namespace herd
