// How each storage format is laid out in a packed panel (matrix.h). One table; pack.cpp writes it, linear_groups.h reads it. The portable
// set has groups of the same places and sizes, but codes in an order of its own (codes_words.h), and Table as the Bytes of its values.
//
// Codes of a group of 32 columns, 16 rows; "quad" q is columns 4q..4q+3, 64 bytes when unpacked:
//
//   Nibbles   256 bytes: 64-byte vector i holds quad i in the low and quad i + 4 in the high half of each byte
//   SixBits   256 bytes as Nibbles with the low four bits, then 128 bytes with the upper two: vector h, bits 2i..2i+1: quad 4h + i
//   Table     256 bytes as Nibbles, an index into the table of IQ4
//   Bytes     512 bytes: vector q holds quad q, signed
//   Plain     no groups: [columns][16] values of the file's own type (or [columns / 2][16][2] of bf16 with AVX-512)
//
// Scales. Formats of 32-column blocks: 16 halves after the codes, then 16 halves of minima. Super-blocks of 256 columns begin with 16
// halves d (and 16 halves dmin); each group ends with 16 integer scales per sub-group (and 16 integer minima): scale = d * integer,
// minimum = -dmin * integer, exact in float32. The value of a code is scale * (code - offset) + minimum.
#pragma once

#include "kernels/matrix.h"

namespace herd {

// Raised whenever packed bytes change in any format: files of packed weights from before are then packed again.
inline constexpr int kPackedLayout = 2;

enum class Codes { Plain, Nibbles, SixBits, Table, Bytes };

struct Layout {
    Codes codes = Codes::Plain;
    int offset_shift = -1;         // the offset is 1 << offset_shift; -1: none
    int sub_groups = 1;            // scales in a group of 32
    bool has_minimum = false;
    bool has_header = false;       // super-blocks of 8 groups with integer scales
    bool signed_scales = false;    // of the integer scales
    int64_t file_block_columns = 1;
    int64_t file_block_bytes = 0;

    constexpr int offset() const { return offset_shift < 0 ? 0 : 1 << offset_shift; }
    constexpr int64_t code_bytes() const { return codes == Codes::Bytes ? 512 : codes == Codes::SixBits ? 384 : 256; }
    constexpr int64_t scale_bytes() const { return has_header ? 16 * sub_groups : 32; }
    constexpr int64_t header_bytes() const { return has_header ? (has_minimum ? 64 : 32) : 0; }
    constexpr int64_t group_bytes() const { return code_bytes() + scale_bytes() * (has_minimum ? 2 : 1); }
    constexpr int64_t groups_per_block() const { return has_header ? 8 : 1; }
    constexpr int64_t block_bytes() const { return header_bytes() + groups_per_block() * group_bytes(); }
    constexpr bool is_plain() const { return codes == Codes::Plain; }
};

constexpr Layout layout(Storage storage) {
    switch (storage) {
        case Storage::F32: return {.file_block_bytes = 4};
        case Storage::F16: return {.file_block_bytes = 2};
        case Storage::BF16: return {.file_block_bytes = 2};
        case Storage::Q4_0: return {.codes = Codes::Nibbles, .offset_shift = 3, .file_block_columns = 32, .file_block_bytes = 18};
        case Storage::Q4_1: return {.codes = Codes::Nibbles, .has_minimum = true, .file_block_columns = 32, .file_block_bytes = 20};
        case Storage::Q5_0: return {.codes = Codes::SixBits, .offset_shift = 4, .file_block_columns = 32, .file_block_bytes = 22};
        case Storage::Q5_1: return {.codes = Codes::SixBits, .has_minimum = true, .file_block_columns = 32, .file_block_bytes = 24};
        case Storage::Q8_0: return {.codes = Codes::Bytes, .file_block_columns = 32, .file_block_bytes = 34};
        case Storage::IQ4_NL: return {.codes = Codes::Table, .file_block_columns = 32, .file_block_bytes = 18};
        case Storage::Q2_K:
            return {.codes = Codes::Nibbles, .sub_groups = 2, .has_minimum = true, .has_header = true, .file_block_columns = 256, .file_block_bytes = 84};
        case Storage::Q3_K:
            return {.codes = Codes::Nibbles, .offset_shift = 2, .sub_groups = 2, .has_header = true, .signed_scales = true,
                    .file_block_columns = 256, .file_block_bytes = 110};
        case Storage::Q4_K:
            return {.codes = Codes::Nibbles, .has_minimum = true, .has_header = true, .file_block_columns = 256, .file_block_bytes = 144};
        case Storage::Q5_K:
            return {.codes = Codes::SixBits, .has_minimum = true, .has_header = true, .file_block_columns = 256, .file_block_bytes = 176};
        case Storage::Q6_K:
            return {.codes = Codes::SixBits, .offset_shift = 5, .sub_groups = 2, .has_header = true, .signed_scales = true,
                    .file_block_columns = 256, .file_block_bytes = 210};
        case Storage::IQ4_XS:
            return {.codes = Codes::Table, .has_header = true, .signed_scales = true, .file_block_columns = 256, .file_block_bytes = 136};
    }
    return {};
}

// The values of IQ4_NL and IQ4_XS.
alignas(16) inline constexpr int8_t kTable[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// A prepared row of Form::Int8: one record, one cache line, for each group of 32 columns.
struct alignas(64) ActivationGroup {
    int8_t values[32];
    float scale;              // value = scale * int8
    float scaled_sum;         // scale * float(sum of the 32)
    float scaled_halves[2];   // scale * float(sum of the first, of the last 16)
    int32_t sum;
    int32_t halves[2];
    int32_t unused;
};
static_assert(sizeof(ActivationGroup) == 64);

}  // namespace herd
