// Sixteen rows at once with NEON and its dot product: four registers of four rows. The names are explained in lanes_portable.h.
//
// `sdot` multiplies signed bytes and adds four into 32 bits, exactly; codes up to 63 are signed bytes as they are.
#pragma once

#include <arm_neon.h>

#include "kernels/half.h"
#include "kernels/layout.h"

#define HERD_INLINE inline __attribute__((always_inline))
#define HERD_UNROLL _Pragma("GCC unroll 8")
#define HERD_EACH_FOUR HERD_UNROLL for (int i = 0; i < 4; ++i)

namespace herd::HERD_ISA::lanes {

inline constexpr int kTileTokens = 4;
inline constexpr int kFloatTileTokens = 4;

struct F32 {
    float32x4_t v[4];
};

HERD_INLINE F32 broadcast(float x) {
    const float32x4_t v = vdupq_n_f32(x);
    return {{v, v, v, v}};
}
HERD_INLINE F32 load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
HERD_INLINE void store(float* p, F32 x) {
    HERD_EACH_FOUR vst1q_f32(p + 4 * i, x.v[i]);
}
HERD_INLINE F32 load_half(const uint8_t* p) {
    F32 out;
    HERD_EACH_FOUR out.v[i] = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 8 * i)));
    return out;
}
HERD_INLINE F32 load_bf16(const uint8_t* p) {
    F32 out;
    HERD_EACH_FOUR out.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p + 8 * i)), 16));
    return out;
}
HERD_INLINE F32 load_uint8(const uint8_t* p) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
    return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(low))),
             vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(high)))}};
}
HERD_INLINE F32 load_int8(const uint8_t* p) {
    const int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(p));
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
HERD_INLINE F32 add(F32 x, F32 y) {
    HERD_EACH_FOUR x.v[i] = vaddq_f32(x.v[i], y.v[i]);
    return x;
}
HERD_INLINE F32 mul(F32 x, F32 y) {
    HERD_EACH_FOUR x.v[i] = vmulq_f32(x.v[i], y.v[i]);
    return x;
}
HERD_INLINE F32 negate(F32 x) {
    HERD_EACH_FOUR x.v[i] = vnegq_f32(x.v[i]);
    return x;
}
HERD_INLINE F32 fma(F32 x, F32 y, F32 z) {
    HERD_EACH_FOUR z.v[i] = vfmaq_f32(z.v[i], x.v[i], y.v[i]);
    return z;
}

template <Codes C>
struct Quad {
    int8x16_t v[4];
};

template <Codes C>
HERD_INLINE Quad<C> load_quad(const uint8_t* p) {
    Quad<C> out;
    HERD_EACH_FOUR out.v[i] = vreinterpretq_s8_u8(vld1q_u8(p + 16 * i));
    return out;
}
template <Codes C>
HERD_INLINE void store_quad(uint8_t* p, const Quad<C>& w) {
    HERD_EACH_FOUR vst1q_u8(p + 16 * i, vreinterpretq_u8_s8(w.v[i]));
}

template <Codes C>
HERD_INLINE Quad<C> unpack_quad(const uint8_t* group, int q) {
    if constexpr (C == Codes::Bytes) return load_quad<C>(group + 64 * q);
    Quad<C> out;
    HERD_EACH_FOUR {
        const uint8x16_t raw = vld1q_u8(group + 64 * (q & 3) + 16 * i);
        uint8x16_t code = q < 4 ? vandq_u8(raw, vdupq_n_u8(15)) : vshrq_n_u8(raw, 4);
        if constexpr (C == Codes::SixBits) {
            const uint8x16_t plane = vld1q_u8(group + 256 + 64 * (q >> 2) + 16 * i);
            const uint8x16_t upper = vshlq_u8(plane, vdupq_n_s8(static_cast<int8_t>(4 - 2 * (q & 3))));  // bits 2i to bits 4 and 5
            code = vorrq_u8(code, vandq_u8(upper, vdupq_n_u8(48)));
        }
        out.v[i] = C == Codes::Table ? vqtbl1q_s8(vld1q_s8(kTable), code) : vreinterpretq_s8_u8(code);
    }
    return out;
}

template <Codes C>
HERD_INLINE F32 column(const Quad<C>& w, int j) {
    F32 out;
    HERD_EACH_FOUR out.v[i] = vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(vreinterpretq_s32_s8(w.v[i]), vdupq_n_s32(24 - 8 * j)), 24));
    return out;
}

HERD_INLINE int8x16_t broadcast_quad(const int8_t* x) {
    int32_t quad;
    std::memcpy(&quad, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}

template <Codes C>
struct Sums {
    int32x4_t v[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};

    HERD_INLINE void add(const Quad<C>& w0, const Quad<C>& w1, const int8_t* x) {
        const int8x16_t x0 = broadcast_quad(x), x1 = broadcast_quad(x + 4);
        HERD_EACH_FOUR v[i] = vdotq_s32(v[i], w0.v[i], x0);
        HERD_EACH_FOUR v[i] = vdotq_s32(v[i], w1.v[i], x1);
    }
    template <int Shift>
    HERD_INLINE F32 value(const int32_t* x_sum) const {
        const int32x4_t offset = vdupq_n_s32(Shift < 0 ? 0 : *x_sum * (1 << (Shift < 0 ? 0 : Shift)));
        F32 out;
        HERD_EACH_FOUR out.v[i] = vcvtq_f32_s32(Shift < 0 ? v[i] : vsubq_s32(v[i], offset));
        return out;
    }
};

#undef HERD_EACH_FOUR

}  // namespace herd::HERD_ISA::lanes
