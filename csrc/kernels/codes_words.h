// Codes for processors that multiply 16-bit integers and add two neighbouring products (SSE2's pmaddwd; NEON without its dot product).
//
// A vector of 64 bytes is 16 rows of two 16-bit words, and every word holds some codes of its row, "fields" above each other, the
// top one signed. Nobody takes the fields apart: with w the word, c0 .. c3 its codes at bits p0 = 0, p1, p2, p3 and x0 .. x3 what they are to
// be multiplied with,
//
//   c0 x0 + c1 x1 + ... = w x0 + (w >> p1) (x1 - 2^p1 x0) + (w >> p2) (x2 - 2^(p2 - p1) x1) + ...
//
// so that a code costs a shift, a product and a sum. The factors are made once for all rows (`Activations`) and fit 16 bits. Quads 2i
// and 2i + 1 stand side by side; columns 0 and 2 of a quad are its even pair, 1 and 3 its odd pair, in the two words of a row:
//
//   Nibbles   vector i: the even pairs of quads 2i and 2i + 1, then their odd pairs, 4 bits each
//   Bytes     vector q: the even and the odd pair of quad q; the even one is 128 too high, as it has no sign of its own
//   SixBits   vectors 3h .. 3h + 2 for the half h of a group, whose pairs in the order of Nibbles are P0 .. P7:
//             P0 P1 and the low 4 bits of P2 | P3 P4 and the low 4 bits of P5 | P6 P7 and the upper 2 bits of P2 and of P5
//   Table     as Bytes, the values themselves: without a look-up of bytes this is what costs least
//
// A signed top field of n bits is 2^(n - 1) too low. What that and the 128 make of a sum is known from the activations (`moved`).
#pragma once

#include "kernels/lanes.h"

namespace herd::HERD_ISA {

// A prepared row of Form::Int8 is one of these for each group: factors by pairs, in the order in which vectors hold their fields.
struct Activations : ActivationGroup {
    int16_t nibbles[32];
    int16_t bytes[32];
    int16_t six_bits[48];  // 20 of each half, and 4 that nobody reads
    int32_t moved_nibbles[2], moved_bytes[2], moved_six_bits[2];  // of halves
};

constexpr Layout packed_layout(Storage storage) {
    Layout at = layout(storage);
    if (at.codes == Codes::Table) at.codes = Codes::Bytes;
    return at;
}
// Expanded groups hold bytes.
constexpr Codes expanded_codes(Codes) { return Codes::Bytes; }

// Which bits of a packed word of two 16-bit words are turned over, so that the top field is signed and even bytes are not.
constexpr uint32_t kTopNibble = 0x80008000u, kEvenByte = 0x00800080u;

// Pairs P0 .. P7 of a half of a group: two 16-bit words each.
constexpr uint32_t kPair = 0x00ff00ffu;
HERD_INLINE void split_quads(const uint32_t* quads, uint32_t* pairs) {
    for (int i = 0; i < 4; ++i) {
        pairs[i / 2 * 4 + i % 2] = quads[i] & kPair;
        pairs[i / 2 * 4 + i % 2 + 2] = quads[i] >> 8 & kPair;
    }
}

// The codes of one row, four columns a word, into its lane of a packed group: `packed` points to byte 4 * lane of the group.
HERD_INLINE void write_codes(Codes kind, const uint32_t* quads, uint8_t* packed) {
    const auto write = [packed](int i, uint32_t word) { std::memcpy(packed + 64 * i, &word, 4); };
    for (int q = 0; kind == Codes::Bytes && q < 8; ++q) write(q, quads[q] ^ kEvenByte);
    for (int i = 0; kind == Codes::Nibbles && i < 4; ++i) write(i, (quads[2 * i] | quads[2 * i + 1] << 4) ^ kTopNibble);
    for (int h = 0; kind == Codes::SixBits && h < 2; ++h) {
        uint32_t p[8];
        split_quads(quads + 4 * h, p);
        write(3 * h, (p[0] | p[1] << 6 | (p[2] & 0x000f000fu) << 12) ^ kTopNibble);
        write(3 * h + 1, (p[3] | p[4] << 6 | (p[5] & 0x000f000fu) << 12) ^ kTopNibble);
        write(3 * h + 2, (p[6] | p[7] << 6 | (p[2] >> 4 & 0x00030003u) << 12 | (p[5] >> 4 & 0x00030003u) << 14) ^ kTopNibble);
    }
}

inline void read_codes(Codes kind, const uint8_t* packed, uint32_t* quads) {
    const auto read = [packed](int i, uint32_t turned) {
        uint32_t word;
        std::memcpy(&word, packed + 64 * i, 4);
        return word ^ turned;
    };
    const auto field = [](uint32_t word, int at, uint32_t mask) { return word >> at & mask; };
    for (int q = 0; q < 8; ++q) {
        if (kind == Codes::Bytes) quads[q] = read(q, kEvenByte);
        if (kind == Codes::Nibbles) quads[q] = field(read(q / 2, kTopNibble), q % 2 * 4, 0x0f0f0f0fu);
    }
    for (int h = 0; kind == Codes::SixBits && h < 2; ++h) {
        constexpr uint32_t kSix = 0x003f003fu, kFour = 0x000f000fu, kTwo = 0x00030003u;
        const uint32_t a = read(3 * h, kTopNibble), b = read(3 * h + 1, kTopNibble), c = read(3 * h + 2, kTopNibble);
        const uint32_t p2 = field(a, 12, kFour) | field(c, 12, kTwo) << 4, p5 = field(b, 12, kFour) | field(c, 14, kTwo) << 4;
        const uint32_t p[8] = {field(a, 0, kSix), field(a, 6, kSix), p2, field(b, 0, kSix), field(b, 6, kSix), p5, field(c, 0, kSix), field(c, 6, kSix)};
        for (int i = 0; i < 4; ++i) quads[4 * h + i] = p[i / 2 * 4 + i % 2] | p[i / 2 * 4 + i % 2 + 2] << 8;
    }
}

// The factors of a group of values. Returns the sums of its halves.
inline Halves write_factors(const Words (&values)[4], Activations& out) {
    const Words none = {}, one = none + 1;
    int32_t sums[2];
    for (int h = 0; h < 2; ++h) {
        Words z[2];  // P0 .. P3 and P4 .. P7
        Signed32 pair_sums[2];
        for (int i = 0; i < 2; ++i) {
            const Words x = values[2 * h + i];
            z[i] = HERD_SHUFFLE(x, x, 0, 2, 4, 6, 1, 3, 5, 7);
            pair_sums[i] = add_products(z[i], one);
            const Words nibbles = z[i] - (HERD_SHUFFLE(none, z[i], 0, 1, 8, 9, 10, 11, 12, 13) << 4);
            const Words bytes = HERD_SHUFFLE(z[i], z[i], 0, 1, 4, 5, 2, 3, 6, 7) - (HERD_SHUFFLE(none, z[i], 0, 1, 8, 9, 2, 3, 10, 11) << 8);
            std::memcpy(out.nibbles + 16 * h + 8 * i, &nibbles, 16);
            std::memcpy(out.bytes + 16 * h + 8 * i, &bytes, 16);
        }
        const Words first = HERD_SHUFFLE(none, z[0], 0, 1, 8, 9, 10, 11, 2, 3);                                      // -, P0, P1, -
        const Words third = HERD_SHUFFLE(HERD_SHUFFLE(z[0], z[1], 6, 7, 8, 9, 12, 13, 14, 15), none, 0, 1, 2, 3, 8, 9, 4, 5);  // P3, P4, -, P6
        const Words upper = HERD_SHUFFLE(z[0], z[1], 4, 5, 10, 11, 14, 15, 4, 5);                                    // P2, P5, P7, P2
        const Words six_bits[3] = {z[0] - (first << 6), z[1] - (third << 6), (upper << 4) - (HERD_SHUFFLE(upper, none, 4, 5, 6, 7, 8, 9, 8, 9) << 6)};
        std::memcpy(out.six_bits + 24 * h, six_bits, 48);
        const Signed32 &a = pair_sums[0], &b = pair_sums[1];
        sums[h] = (a[0] + a[1] + a[2] + a[3]) + (b[0] + b[1] + b[2] + b[3]);
        out.moved_nibbles[h] = 8 * (a[3] + b[3]);
        out.moved_bytes[h] = -128 * (a[0] + a[1] + b[0] + b[1]);
        out.moved_six_bits[h] = 8 * a[2] + (8 + 2 * 16) * b[1];
    }
    return {sums[0], sums[1]};
}

// Where the fields of a kind of code are: vectors of a group, and of vector i its fields, their bits and the first of their factors.
template <Codes C>
struct Fields {
    static constexpr int kVectors = C == Codes::Nibbles ? 4 : C == Codes::Bytes ? 8 : 6;
    static constexpr int count(int i) { return C == Codes::Nibbles || (C == Codes::SixBits && i % 3 == 2) ? 4 : C == Codes::Bytes ? 2 : 3; }
    static constexpr int bit(int field) { return C == Codes::Nibbles ? 4 * field : C == Codes::Bytes ? 8 * field : field == 3 ? 14 : 6 * field; }
    static constexpr int first_factor(int i) { return C == Codes::Nibbles ? 4 * i : C == Codes::Bytes ? 2 * i : 12 * (i / 3) + 3 * (i % 3); }
    static HERD_INLINE const int16_t* factors(const Activations& x) { return C == Codes::Nibbles ? x.nibbles : C == Codes::Bytes ? x.bytes : x.six_bits; }
    static HERD_INLINE const int32_t* moved(const Activations& x) {
        return C == Codes::Nibbles ? x.moved_nibbles : C == Codes::Bytes ? x.moved_bytes : x.moved_six_bits;
    }
};

// sums[t] += the products of sub-group s and T tokens, whose activations are `stride` bytes apart.
template <class Group, int T>
HERD_INLINE void add_products(const Group& group, int s, const uint8_t* x, int64_t stride, lanes::Sums<Group::at.codes> (&sums)[T]) {
    using At = Fields<Group::at.codes>;
    constexpr int kSome = At::kVectors / Group::at.sub_groups;
HERD_UNROLL
    for (int i = s * kSome; i < (s + 1) * kSome; ++i) {
        const int fields = At::count(i);
        Words factors[T][4];
HERD_UNROLL
        for (int t = 0; t < T; ++t) {
            const int16_t* from = At::factors(*reinterpret_cast<const Activations*>(x + t * stride));
HERD_UNROLL
            for (int f = 0; f < fields; ++f) {
                const int k = At::first_factor(i) + f;
                factors[t][f] = broadcast_pair(read_words<Words>(from + k / 4 * 8), k % 4);
            }
        }
HERD_UNROLL
        for (int r = 0; r < 4; ++r) {
            const auto words = read_words<Words>(group.group + 64 * i + 16 * r);
HERD_UNROLL
            for (int f = 0; f < fields; ++f) {
                const Words shifted = words >> At::bit(f);
HERD_UNROLL
                for (int t = 0; t < T; ++t) {
                    sums[t].v[r] += add_products(shifted, factors[t][f]);
                    settle(sums[t].v[r]);
                }
            }
        }
    }
}

// What the products of sub-group s are with the offset of codes, and what the packing moved, taken off.
template <class Group>
HERD_INLINE lanes::F32 whole_sum(const lanes::Sums<Group::at.codes>& sums, const Activations& x, int s) {
    constexpr Layout at = Group::at;
    const int32_t* moved = Fields<at.codes>::moved(x);
    const int32_t offset = at.offset_shift < 0 ? 0 : (at.sub_groups == 1 ? x.sum : x.halves[s]) * at.offset();
    const int32_t off = (at.sub_groups == 1 ? moved[0] + moved[1] : moved[s]) - offset;
    const Signed32 all = {off, off, off, off};
    lanes::F32 out;
    for (int r = 0; r < 4; ++r) out.v[r] = to_floats(sums.v[r] + all);
    return out;
}

namespace lanes {

// Of and into an expanded group: bytes.
template <Codes C>
HERD_INLINE Quad<C> load_quad(const uint8_t* p) {
    Quad<C> out;
    for (int r = 0; r < 4; ++r) out.v[r] = read_words<Unsigned16>(p + 16 * r) ^ uint16_t{0x80};
    return out;
}
template <Codes C>
HERD_INLINE void store_quad(uint8_t* p, const Quad<C>& w) {
    for (int r = 0; r < 4; ++r) {
        const Unsigned16 moved = w.v[r] ^ uint16_t{0x80};
        std::memcpy(p + 16 * r, &moved, 16);
    }
}

// Quad q of a packed group.
template <Codes C>
HERD_INLINE Quad<C> unpack_quad(const uint8_t* group, int q) {
    if constexpr (C == Codes::Bytes) return load_quad<C>(group + 64 * q);
    Quad<C> out;
    const auto read = [group](int i, int r) { return read_words<Unsigned16>(group + 64 * i + 16 * r); };
    for (int r = 0; r < 4; ++r) {
        if constexpr (C == Codes::Nibbles) {
            out.v[r] = (read(q / 2, r) ^ uint16_t{0x8000}) >> (q % 2 * 4) & uint16_t{0x0f0f};
        } else {
            const int h = 3 * (q / 4), i = q % 4;  // even pair P[i / 2 * 4 + i % 2], odd pair two behind it
            const Unsigned16 a = read(h, r) ^ uint16_t{0x8000}, b = read(h + 1, r) ^ uint16_t{0x8000}, c = read(h + 2, r) ^ uint16_t{0x8000};
            const auto six = [](Unsigned16 words, int bit) { return words >> bit & uint16_t{63}; };
            const Unsigned16 p2 = a >> 12 | (c >> 8 & uint16_t{48}), p5 = b >> 12 | (c >> 10 & uint16_t{48});
            const Unsigned16 even = i == 0 ? six(a, 0) : i == 1 ? six(a, 6) : i == 2 ? six(b, 6) : p5;
            const Unsigned16 odd = i == 0 ? p2 : i == 1 ? six(b, 0) : i == 2 ? six(c, 0) : six(c, 6);
            out.v[r] = even | odd << 8;
        }
    }
    return out;
}
}  // namespace lanes

}  // namespace herd::HERD_ISA
