// Rows of plain values into columns: 16 rows turned in registers.
#pragma once

#include "kernels/matrix.h"
#include "kernels/words.h"

namespace herd::HERD_ISA {

// Two neighbouring columns, 8 bytes of each from `a` and 8 from `b`, to `out` and `step` bytes after it.
inline void write_columns(Unsigned64 a, Unsigned64 b, int64_t step, uint8_t* out) {
    const Unsigned64 first = HERD_SHUFFLE(a, b, 0, 2), second = HERD_SHUFFLE(a, b, 1, 3);
    std::memcpy(out, &first, 16);
    std::memcpy(out + step, &second, 16);
}

// 8 rows x 8 columns of 2 bytes, from byte `at` of each row on, turned: columns 32 bytes apart.
inline void turn_eight(const uint8_t* const* rows, int64_t at, uint8_t* out) {
    Unsigned32 twos[8];  // [pair of rows][columns 0 .. 3 or 4 .. 7]: the pair side by side
    for (int i = 0; i < 4; ++i) {
        const Unsigned16 a = read_words<Unsigned16>(rows[2 * i] + at), b = read_words<Unsigned16>(rows[2 * i + 1] + at);
        twos[2 * i] = reinterpret_cast<Unsigned32>(HERD_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11));
        twos[2 * i + 1] = reinterpret_cast<Unsigned32>(HERD_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15));
    }
    for (int half = 0; half < 2; ++half) {
        const Unsigned32 a = twos[half], b = twos[2 + half], c = twos[4 + half], d = twos[6 + half];
        const Unsigned64 low_ab = reinterpret_cast<Unsigned64>(HERD_SHUFFLE(a, b, 0, 4, 1, 5));
        const Unsigned64 high_ab = reinterpret_cast<Unsigned64>(HERD_SHUFFLE(a, b, 2, 6, 3, 7));
        const Unsigned64 low_cd = reinterpret_cast<Unsigned64>(HERD_SHUFFLE(c, d, 0, 4, 1, 5));
        const Unsigned64 high_cd = reinterpret_cast<Unsigned64>(HERD_SHUFFLE(c, d, 2, 6, 3, 7));
        write_columns(low_ab, low_cd, 32, out + 128 * half);
        write_columns(high_ab, high_cd, 32, out + 128 * half + 64);
    }
}

// 4 rows x 4 columns of 4 bytes, turned: columns 64 bytes apart.
inline void turn_four(const uint8_t* const* rows, int64_t at, uint8_t* out) {
    const Unsigned32 a = read_words<Unsigned32>(rows[0] + at), b = read_words<Unsigned32>(rows[1] + at);
    const Unsigned32 c = read_words<Unsigned32>(rows[2] + at), d = read_words<Unsigned32>(rows[3] + at);
    const Unsigned64 low_ab = reinterpret_cast<Unsigned64>(HERD_SHUFFLE(a, b, 0, 4, 1, 5));
    const Unsigned64 high_ab = reinterpret_cast<Unsigned64>(HERD_SHUFFLE(a, b, 2, 6, 3, 7));
    const Unsigned64 low_cd = reinterpret_cast<Unsigned64>(HERD_SHUFFLE(c, d, 0, 4, 1, 5));
    const Unsigned64 high_cd = reinterpret_cast<Unsigned64>(HERD_SHUFFLE(c, d, 2, 6, 3, 7));
    write_columns(low_ab, low_cd, 64, out);
    write_columns(high_ab, high_cd, 64, out + 128);
}

// 16 rows of `columns` elements of kBytes, turned: [columns][16]. Cache lines of a row are used up before the next are read: rows are often a
// multiple of 4096 bytes apart, and few lines at such a distance fit the first-level cache.
template <int kBytes>
inline void turn_panel(const uint8_t* const* rows, int64_t columns, uint8_t* panel) {
    constexpr int64_t kSide = 16 / kBytes, kLine = 64 / kBytes;
    const int64_t whole = columns / kSide * kSide;
    for (int64_t line = 0; line < whole; line += kLine) {
        const int64_t end = line + kLine < whole ? line + kLine : whole;
        for (int64_t lane = 0; lane < kPanelRows; lane += kSide) {
            for (int64_t k = line; k < end; k += kSide) {
                uint8_t* out = panel + (k * kPanelRows + lane) * kBytes;
                kBytes == 2 ? turn_eight(rows + lane, kBytes * k, out) : turn_four(rows + lane, kBytes * k, out);
            }
        }
    }
    for (int64_t i = whole * kPanelRows; i < columns * kPanelRows; ++i) {
        std::memcpy(panel + i * kBytes, rows[i % kPanelRows] + i / kPanelRows * kBytes, kBytes);
    }
}

}  // namespace herd::HERD_ISA
