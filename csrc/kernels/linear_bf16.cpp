// linear of bf16 weights with bf16 activations: pairs of columns by the processor's dot product, even and odd pairs apart.
//
// Only for instruction sets that have one (CMakeLists.txt). Checked: tests/test_linear.cpp.
#include "kernels/linear_store.h"

namespace herd::HERD_ISA {

namespace {

using namespace lanes;

template <int T>
void tile(const LinearCall& call, const uint8_t* panel, int64_t p, int64_t t0) {
    const uint8_t* x = call.x + t0 * call.x_stride;
    F32 acc[T], odd[T];
    for (int t = 0; t < T; ++t) acc[t] = odd[t] = broadcast(0.0f);
    const int64_t pairs = (call.matrix.columns + 1) / 2;
    int64_t i = 0;
    for (; i + 2 <= pairs; i += 2) {
        if (t0 == 0) ask_for(panel + kAhead + 64 * i, 128);
HERD_UNROLL
        for (int t = 0; t < T; ++t) {
            acc[t] = dot_bf16(panel + 64 * i, x + t * call.x_stride + 4 * i, acc[t]);
            odd[t] = dot_bf16(panel + 64 * i + 64, x + t * call.x_stride + 4 * i + 4, odd[t]);
        }
    }
    for (int t = 0; t < T; ++t) {
        if (i < pairs) acc[t] = dot_bf16(panel + 64 * i, x + t * call.x_stride + 4 * i, acc[t]);
        acc[t] = add(acc[t], odd[t]);
    }
    store_tile(call, p, t0, acc);
}

}  // namespace

void linear_bf16(const LinearCall& call) {
    for (int64_t p = call.panel_begin; p < call.panel_end; ++p) {
        for_token_tiles<8>(call.tokens, [&](auto count, int64_t t0) { tile<count.value>(call, call.panel(p), p, t0); });
    }
}

}  // namespace herd::HERD_ISA
