#include "program/eager.h"

#include <algorithm>
#include <utility>

namespace herd {

namespace {

constexpr int64_t kRowBlock = 256;      // rows of one product
constexpr int64_t kPanelBlock = 16;     // panels of one product
constexpr int64_t kTileQueries = 60;    // rows times query heads of a tile, about
constexpr int64_t kElements = 1 << 14;  // of a piece of an elementwise operation

// One phase of a job: runs the pieces that this worker gets.
template <typename Run>
void phase(Machine& machine, int number, int worker, int64_t pieces, Run run) {
    int64_t mine = 0;
    for (int64_t piece = machine.pool.next_piece(number, worker, pieces); piece >= 0; piece = machine.pool.next_piece(number, worker, pieces)) {
        ++mine;
        run(piece);
    }
    machine.pool.finish_phase(number, mine, pieces);
}

// A job of one phase.
template <typename Run>
void share_out(Machine& machine, int64_t pieces, Run run) {
    machine.pool.reset_phases(1);
    machine.pool.run([&](int worker) { phase(machine, 0, worker, pieces, [&](int64_t piece) { run(worker, piece); }); });
}

// Rows [0, rows) in pieces of about kElements values.
template <typename Row>
void each_row(Machine& machine, int64_t rows, int64_t width, Row row) {
    const int64_t some = std::max<int64_t>(1, kElements / width);
    share_out(machine, divide_up(rows, some), [&](int, int64_t piece) {
        for (int64_t at = piece * some; at < std::min(rows, (piece + 1) * some); ++at) row(at);
    });
}

}  // namespace

void multiply_rows(Machine& machine, const Matrix& matrix, const float* bias, const float* x, int64_t rows, float* y) {
    const LinearKernels& linear = machine.linear;
    const Form form = linear.form(matrix);
    const int64_t stride = linear.prepared_bytes(form, matrix.columns), most = std::min(rows, kRowBlock);
    const int64_t scratch_bytes = round_up(linear.scratch_bytes(matrix, most), 64), workers = machine.pool.workers();
    AlignedBytes prepared(rows * stride), scratch(scratch_bytes * workers);
    const int64_t row_pieces = std::min(rows, 8 * workers), row_blocks = divide_up(rows, kRowBlock), panel_blocks = divide_up(matrix.panels, kPanelBlock);
    machine.pool.reset_phases(2);
    machine.pool.run([&](int worker) {
        phase(machine, 0, worker, row_pieces, [&](int64_t piece) {
            for (int64_t row = rows * piece / row_pieces; row < rows * (piece + 1) / row_pieces; ++row) {
                linear.prepare(form, x + row * matrix.columns, matrix.columns, prepared.data() + row * stride);
            }
        });
        phase(machine, 1, worker, row_blocks * panel_blocks, [&](int64_t piece) {
            const int64_t row = piece % row_blocks * kRowBlock, panel = piece / row_blocks * kPanelBlock;
            linear.linear(matrix, prepared.data() + row * stride, stride, std::min(kRowBlock, rows - row), bias, false, y + row * matrix.rows, matrix.rows, panel,
                          std::min(matrix.panels, panel + kPanelBlock), scratch.data() + worker * scratch_bytes);
        });
    });
}

void attend_rows(Machine& machine, const float* q, int64_t rows, int64_t heads, const KeyValues& seen, int64_t layer, float scale, float* y) {
    const int64_t kv_heads = seen.kv_heads(), group = heads / kv_heads, head_width = seen.shape().head_width, stride = heads * head_width;
    const int64_t most = std::max<int64_t>(1, kTileQueries / group), tiles = divide_up(rows, most);
    const int64_t scratch_bytes = round_up(whole_scratch_bytes(machine.kernels, seen.shape(), most * group), 64);
    AlignedBytes scratch(scratch_bytes * machine.pool.workers());
    // Tiles of one head follow each other: its keys and values stay in the cache of the core.
    share_out(machine, tiles * kv_heads, [&](int worker, int64_t piece) {
        const int64_t head = piece / tiles, row = piece % tiles * most, at = row * stride + head * group * head_width;
        const WholeTile tile{q + at, stride, y + at, stride, std::min(most, rows - row), group, layer, head, scale};
        const KeyValues* next = &seen;
        attend_whole(machine.kernels, tile, scratch.data() + worker * scratch_bytes, [&] { return std::exchange(next, nullptr); });
    });
}

void layer_norm_rows(Machine& machine, const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t width, float* y) {
    each_row(machine, rows, width, [=, &machine](int64_t row) { machine.kernels.layer_norm(x + row * width, weight, bias, eps, width, y + row * width); });
}

void gelu_all(Machine& machine, const float* x, int64_t count, float* y) {
    share_out(machine, divide_up(count, kElements), [=, &machine](int, int64_t piece) {
        const int64_t first = piece * kElements;
        machine.kernels.gelu(x + first, std::min(kElements, count - first), y + first);
    });
}

}  // namespace herd
