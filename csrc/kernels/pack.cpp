// pack_panel: rows of a file, row after row, into panels of 16 interleaved rows (layout.h); unpack_row: one row back, as floats.
//
// Nothing is rounded on the way: codes are moved as the set wants them (codes_bytes.h, codes_words.h), scales keep their stored bits
// (six-bit scales are spread to bytes). Q2_K and Q3_K take 4 bits a code, Q5 formats and Q6_K take 6, in the portable set IQ4_NL and IQ4_XS
// take 8, as their values; all other formats keep their size within 3 %.
// Checked against the definition of every format: tests/test_linear.cpp.
#include "kernels/pack.h"

#include <cstring>

#include "kernels/codes.h"
#include "kernels/half.h"
#include "kernels/linear_store.h"
#include "kernels/turn.h"

namespace herd::HERD_ISA {

namespace {

using lanes::bits_to_float;
using lanes::half_to_float;

// Four neighbouring codes of a row, one a byte, the first in the lowest: all work on codes is done on such words.
using Quad = uint32_t;

// One group of 32 columns of one row: codes, offset added, and the integer scales and minima of super-blocks.
struct Group {
    Quad codes[8];
    uint8_t scales[2] = {};
    uint8_t minima[2] = {};
};

struct HalfOffsets {
    int scale;
    int minimum;
};

// Where a block of the file has d, and m or dmin.
constexpr HalfOffsets half_offsets(Storage storage) {
    switch (storage) {
        case Storage::Q2_K: return {80, 82};
        case Storage::Q3_K: return {108, 0};
        case Storage::Q6_K: return {208, 0};
        default: return {0, 2};
    }
}

Quad read_quad(const uint8_t* bytes) {
    Quad quad;
    std::memcpy(&quad, bytes, 4);
    return quad;
}

// `Bits` bits of each byte, from bit `shift` on.
template <int Bits>
Quad field(Quad quad, int shift) {
    return quad >> shift & 0x01010101u * ((1u << Bits) - 1);
}

HERD_INLINE void read_nibbles(const uint8_t* bytes, Group& out) {
    for (int i = 0; i < 4; ++i) {
        out.codes[i] = field<4>(read_quad(bytes + 4 * i), 0);
        out.codes[4 + i] = field<4>(read_quad(bytes + 4 * i), 4);
    }
}

HERD_INLINE void add_fifth_bits(const uint8_t* bytes, Group& out) {
    const uint32_t bits = read_quad(bytes);
    // The product puts bit i of four bits at bit 8i.
    for (int q = 0; q < 8; ++q) out.codes[q] |= ((bits >> 4 * q & 15u) * 0x00204081u & 0x01010101u) << 4;
}

HERD_INLINE void read_q2_k(const uint8_t* block, int g, Group& out) {
    for (int q = 0; q < 8; ++q) out.codes[q] = field<2>(read_quad(block + 16 + 32 * (g / 4) + 4 * q), 2 * (g % 4));
    for (int s = 0; s < 2; ++s) {
        out.scales[s] = block[2 * g + s] & 15;
        out.minima[s] = block[2 * g + s] >> 4;
    }
}

HERD_INLINE void read_q3_k(const uint8_t* block, int g, Group& out) {
    for (int q = 0; q < 8; ++q) {
        out.codes[q] = field<2>(read_quad(block + 32 + 32 * (g / 4) + 4 * q), 2 * (g % 4)) | field<1>(read_quad(block + 4 * q), g) << 2;
    }
    const uint8_t* scales = block + 96;
    for (int s = 0; s < 2; ++s) {
        const int j = 2 * g + s;
        const int low = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4;
        const int high = (scales[8 + j % 4] >> (2 * (j / 4))) & 3;
        out.scales[s] = static_cast<uint8_t>((low | high << 4) - 32);
    }
}

// Scale and minimum of sub-block g of Q4_K and Q5_K.
HERD_INLINE void read_k_scales(const uint8_t* s, int g, Group& out) {
    if (g < 4) {
        out.scales[0] = s[g] & 63;
        out.minima[0] = s[g + 4] & 63;
    } else {
        out.scales[0] = static_cast<uint8_t>((s[g + 4] & 15) | (s[g - 4] >> 6) << 4);
        out.minima[0] = static_cast<uint8_t>((s[g + 4] >> 4) | (s[g] >> 6) << 4);
    }
}

HERD_INLINE void read_k_nibbles(const uint8_t* codes, int g, Group& out) {
    for (int q = 0; q < 8; ++q) out.codes[q] = field<4>(read_quad(codes + 32 * (g / 2) + 4 * q), 4 * (g % 2));
}

HERD_INLINE void read_q5_k(const uint8_t* block, int g, Group& out) {
    read_k_scales(block + 4, g, out);
    read_k_nibbles(block + 48, g, out);
    for (int q = 0; q < 8; ++q) out.codes[q] |= field<1>(read_quad(block + 16 + 4 * q), g) << 4;
}

HERD_INLINE void read_q6_k(const uint8_t* block, int g, Group& out) {
    const int half = g / 4, quarter = g % 4;
    const uint8_t* low = block + 64 * half + 32 * (quarter % 2);
    const uint8_t* high = block + 128 + 32 * half;
    for (int q = 0; q < 8; ++q) {
        out.codes[q] = field<4>(read_quad(low + 4 * q), 4 * (quarter / 2)) | field<2>(read_quad(high + 4 * q), 2 * quarter) << 4;
    }
    out.scales[0] = block[192 + 2 * g];
    out.scales[1] = block[193 + 2 * g];
}

HERD_INLINE void read_iq4_xs(const uint8_t* block, int g, Group& out) {
    const int high = (block[2] | block[3] << 8) >> (2 * g) & 3;
    const int low = g % 2 ? block[4 + g / 2] >> 4 : block[4 + g / 2] & 15;
    out.scales[0] = static_cast<uint8_t>((low | high << 4) - 32);
    read_nibbles(block + 8 + 16 * g, out);
}

// Group g of a block of the file.
template <Storage S>
HERD_INLINE void read_group(const uint8_t* block, int g, Group& out) {
    switch (S) {
        case Storage::Q4_0:
        case Storage::IQ4_NL: return read_nibbles(block + 2, out);
        case Storage::Q4_1: return read_nibbles(block + 4, out);
        case Storage::Q5_0: return read_nibbles(block + 6, out), add_fifth_bits(block + 2, out);
        case Storage::Q5_1: return read_nibbles(block + 8, out), add_fifth_bits(block + 4, out);
        case Storage::Q8_0: std::memcpy(out.codes, block + 2, 32); return;
        case Storage::Q2_K: return read_q2_k(block, g, out);
        case Storage::Q3_K: return read_q3_k(block, g, out);
        case Storage::Q4_K: return read_k_scales(block + 4, g, out), read_k_nibbles(block + 16, g, out);
        case Storage::Q5_K: return read_q5_k(block, g, out);
        case Storage::Q6_K: return read_q6_k(block, g, out);
        case Storage::IQ4_XS: return read_iq4_xs(block, g, out);
        default: return;  // plain formats have no groups
    }
}

// Indices of the table to its values, in sets that keep those.
HERD_INLINE void look_up(Quad* quads) {
    int8_t codes[32];
    std::memcpy(codes, quads, 32);
    for (int8_t& code : codes) code = kTable[code];
    std::memcpy(quads, codes, 32);
}

HERD_INLINE void write_group(const Layout& at, const uint8_t* file_block, HalfOffsets halves, const Group& group, int lane, uint8_t* packed) {
    write_codes(at.codes, group.codes, packed + 4 * lane);
    uint8_t* scales = packed + at.code_bytes();
    uint8_t* minima = scales + at.scale_bytes();
    if (!at.has_header) {
        std::memcpy(scales + 2 * lane, file_block + halves.scale, 2);
        if (at.has_minimum) std::memcpy(minima + 2 * lane, file_block + halves.minimum, 2);
        return;
    }
    for (int s = 0; s < at.sub_groups; ++s) {
        scales[16 * s + lane] = group.scales[s];
        if (at.has_minimum) minima[16 * s + lane] = group.minima[s];
    }
}

// One row into its lane of a panel of a block format.
template <Storage S>
void pack_block_row(const uint8_t* row, int64_t columns, int lane, uint8_t* panel) {
    constexpr Layout at = packed_layout(S);
    constexpr HalfOffsets halves = half_offsets(S);
    Group group;
    for (int64_t b = 0; b < columns / at.file_block_columns; ++b) {
        const uint8_t* block = row + b * at.file_block_bytes;
        uint8_t* packed = panel + b * at.block_bytes();
        if (at.has_header) {
            std::memcpy(packed + 2 * lane, block + halves.scale, 2);
            if (at.has_minimum) std::memcpy(packed + 32 + 2 * lane, block + halves.minimum, 2);
            packed += at.header_bytes();
        }
        for (int g = 0; g < at.groups_per_block(); ++g, packed += at.group_bytes()) {
            read_group<S>(block, g, group);
            if (layout(S).codes == Codes::Table && at.codes != Codes::Table) look_up(group.codes);
            write_group(at, block, halves, group, lane, packed);
        }
    }
}

// Byte of element (lane, column) in a panel of a plain format.
int64_t plain_offset(Storage storage, int lane, int64_t column) {
    if (storage == Storage::BF16 && kBf16Pairs) return ((column / 2 * kPanelRows + lane) * 2 + column % 2) * 2;
    return (column * kPanelRows + lane) * layout(storage).file_block_bytes;
}

// The first `lanes` rows into a panel of a plain format.
void pack_plain_panel(Storage storage, const uint8_t* const* rows, int lanes, int64_t columns, uint8_t* panel) {
    const int64_t width = layout(storage).file_block_bytes;
    const bool in_pairs = storage == Storage::BF16 && kBf16Pairs;
    if (lanes == kPanelRows && (width == 4 || (in_pairs && columns % 2 == 0))) {
        turn_panel<4>(rows, in_pairs ? columns / 2 : columns, panel);
    } else if (lanes == kPanelRows && !in_pairs) {
        turn_panel<2>(rows, columns, panel);
    } else {
        for (int64_t k = 0; k < columns; ++k) {
            for (int lane = 0; lane < lanes; ++lane) {
                std::memcpy(panel + plain_offset(storage, lane, k), rows[lane] + k * width, static_cast<size_t>(width));
            }
        }
    }
}

float read_half(const uint8_t* bytes) {
    uint16_t bits;
    std::memcpy(&bits, bytes, 2);
    return half_to_float(bits);
}

float read_plain(Storage storage, const uint8_t* bytes) {
    uint32_t bits;
    switch (storage) {
        case Storage::F16: return read_half(bytes);
        case Storage::BF16: return bits_to_float(static_cast<uint32_t>(bytes[0]) << 16 | static_cast<uint32_t>(bytes[1]) << 24);
        default: std::memcpy(&bits, bytes, 4); return bits_to_float(bits);
    }
}

int integer_scale(const Layout& at, uint8_t byte) { return at.signed_scales ? static_cast<int8_t>(byte) : byte; }

// Group g (counted over the row) of one lane, as floats.
void unpack_group(const Layout& at, const uint8_t* panel, int64_t g, int lane, float* out) {
    const uint8_t* block = panel + g / at.groups_per_block() * at.block_bytes();
    const uint8_t* packed = block + at.header_bytes() + g % at.groups_per_block() * at.group_bytes();
    Quad quads[8];
    read_codes(at.codes, packed + 4 * lane, quads);
    uint8_t codes[32];
    std::memcpy(codes, quads, 32);
    const uint8_t* scales = packed + at.code_bytes();
    const uint8_t* minima = scales + at.scale_bytes();
    const int width = 32 / at.sub_groups;
    for (int s = 0; s < at.sub_groups; ++s) {
        float scale = read_half((at.has_header ? block : scales) + 2 * lane);
        float minimum = 0;
        if (at.has_minimum) minimum = read_half((at.has_header ? block + 32 : minima) + 2 * lane);
        if (at.has_header) {
            scale *= static_cast<float>(integer_scale(at, scales[16 * s + lane]));
            if (at.has_minimum) minimum *= -static_cast<float>(minima[16 * s + lane]);
        }
        for (int j = s * width; j < (s + 1) * width; ++j) {
            int code = codes[j] - at.offset();
            if (at.codes == Codes::Table) code = kTable[codes[j]];
            if (at.codes == Codes::Bytes) code = static_cast<int8_t>(codes[j]);
            const float product = scale * static_cast<float>(code);
            out[j] = at.has_minimum ? product + minimum : product;
        }
    }
}

}  // namespace

int64_t block_columns(Storage storage) { return layout(storage).file_block_columns; }

int64_t row_bytes(Storage storage, int64_t columns) {
    const Layout at = layout(storage);
    return columns / at.file_block_columns * at.file_block_bytes;
}

int64_t panel_bytes(Storage storage, Arithmetic, int64_t columns) {
    const Layout at = packed_layout(storage);
    if (!at.is_plain()) return columns / at.file_block_columns * at.block_bytes();
    const int64_t padded = storage == Storage::BF16 && kBf16Pairs ? (columns + 1) / 2 * 2 : columns;
    return padded * kPanelRows * at.file_block_bytes;
}

void pack_panel(Storage storage, FileRows rows_of_file, int64_t rows, int64_t columns, int64_t p, uint8_t* panel) {
    const Layout at = layout(storage);
    const int64_t bytes = panel_bytes(storage, Arithmetic::Int8, columns), file_bytes = row_bytes(storage, columns), left = rows - p * kPanelRows;
    const int lanes = static_cast<int>(left < kPanelRows ? left : kPanelRows);
    if (lanes < kPanelRows || columns % 2 != 0) std::memset(panel, 0, static_cast<size_t>(bytes));
    const uint8_t* file[kPanelRows];
    for (int lane = 0; lane < lanes; ++lane) file[lane] = rows_of_file.data + rows_of_file.place(p * kPanelRows + lane) * file_bytes;
    if (at.is_plain()) return pack_plain_panel(storage, file, lanes, columns, panel);
    with_block_storage(storage, [&](auto of) {
        for (int lane = 0; lane < lanes; ++lane) pack_block_row<decltype(of)::value>(file[lane], columns, lane, panel);
    });
}

void unpack_row(const Matrix& matrix, int64_t row, float* out) {
    const Layout at = packed_layout(matrix.storage);
    if (matrix.is_in_place) {
        const uint8_t* first = matrix.data.data() + matrix.file_rows().place(row) * row_bytes(matrix.storage, matrix.columns);
        for (int64_t k = 0; k < matrix.columns; ++k) out[k] = read_plain(matrix.storage, first + k * at.file_block_bytes);
        return;
    }
    const uint8_t* panel = matrix.data.data() + row / kPanelRows * panel_bytes(matrix.storage, matrix.arithmetic, matrix.columns);
    const int lane = static_cast<int>(row % kPanelRows);
    if (at.is_plain()) {
        for (int64_t k = 0; k < matrix.columns; ++k) out[k] = read_plain(matrix.storage, panel + plain_offset(matrix.storage, lane, k));
        return;
    }
    for (int64_t g = 0; g < matrix.columns / 32; ++g) unpack_group(at, panel, g, lane, out + 32 * g);
}

}  // namespace herd::HERD_ISA
