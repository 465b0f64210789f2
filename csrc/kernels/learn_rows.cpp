// Norms, rotations, gates and the softmax of the vocabulary, forwards and backwards, a row at a time. See learn.h for what they compute.
//
// A row is taken in pieces that are widened into floats beside the registers, so that memory is read and written once in each
// pass, in its own type. Sums have one order. Reference: backends/torch/ops.py, training/student/cross_entropy.py;
// tests/training/test_native_rows.py, csrc/tests/test_learning.cpp.
#include "kernels/elementwise.h"
#include "kernels/learn_storage.h"

namespace herd::HERD_ISA {

namespace {

constexpr int64_t kLanes = Vector::kWidth;
constexpr int64_t kPiece = 256;

// Some numbers of a row, widened; what does not fill the last register is 0.
template <typename Storage>
struct Piece {
    alignas(64) float values[kPiece];

    Piece(const void* row, int64_t first, int64_t count) {
        Storage::widen(static_cast<const typename Storage::Type*>(row) + first, count, values);
        for (int64_t i = count; i % kLanes != 0; ++i) values[i] = 0.0f;
    }
    Vector at(int64_t i) const { return load(values + i); }
};

// Calls `work` with the first number and the count of each piece of a row.
template <typename Work>
void pieces(int64_t width, Work work) {
    for (int64_t first = 0; first < width; first += kPiece) work(first, width - first < kPiece ? width - first : kPiece);
}

template <typename Storage>
void write(const float* values, int64_t first, int64_t count, void* row) {
    Storage::narrow(values, count, static_cast<typename Storage::Type*>(row) + first);
}

// The scales of a piece, padded as it is; ones where there are none.
struct Scales {
    alignas(64) float values[kPiece];

    Scales(const float* scales, int64_t first, int64_t count) {
        for (int64_t i = 0; i < count; ++i) values[i] = scales == nullptr ? 1.0f : scales[first + i];
        for (int64_t i = count; i % kLanes != 0; ++i) values[i] = 0.0f;
    }
    Vector at(int64_t i) const { return load(values + i); }
};

void sum_parts(Element element, const float* parts, int64_t num_parts, int64_t stride, int64_t width, void* to) {
    with_storage(element, [&]<typename Storage>() {
        pieces(width, [&](int64_t first, int64_t count) {
            alignas(64) float totals[kPiece];
            for (int64_t i = 0; i < count; ++i) {
                float total = parts[first + i];
                for (int64_t part = 1; part < num_parts; ++part) total += parts[part * stride + first + i];
                totals[i] = total;
            }
            write<Storage>(totals, first, count, to);
        });
    });
}

float rms_norm(Element element, const void* x, const float* scales, float eps, int64_t width, void* y) {
    return with_storage(element, [&]<typename Storage>() {
        Vector squares = broadcast(0.0f);
        pieces(width, [&](int64_t first, int64_t count) {
            const Piece<Storage> piece(x, first, count);
            for (int64_t i = 0; i < count; i += kLanes) squares = fused(piece.at(i), piece.at(i), squares);
        });
        const float factor = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps);
        pieces(width, [&](int64_t first, int64_t count) {
            Piece<Storage> piece(x, first, count);
            const Scales scale(scales, first, count);
            for (int64_t i = 0; i < count; i += kLanes) store(piece.values + i, piece.at(i) * broadcast(factor) * scale.at(i));
            write<Storage>(piece.values, first, count, y);
        });
        return factor;
    });
}

void rms_norm_backward(Element element, const void* x, const float* scales, float factor, const void* dy, int64_t width, void* dx, float* for_scales) {
    with_storage(element, [&]<typename Storage>() {
        const Vector times = broadcast(factor);
        Vector common = broadcast(0.0f);
        pieces(width, [&](int64_t first, int64_t count) {
            const Piece<Storage> piece(x, first, count), slope(dy, first, count);
            const Scales scale(scales, first, count);
            for (int64_t i = 0; i < count; i += kLanes) common = fused(slope.at(i) * scale.at(i), piece.at(i) * times, common);
            if (for_scales == nullptr) return;
            for (int64_t i = 0; i < count; ++i) for_scales[first + i] += slope.values[i] * (piece.values[i] * factor);
        });
        const Vector along = broadcast(-sum(common) / static_cast<float>(width));
        pieces(width, [&](int64_t first, int64_t count) {
            Piece<Storage> piece(x, first, count);
            const Piece<Storage> slope(dy, first, count);
            const Scales scale(scales, first, count);
            for (int64_t i = 0; i < count; i += kLanes) store(piece.values + i, fused(piece.at(i) * times, along, slope.at(i) * scale.at(i)) * times);
            write<Storage>(piece.values, first, count, dx);
        });
    });
}

void rotate(Element element, const void* x, const float* cosine, const float* sine, int64_t width, void* y) {
    with_storage(element, [&]<typename Storage>() {
        pieces(width, [&](int64_t first, int64_t count) {
            Piece<Storage> piece(x, first, count);
            for (int64_t i = 0; i < count; i += 2) {
                const float even = piece.values[i], odd = piece.values[i + 1];
                const float c = cosine[(first + i) / 2], s = sine[(first + i) / 2];
                piece.values[i] = even * c - odd * s;
                piece.values[i + 1] = even * s + odd * c;
            }
            write<Storage>(piece.values, first, count, y);
        });
    });
}

void silu_gate(Element element, const void* gate, const void* up, int64_t width, void* y) {
    with_storage(element, [&]<typename Storage>() {
        pieces(width, [&](int64_t first, int64_t count) {
            Piece<Storage> gates(gate, first, count);
            const Piece<Storage> ups(up, first, count);
            for (int64_t i = 0; i < count; i += kLanes) store(gates.values + i, gates.at(i) * sigmoid(gates.at(i)) * ups.at(i));
            write<Storage>(gates.values, first, count, y);
        });
    });
}

// With s = sigmoid(gate): d silu(gate) / d gate = s (1 + gate (1 - s)).
void silu_gate_backward(Element element, const void* gate, const void* up, const void* dy, int64_t width, void* for_gate, void* for_up) {
    with_storage(element, [&]<typename Storage>() {
        const Vector one = broadcast(1.0f);
        pieces(width, [&](int64_t first, int64_t count) {
            Piece<Storage> gates(gate, first, count), ups(up, first, count);
            const Piece<Storage> slopes(dy, first, count);
            for (int64_t i = 0; i < count; i += kLanes) {
                const Vector z = gates.at(i), s = sigmoid(z), slope = slopes.at(i), silu = z * s;
                store(gates.values + i, slope * ups.at(i) * (s * fused(z, one - s, one)));
                store(ups.values + i, slope * silu);
            }
            write<Storage>(gates.values, first, count, for_gate);
            write<Storage>(ups.values, first, count, for_up);
        });
    });
}

SoftmaxSum softmax_sum(Element element, const void* logits, int64_t width) {
    return with_storage(element, [&]<typename Storage>() {
        Vector most = broadcast(-__builtin_inff());
        pieces(width, [&](int64_t first, int64_t count) {
            const Piece<Storage> piece(logits, first, count);
            for (int64_t i = 0; i < count; i += kLanes) most = largest(most, keep_first(piece.at(i), count - i, -__builtin_inff()));
        });
        const float top = largest(most);
        Vector total = broadcast(0.0f);
        pieces(width, [&](int64_t first, int64_t count) {
            const Piece<Storage> piece(logits, first, count);
            Vector some = broadcast(0.0f);
            for (int64_t i = 0; i < count; i += kLanes) some = some + keep_first(exponential(piece.at(i) - broadcast(top)), count - i, 0.0f);
            total = total + some;
        });
        return SoftmaxSum{top, sum(total)};
    });
}

void softmax_slopes(Element element, const void* logits, float top, float factor, int64_t target, int64_t width, void* slopes) {
    with_storage(element, [&]<typename Storage>() {
        const Vector below = broadcast(top), times = broadcast(factor);
        pieces(width, [&](int64_t first, int64_t count) {
            Piece<Storage> piece(logits, first, count);
            for (int64_t i = 0; i < count; i += kLanes) store(piece.values + i, exponential(piece.at(i) - below) * times);
            if (first <= target && target < first + count) piece.values[target - first] -= 1.0f;
            write<Storage>(piece.values, first, count, slopes);
        });
    });
}

float number_at(Element element, const void* row, int64_t place) {
    return with_storage(element, [&]<typename Storage>() { return Piece<Storage>(row, place, 1).values[0]; });
}

}  // namespace

const LearnRowKernels& learn_row_table();

const LearnRowKernels& learn_row_table() {
    static const LearnRowKernels table{
        .sum_parts = sum_parts,
        .rms_norm = rms_norm,
        .rms_norm_backward = rms_norm_backward,
        .rotate = rotate,
        .silu_gate = silu_gate,
        .silu_gate_backward = silu_gate_backward,
        .softmax_sum = softmax_sum,
        .softmax_slopes = softmax_slopes,
        .number_at = number_at,
    };
    return table;
}

}  // namespace herd::HERD_ISA
