// Every storage format x arithmetic x instruction set of this machine, against the block definitions (linear_reference.h).
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "base/cpu.h"
#include "kernels/matrix.h"
#include "tests/check.h"
#include "tests/linear_reference.h"

using namespace herd;

namespace {

constexpr Storage kStorages[] = {Storage::F32,  Storage::F16,  Storage::BF16, Storage::Q4_0, Storage::Q4_1,   Storage::Q5_0,  Storage::Q5_1, Storage::Q8_0,
                                 Storage::Q2_K, Storage::Q3_K, Storage::Q4_K, Storage::Q5_K, Storage::Q6_K, Storage::IQ4_NL, Storage::IQ4_XS};
constexpr int64_t kTokenCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 64};

void put_half(uint8_t* at, std::mt19937& random, bool is_extreme) {
    // Sign, exponents of ordinary scales, any fraction; now and then zero or a subnormal number.
    uint32_t bits = (random() & 0x83ffu) | (8u + random() % 8u) << 10;
    if (is_extreme && random() % 8 == 0) bits &= 0x83ffu;
    at[0] = static_cast<uint8_t>(bits);
    at[1] = static_cast<uint8_t>(bits >> 8);
}

// Rows of a file with random bits: every code and scale occurs, also the extreme ones.
std::vector<uint8_t> random_rows(Storage storage, int64_t rows, int64_t columns, std::mt19937& random) {
    const Layout at = layout(storage);
    std::vector<uint8_t> out(static_cast<size_t>(rows * columns / at.file_block_columns * at.file_block_bytes));
    for (uint8_t& byte : out) byte = static_cast<uint8_t>(random());
    for (size_t i = 0; i < out.size(); i += static_cast<size_t>(at.file_block_bytes)) {
        uint8_t* block = &out[i];
        switch (storage) {
            case Storage::F32: {
                const float value = static_cast<float>(static_cast<int>(random() % 20001) - 10000) * 1e-4f;
                std::memcpy(block, &value, 4);
                break;
            }
            case Storage::F16: put_half(block, random, true); break;
            case Storage::BF16: block[1] = static_cast<uint8_t>((random() & 0x80) | 0x3e); break;
            case Storage::Q2_K: put_half(block + 80, random, true), put_half(block + 82, random, true); break;
            case Storage::Q3_K: put_half(block + 108, random, true); break;
            case Storage::Q6_K: put_half(block + 208, random, true); break;
            default:
                put_half(block, random, true);
                if (at.has_minimum) put_half(block + 2, random, true);
        }
    }
    if (storage == Storage::Q8_0) std::memset(&out[2], 0x80, 32);  // -128, the one code without a positive twin
    return out;
}

std::vector<float> random_activations(int64_t count, std::mt19937& random) {
    std::vector<float> x(static_cast<size_t>(count));
    for (float& v : x) v = static_cast<float>(static_cast<int>(random() % 20001) - 10000) * 3e-4f;
    for (size_t i = 0; i + 32 <= x.size() && i < 96; ++i) x[i] = i < 32 ? 3.0f : i < 64 ? -3.0f : 0.0f;  // extreme, and a zero group
    return x;
}

struct Case {
    Storage storage;
    Arithmetic arithmetic;
    int64_t rows, columns;
};

Matrix pack(const LinearKernels& kernels, const Case& c, const std::vector<uint8_t>& file) {
    const int64_t bytes = kernels.packed_bytes(c.storage, c.arithmetic, c.rows, c.columns);
    Matrix m{.storage = c.storage, .arithmetic = c.arithmetic, .rows = c.rows, .columns = c.columns, .panels = panels_of(c.rows), .data = AlignedBytes(bytes)};
    const int64_t middle = m.panels / 2;  // in two calls, as two threads would
    kernels.pack(c.storage, c.arithmetic, file.data(), c.rows, c.columns, m.data.data(), middle, m.panels);
    kernels.pack(c.storage, c.arithmetic, file.data(), c.rows, c.columns, m.data.data(), 0, middle);
    return m;
}

struct Prepared {
    int64_t stride;
    AlignedBytes bytes;
};
Prepared prepare(const LinearKernels& kernels, const Matrix& m, const std::vector<float>& x, int64_t tokens) {
    const Form form = kernels.form(m);
    Prepared out{kernels.prepared_bytes(form, m.columns), AlignedBytes(tokens * kernels.prepared_bytes(form, m.columns))};
    for (int64_t t = 0; t < tokens; ++t) kernels.prepare(form, &x[static_cast<size_t>(t * m.columns)], m.columns, out.bytes.data() + t * out.stride);
    return out;
}

std::vector<float> multiply(const LinearKernels& kernels, const Matrix& m, const Prepared& x, int64_t tokens, const float* bias, bool accumulate,
                            float before, int64_t split) {
    AlignedBytes scratch(kernels.scratch_bytes(m, tokens) + 64);
    std::vector<float> y(static_cast<size_t>(tokens * (m.rows + 3)), before);
    for (int64_t p = 0; p < m.panels; p += split) {
        kernels.linear(m, x.bytes.data(), x.stride, tokens, bias, accumulate, y.data(), m.rows + 3, p, std::min(m.panels, p + split), scratch.data());
    }
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t r = m.rows; r < m.rows + 3; ++r) CHECK(y[static_cast<size_t>(t * (m.rows + 3) + r)] == before, "row %d beyond the matrix was written", int(r));
    }
    return y;
}

void check_rows_come_back(const LinearKernels& kernels, const Case& c, const Matrix& m, const std::vector<uint8_t>& file) {
    std::vector<float> row(static_cast<size_t>(c.columns));
    for (int64_t r = 0; r < c.rows; ++r) {
        kernels.unpack_row(m, r, row.data());
        for (int64_t k = 0; k < c.columns; ++k) {
            const float expected = reference::value_at(c.storage, &file[static_cast<size_t>(r * kernels.row_bytes(c.storage, c.columns))], k);
            CHECK(row[static_cast<size_t>(k)] == expected, "storage %d row %d column %d: %g, expected %g", int(c.storage), int(r), int(k), row[static_cast<size_t>(k)], expected);
        }
    }
}

// Against sums in double of what is multiplied: the error of summing in float32; in int8 and bf16 that, and the very bits of the definition.
void check_values(const LinearKernels& kernels, const Case& c, const Matrix& m, const std::vector<uint8_t>& file, const std::vector<float>& x,
                  const std::vector<float>& y, int64_t tokens, bool is_fused) {
    const Form form = kernels.form(m);
    for (int64_t t = 0; t < tokens; ++t) {
        const float* token = &x[static_cast<size_t>(t * c.columns)];
        const reference::Quantised quantised = form == Form::Int8 ? reference::quantise(token, c.columns) : reference::Quantised{};
        for (int64_t r = 0; r < c.rows; ++r) {
            const uint8_t* row = &file[static_cast<size_t>(r * kernels.row_bytes(c.storage, c.columns))];
            const float got = y[static_cast<size_t>(t * (c.rows + 3) + r)];
            double expected = 0, magnitude = 0;
            for (int64_t k = 0; k < c.columns; ++k) {
                const size_t i = static_cast<size_t>(k);
                const double a = form == Form::Int8   ? double(quantised.scales[i / 32]) * quantised.values[i]
                                 : form == Form::BF16 ? reference::to_bf16(token[i])
                                                      : token[i];
                expected += a * reference::value_at(c.storage, row, k);
                magnitude += std::fabs(a * reference::value_at(c.storage, row, k));
            }
            const double limit = magnitude * 2e-6;
            CHECK(std::fabs(got - expected) <= limit, "storage %d arithmetic %d token %d row %d: %g, expected %g", int(c.storage), int(c.arithmetic), int(t), int(r), got, expected);
            if (form == Form::F32) continue;
            const float defined = form == Form::Int8 ? reference::dot_int8(c.storage, row, quantised, is_fused) : reference::dot_bf16(row, token, c.columns);
            CHECK(std::bit_cast<uint32_t>(got) == std::bit_cast<uint32_t>(defined), "storage %d token %d row %d: %.9g, defined %.9g", int(c.storage), int(t), int(r), got, defined);
        }
    }
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b, size_t count) { return std::memcmp(a.data(), b.data(), count * 4) == 0; }

// The rows of a file, looked at where they are, give the bits that their panels give.
void check_in_place(const LinearKernels& kernels, const Case& c, const Prepared& prepared, const std::vector<uint8_t>& file, const std::vector<float>& all) {
    auto kept = std::make_shared<std::vector<uint8_t>>(file);
    const Matrix m{.storage = c.storage, .arithmetic = c.arithmetic, .rows = c.rows, .columns = c.columns, .panels = panels_of(c.rows),
                   .is_in_place = true, .data = AlignedBytes(kept->data(), static_cast<int64_t>(kept->size()), kept)};
    check_rows_come_back(kernels, c, m, file);
    for (int64_t tokens : {1, 7}) {
        const std::vector<float> some = multiply(kernels, m, prepared, tokens, nullptr, false, -7.0f, 3);
        CHECK(same_bits(some, all, some.size()), "storage %d: %d tokens give other bits in place", int(c.storage), int(tokens));
    }
}

void check_case(const LinearKernels& kernels, const Case& c, std::mt19937& random, bool is_fused) {
    const std::vector<uint8_t> file = random_rows(c.storage, c.rows, c.columns, random);
    const Matrix m = pack(kernels, c, file);
    check_rows_come_back(kernels, c, m, file);
    constexpr int64_t kMost = 64;
    const std::vector<float> x = random_activations(kMost * c.columns, random);
    const Prepared prepared = prepare(kernels, m, x, kMost);
    const std::vector<float> all = multiply(kernels, m, prepared, kMost, nullptr, false, -7.0f, m.panels);
    check_values(kernels, c, m, file, x, all, 3, is_fused);
    for (int64_t tokens : kTokenCounts) {
        const std::vector<float> some = multiply(kernels, m, prepared, tokens, nullptr, false, -7.0f, 1);
        CHECK(same_bits(some, all, some.size()), "storage %d arithmetic %d: %d tokens give other bits than %d", int(c.storage), int(c.arithmetic), int(tokens), int(kMost));
    }
    if (kernels.block_columns(c.storage) == 1) check_in_place(kernels, c, prepared, file, all);
    std::vector<float> bias(static_cast<size_t>(c.rows));
    for (size_t r = 0; r < bias.size(); ++r) bias[r] = static_cast<float>(r) * 0.25f;
    for (int64_t tokens : {1, 6}) {
        const std::vector<float> added = multiply(kernels, m, prepared, tokens, bias.data(), true, 0.5f, 2);
        for (int64_t i = 0; i < tokens * (c.rows + 3); ++i) {
            const size_t r = static_cast<size_t>(i % (c.rows + 3));
            if (r >= bias.size()) continue;
            CHECK(added[static_cast<size_t>(i)] == (all[static_cast<size_t>(i)] + bias[r]) + 0.5f, "storage %d: bias and accumulate", int(c.storage));
        }
    }
}

void check_prepared(const LinearKernels& kernels) {
    std::mt19937 random(5);
    std::vector<float> x = random_activations(1024, random);
    x[128] = INFINITY;
    x[161] = NAN;
    x[200] = 1e-44f;
    for (size_t i = 224; i < 256; ++i) x[i] = i == 230 ? 1e-44f : 0.0f;  // the scale has no finite inverse
    for (size_t i = 256; i < 288; ++i) x[i] = static_cast<float>(i % 2 ? 127 : 63) + 0.5f * static_cast<float>(i % 3);  // ties
    AlignedBytes row(kernels.prepared_bytes(Form::Int8, 1024));
    kernels.prepare(Form::Int8, x.data(), 1024, row.data());
    const int64_t stride = kernels.prepared_bytes(Form::Int8, 32);  // each begins with an ActivationGroup
    const auto group = [&](size_t g) -> const ActivationGroup& { return *reinterpret_cast<const ActivationGroup*>(row.data() + static_cast<int64_t>(g) * stride); };
    const reference::Quantised expected = reference::quantise(x.data(), 1024);
    CHECK(!std::isfinite(group(4).scale) && !std::isfinite(group(5).scale), "a NaN or infinity was lost");
    for (size_t g = 0; g < 32; ++g) {
        if (g == 4 || g == 5) continue;
        CHECK(group(g).scale == expected.scales[g], "group %d: scale %g, expected %g", int(g), group(g).scale, expected.scales[g]);
        int sum = 0, first = 0;
        for (size_t i = 0; i < 32; ++i) {
            CHECK(group(g).values[i] == expected.values[32 * g + i], "group %d value %d: %d, expected %d", int(g), int(i), group(g).values[i], expected.values[32 * g + i]);
            sum += expected.values[32 * g + i];
            if (i < 16) first += expected.values[32 * g + i];
        }
        CHECK(group(g).sum == sum && group(g).halves[0] == first && group(g).halves[1] == sum - first, "group %d: sums", int(g));
        CHECK(group(g).scaled_sum == group(g).scale * static_cast<float>(sum), "group %d: scaled sum", int(g));
    }
}

}  // namespace

int main() {
    for (Isa isa : available_isas()) {
        const LinearKernels& kernels = linear_kernels(isa);
#if defined(__FP_FAST_FMAF)
        const bool is_fused = true;
#else
        const bool is_fused = isa != Isa::Portable;
#endif
        std::mt19937 random(1);
        for (Storage storage : kStorages) {
            const int64_t block = layout(storage).file_block_columns;
            for (Arithmetic arithmetic : {Arithmetic::Int8, Arithmetic::Float32}) {
                if (block == 1 && arithmetic == Arithmetic::Int8) {
                    check_case(kernels, {storage, arithmetic, 5, 1}, random, is_fused);
                    check_case(kernels, {storage, arithmetic, 18, 77}, random, is_fused);
                }
                check_case(kernels, {storage, arithmetic, 1, block == 1 ? 33 : block}, random, is_fused);
                check_case(kernels, {storage, arithmetic, 37, block == 256 ? 512 : 160}, random, is_fused);
                check_case(kernels, {storage, arithmetic, 48, block == 256 ? 768 : 544}, random, is_fused);
                for (int i = 0; i < 3; ++i) {  // any shape
                    const int64_t rows = 1 + static_cast<int64_t>(random() % 70), blocks = 1 + static_cast<int64_t>(random() % (block == 256 ? 4 : 12));
                    check_case(kernels, {storage, arithmetic, rows, block == 1 ? 1 + static_cast<int64_t>(random() % 300) : block * blocks}, random, is_fused);
                }
            }
        }
        check_prepared(kernels);
        std::printf("%s: %s\n", isa_name(isa), test::failures == 0 ? "every storage format agrees with its definition" : "FAILED");
    }
    return test::failures == 0 ? 0 : 1;
}
