// The functions of one instruction set, as its files define them and table.cpp collects them. See kernels.h for what they do.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace herd::HERD_ISA {

void rms_norm(const float* x, const float* weight, float eps, int64_t width, float* y);
void rotate(float* x, const float* cosine, const float* sine, int64_t pairs);
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* y);
void silu_gate(const float* gate, const float* up, int64_t count, float* y);
void sigmoid_gate(const float* x, const float* gate, int64_t count, float* y);
void soft_cap(const float* x, float factor, float cap, int64_t count, float* y);
void gelu(const float* x, int64_t count, float* y);
void add_scaled(const float* x, const float* y, float factor, int64_t count, float* z);
void scale(const float* x, float factor, int64_t count, float* y);
void add(const float* x, const float* y, int64_t count, float* z);
bool all_finite(const float* x, int64_t count);
void exponential(const float* x, int64_t count, float* y);

void store_keys(const PageShape& shape, const float* k, int64_t stride, int64_t tokens, int64_t at, uint8_t* page);
void store_values(const PageShape& shape, const float* v, int64_t stride, int64_t tokens, int64_t at, uint8_t* page);
int64_t tile_rows(const PageShape& shape);
int64_t attention_scratch_bytes(const PageShape& shape, int64_t rows);
void attend(const AttentionTile& tile, uint8_t* scratch, float* partial);
void fold(const PageShape& shape, int64_t rows, const float* from, float* onto);
void finish(const PageShape& shape, const float* partial, int64_t tokens, int64_t group, float* y, int64_t y_stride);

float float_peak(int64_t rounds);
int32_t int8_peak(int64_t rounds);
float bf16_peak(int64_t rounds);
uint64_t read_bytes(const uint8_t* data, int64_t size);
extern const int64_t kFloatPeakOperations;
extern const int64_t kInt8PeakOperations;
extern const int64_t kBf16PeakOperations;

}  // namespace herd::HERD_ISA
