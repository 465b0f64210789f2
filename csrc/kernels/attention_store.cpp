// store: keys and values of a step into a page of the cache, in its format (PageShape in kernels.h)
//
// Int8: scale = the largest magnitude of 32 components / 127 as a half; code = component / scale, rounded to nearest even.
// Int4: of the head rotated (hadamard.h); scale = the component of largest magnitude / -127 as a half; the code of the nearest of the
// 16 values of IQ4. Reference: backends/reference/integer_cache.py.
#include "kernels/hadamard.h"
#include "kernels/operations.h"
#include "kernels/pairs.h"

namespace herd::HERD_ISA {

namespace {

constexpr int64_t kW = Vector::kWidth;

// x [count] -> elements, and some more up to a register's width: there is room for them.
template <typename Element>
void convert_row(const float* x, int64_t count, Element* to) {
    int64_t h = 0;
    for (; h + kW <= count; h += kW) store(to + h, load(x + h));
    if (h == count) return;
    float padded[kW] = {};
    for (int64_t i = 0; h + i < count; ++i) padded[i] = x[h + i];
    store(to + h, load(padded));
}

template <typename Element>
void store_columns(const PageShape& shape, const float* k, int64_t stride, int64_t tokens, int64_t at, Element* keys) {
    constexpr int64_t kSome = 128;
    Element converted[kSome];
    for (int64_t t = 0; t < tokens; ++t) {
        Element* column = keys + (at + t) / 16 * 16 * shape.head_width + (at + t) % 16;
        for (int64_t first = 0; first < shape.head_width; first += kSome) {
            const int64_t some = shape.head_width - first < kSome ? shape.head_width - first : kSome;
            convert_row(k + t * stride + first, some, converted);
            for (int64_t h = 0; h < some; ++h) column[16 * (first + h)] = converted[h];
        }
    }
}

template <typename Element>
void store_rows(const PageShape& shape, const float* v, int64_t stride, int64_t tokens, int64_t at, Element* values) {
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t h = 0; h < shape.padded_width; h += kW) {
            Element* to = values + (h / 16 * kPageTokens + at + t) * 16 + h % 16;
            if (h + kW <= shape.head_width) {
                store(to, load(v + t * stride + h));
                continue;
            }
            float padded[kW] = {};
            for (int64_t i = 0; h + i < shape.head_width; ++i) padded[i] = v[t * stride + h + i];
            store(to, load(padded));
        }
    }
}

// One key or value as codes, with the scales of its groups.
struct Codes {
    uint8_t codes[kMostHeadWidth];
    uint16_t scales[kMostHeadWidth / 32];
};

// What the half that is nearest to `scale` stands for, the half itself in `half`.
float rounded_scale(float scale, uint16_t& half) {
    uint16_t halves[kW];
    float floats[kW];
    store(halves, broadcast(scale));
    store(floats, load(halves));
    half = halves[0];
    return floats[0];
}

void quantise_int8(const float* x, uint8_t* codes, uint16_t& half) {
    Vector top = broadcast(0.0f), nothing = broadcast(0.0f);
    for (int64_t i = 0; i < 32; i += kW) {
        const Vector value = load(x + i);
        top = largest(top, magnitude(value));
        nothing = nothing + (value - value);
    }
    const float scale = rounded_scale(largest(top) / 127.0f + sum(nothing), half);
    const Vector factor = broadcast(scale > 0.0f ? 1.0f / scale : 0.0f);
    int16_t rounded[32];
    for (int64_t i = 0; i < 32; i += kW) {
        store_rounded(rounded + i, largest(broadcast(-127.0f), smallest(broadcast(127.0f), load(x + i) * factor)));
    }
    for (int64_t i = 0; i < 32; ++i) codes[i] = static_cast<uint8_t>(rounded[i]);
}

void quantise_int4(const float* x, uint8_t* codes, uint16_t& half) {
    float extreme = 0.0f, nothing = 0.0f;
    for (int64_t i = 0; i < 32; ++i) {
        if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
        nothing += x[i] - x[i];
    }
    const float scale = rounded_scale(extreme / -127.0f + nothing, half), factor = scale != 0.0f ? 1.0f / scale : 0.0f;
    for (int64_t i = 0; i < 32; ++i) {
        const float value = x[i] * factor;
        int code = 0;
        for (int level = 0; level < 15; ++level) code += value > 0.5f * static_cast<float>(kTable[level] + kTable[level + 1]);
        codes[i] = static_cast<uint8_t>(code);
    }
}

void quantise(const PageShape& shape, const float* x, Codes& out) {
    float padded[kMostHeadWidth];
    std::memcpy(padded, x, static_cast<size_t>(shape.head_width) * sizeof(float));
    for (int64_t h = shape.head_width; h < shape.padded_width; ++h) padded[h] = 0.0f;
    const bool is_int4 = shape.format == CacheFormat::Int4;
    if (is_int4) hadamard(padded, shape.head_width);
    for (int64_t g = 0; g < shape.groups(); ++g) (is_int4 ? quantise_int4 : quantise_int8)(padded + 32 * g, out.codes + 32 * g, out.scales[g]);
}

void write_key(const PageShape& shape, const Codes& from, int64_t place, uint8_t* keys) {
    auto* scales = reinterpret_cast<uint16_t*>(keys + shape.code_bytes(shape.head_width));
    for (int64_t g = 0; g < shape.groups(); ++g) scales[g * kPageTokens + place] = from.scales[g];
    const int64_t width = shape.padded_width, lane = 2 * (place % 16);
    if (shape.format == CacheFormat::Int8) {
        uint8_t* block = keys + place / 16 * 16 * width + lane;
        for (int64_t h = 0; h < width; h += 2) std::memcpy(block + 16 * h, from.codes + h, 2);
        return;
    }
    uint8_t* block = keys + place / 16 * 8 * width + lane;
    for (int64_t h = 0; h < width; h += 4) {
        block[8 * h] = static_cast<uint8_t>(from.codes[h] | from.codes[h + 2] << 4);
        block[8 * h + 1] = static_cast<uint8_t>(from.codes[h + 1] | from.codes[h + 3] << 4);
    }
}

void write_value(const PageShape& shape, const Codes& from, int64_t place, uint8_t* values) {
    auto* scales = reinterpret_cast<uint16_t*>(values + shape.code_bytes(shape.padded_width));
    for (int64_t g = 0; g < shape.groups(); ++g) scales[g * kPageTokens + place] = from.scales[g];
    const int64_t step = shape.format == CacheFormat::Int8 ? 16 : 32;  // components of a block
    for (int64_t h = 0; h < shape.padded_width; h += step) {
        uint8_t* to = values + h / step * 16 * kPageTokens + place / 2 * 32 + place % 2;
        for (int64_t i = 0; i < 16; ++i) to[2 * i] = static_cast<uint8_t>(step == 16 ? from.codes[h + i] : from.codes[h + i] | from.codes[h + 16 + i] << 4);
    }
}

}  // namespace

void store_keys(const PageShape& shape, const float* k, int64_t stride, int64_t tokens, int64_t at, uint8_t* page) {
    if (shape.format == CacheFormat::Float32) return store_columns(shape, k, stride, tokens, at, reinterpret_cast<float*>(page));
    if (shape.format == CacheFormat::Float16) return store_columns(shape, k, stride, tokens, at, reinterpret_cast<uint16_t*>(page));
    Codes codes;
    for (int64_t t = 0; t < tokens; ++t) {
        quantise(shape, k + t * stride, codes);
        write_key(shape, codes, at + t, page);
    }
}

void store_values(const PageShape& shape, const float* v, int64_t stride, int64_t tokens, int64_t at, uint8_t* page) {
    uint8_t* values = page + shape.key_bytes();
    if (shape.format == CacheFormat::Float32) return store_rows(shape, v, stride, tokens, at, reinterpret_cast<float*>(values));
    if (shape.format == CacheFormat::Float16) return store_rows(shape, v, stride, tokens, at, reinterpret_cast<uint16_t*>(values));
    Codes codes;
    for (int64_t t = 0; t < tokens; ++t) {
        quantise(shape, v + t * stride, codes);
        write_value(shape, codes, at + t, values);
    }
}

}  // namespace herd::HERD_ISA
