#include "learning/rows.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/team.h"

namespace herd {

namespace {

constexpr int64_t kPieceNumbers = 16384;

int64_t rows_of_piece(const RowWork& work) { return std::max<int64_t>(1, kPieceNumbers / std::max<int64_t>(1, work.width)); }

uint8_t* at(const RowWork& work, Matrix2 matrix, int64_t row, int64_t column = 0) {
    return static_cast<uint8_t*>(matrix.data) + (row * matrix.stride + column) * (work.element == Element::Float32 ? 4 : 2);
}

// Calls `each` with every row.
template <typename Each>
void for_rows(const RowWork& work, int64_t rows_at_once, const Each& each) {
    share(work.threads, (work.rows + rows_at_once - 1) / rows_at_once, [&](int64_t piece, int) {
        for (int64_t row = piece * rows_at_once; row < std::min(work.rows, (piece + 1) * rows_at_once); ++row) each(row);
    });
}

}  // namespace

void rms_norm_rows(const RowWork& work, Matrix2 x, const float* scales, float eps, Matrix2 y, float* factors) {
    for_rows(work, rows_of_piece(work), [&](int64_t row) {
        factors[row] = work.kernels.rms_norm(work.element, at(work, x, row), scales, eps, work.width, at(work, y, row));
    });
}

void rms_norm_rows_backward(const RowWork& work, Matrix2 x, const float* scales, const float* factors, Matrix2 dy, Matrix2 dx, float* for_scales) {
    for_rows(work, for_scales == nullptr ? rows_of_piece(work) : kScaleRows, [&](int64_t row) {
        float* part = for_scales == nullptr ? nullptr : for_scales + row / kScaleRows * work.width;
        work.kernels.rms_norm_backward(work.element, at(work, x, row), scales, factors[row], at(work, dy, row), work.width, at(work, dx, row), part);
    });
}

void rotate_rows(const RowWork& work, int64_t heads, Matrix2 x, const float* cosines, const float* sines, bool back, Matrix2 y) {
    const int64_t width = work.width / heads, half = width / 2;
    share(work.threads, (work.rows + rows_of_piece(work) - 1) / rows_of_piece(work), [&](int64_t piece, int) {
        std::vector<float> turned(static_cast<size_t>(half));
        for (int64_t row = piece * rows_of_piece(work); row < std::min(work.rows, (piece + 1) * rows_of_piece(work)); ++row) {
            for (int64_t i = 0; i < half; ++i) turned[static_cast<size_t>(i)] = back ? -sines[row * half + i] : sines[row * half + i];
            for (int64_t head = 0; head < heads; ++head) {
                work.kernels.rotate(work.element, at(work, x, row, head * width), cosines + row * half, turned.data(), width, at(work, y, row, head * width));
            }
        }
    });
}

void silu_gate_rows(const RowWork& work, Matrix2 gate, Matrix2 up, Matrix2 y) {
    for_rows(work, rows_of_piece(work),
             [&](int64_t row) { work.kernels.silu_gate(work.element, at(work, gate, row), at(work, up, row), work.width, at(work, y, row)); });
}

void silu_gate_rows_backward(const RowWork& work, Matrix2 gate, Matrix2 up, Matrix2 dy, Matrix2 for_gate, Matrix2 for_up) {
    for_rows(work, rows_of_piece(work), [&](int64_t row) {
        work.kernels.silu_gate_backward(work.element, at(work, gate, row), at(work, up, row), at(work, dy, row), work.width, at(work, for_gate, row),
                                        at(work, for_up, row));
    });
}

void softmax_rows(const RowWork& work, Matrix2 logits, const int64_t* targets, float z_loss, bool with_slopes, float* logprobs, float* lse) {
    for_rows(work, 1, [&](int64_t row) {
        void* here = at(work, logits, row);
        const SoftmaxSum found = work.kernels.softmax_sum(work.element, here, work.width);
        const float log_total = std::log(found.total);
        lse[row] = found.top + log_total;
        logprobs[row] = (work.kernels.number_at(work.element, here, targets[row]) - found.top) - log_total;
        if (!with_slopes) return;
        const float factor = (1.0f + 2.0f * z_loss * lse[row]) / found.total;
        work.kernels.softmax_slopes(work.element, here, found.top, factor, targets[row], work.width, here);
    });
}

}  // namespace herd
