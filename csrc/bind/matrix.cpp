// Weights - checks, signature, docstring; packing runs on the machine's threads.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <utility>

#include "bind/bind.h"
#include "kernels/layout.h"

namespace herd {

using namespace nb::literals;

namespace {

Storage storage_of(int id) {
    switch (id) {
        case 0: case 1: case 2: case 3: case 6: case 7: case 8: case 10: case 11: case 12: case 13: case 14: case 20: case 23: case 30:
            return static_cast<Storage>(id);
        default: throw std::invalid_argument("storage " + std::to_string(id) + " is not a format that matrices are stored in");
    }
}

Arithmetic arithmetic_of(const std::string& name) {
    if (name == "int8") return Arithmetic::Int8;
    if (name == "float32") return Arithmetic::Float32;
    throw std::invalid_argument("activations \"" + name + "\" are unknown; there are int8 and float32");
}

// A matrix of this shape, still without data.
std::shared_ptr<Matrix> empty_matrix(const LinearKernels& linear, int storage_id, const std::string& activations, int64_t rows, int64_t columns) {
    const Storage storage = storage_of(storage_id);
    constexpr int64_t kMost = int64_t{1} << 28;  // so that no product of the two can overflow
    if (rows < 1 || columns < 1 || rows > kMost || columns > kMost) {
        throw std::invalid_argument("a matrix of shape [" + std::to_string(rows) + ", " + std::to_string(columns) + "] cannot be");
    }
    if (columns % linear.block_columns(storage) != 0) {
        throw std::invalid_argument("columns is " + std::to_string(columns) + ", expected a multiple of the block of " + std::to_string(linear.block_columns(storage)));
    }
    auto matrix = std::make_shared<Matrix>();
    matrix->storage = storage;
    matrix->arithmetic = arithmetic_of(activations);
    matrix->rows = rows;
    matrix->columns = columns;
    matrix->panels = panels_of(rows);
    return matrix;
}

int64_t packed_bytes(const LinearKernels& linear, const Matrix& matrix) {
    return linear.packed_bytes(matrix.storage, matrix.arithmetic, matrix.rows, matrix.columns);
}

void check_size(const Bytes& data, int64_t expected, const Matrix& matrix) {
    if (static_cast<int64_t>(data.size()) == expected) return;
    throw std::invalid_argument("data has " + std::to_string(data.size()) + " bytes, expected " + std::to_string(expected) + " for shape [" +
                                std::to_string(matrix.rows) + ", " + std::to_string(matrix.columns) + "]");
}

void check_head_width(int64_t head_width, int64_t rows) {
    if (head_width == 0 || (head_width > 0 && head_width % 2 == 0 && rows % head_width == 0)) return;
    throw std::invalid_argument("head_width is " + std::to_string(head_width) + "; heads of so many rows do not make up " + std::to_string(rows));
}

// Takes over `data`, which must stay as it is: a mapped file.
std::shared_ptr<Matrix> matrix_in_place(Machine& machine, int storage_id, const std::string& activations, int64_t rows, int64_t columns, Bytes data, int64_t head_width) {
    auto matrix = empty_matrix(machine.linear, storage_id, activations, rows, columns);
    if (!layout(matrix->storage).is_plain()) throw std::invalid_argument("only matrices of plain formats are multiplied in place");
    check_size(data, rows * machine.linear.row_bytes(matrix->storage, columns), *matrix);
    check_head_width(head_width, rows);
    matrix->is_in_place = true;
    matrix->head_width = head_width;
    const uint8_t* bytes = data.data();
    const auto size = static_cast<int64_t>(data.size());
    matrix->data = AlignedBytes(bytes, size, std::make_shared<Bytes>(std::move(data)));
    return matrix;
}

// Packs a matrix that is in place, in this thread; others may multiply it meanwhile.
void settle(Matrix& matrix, Machine& machine, Chunks* memory) {
    if (!matrix.is_in_place) return;
    AlignedBytes old;  // let go of with Python's lock held: Python owns it
    nb::gil_scoped_release unlocked;
    const int64_t bytes = packed_bytes(machine.linear, matrix);
    AlignedBytes packed = memory != nullptr ? memory->take(bytes) : AlignedBytes(bytes);
    machine.linear.pack(matrix.storage, matrix.arithmetic, matrix.file_rows(), matrix.rows, matrix.columns, packed.data(), 0, matrix.panels);
    const std::lock_guard lock(machine.mutex);
    old = std::exchange(matrix.data, std::move(packed));
    matrix.is_in_place = false;
}

std::shared_ptr<Matrix> pack_matrix(Machine& machine, int storage_id, const std::string& activations, int64_t rows, int64_t columns, Bytes data, Chunks* memory,
                                    int64_t head_width) {
    const LinearKernels& linear = machine.linear;
    auto matrix = empty_matrix(linear, storage_id, activations, rows, columns);
    check_size(data, rows * linear.row_bytes(matrix->storage, columns), *matrix);
    check_head_width(head_width, rows);
    nb::gil_scoped_release unlocked;
    const std::lock_guard lock(machine.mutex);
    const int64_t packed = packed_bytes(linear, *matrix);
    matrix->data = memory != nullptr ? memory->take(packed) : AlignedBytes(packed);
    const int64_t pieces = std::min<int64_t>(matrix->panels, 16 * machine.pool.workers());
    machine.pool.reset_phases(1);
    machine.pool.run([&](int worker) {
        for (int64_t piece = machine.pool.next_piece(0, worker, pieces); piece >= 0; piece = machine.pool.next_piece(0, worker, pieces)) {
            linear.pack(matrix->storage, matrix->arithmetic, {data.data(), head_width}, rows, columns, matrix->data.data(), matrix->panels * piece / pieces,
                        matrix->panels * (piece + 1) / pieces);
        }
    });
    return matrix;
}

// `packed` stays in use: whoever owns it (a mapped file) is kept alive by the matrix.
std::shared_ptr<Matrix> matrix_over(Machine& machine, int storage_id, const std::string& activations, int64_t rows, int64_t columns, Bytes packed) {
    auto matrix = empty_matrix(machine.linear, storage_id, activations, rows, columns);
    check_size(packed, packed_bytes(machine.linear, *matrix), *matrix);
    if (reinterpret_cast<uintptr_t>(packed.data()) % 64 != 0) throw std::invalid_argument("packed data must be aligned to 64 bytes");
    const uint8_t* bytes = packed.data();
    const auto size = static_cast<int64_t>(packed.size());
    matrix->data = AlignedBytes(bytes, size, std::make_shared<Bytes>(std::move(packed)));
    return matrix;
}

// Some rows of a matrix, in its memory, which stays alive.
std::shared_ptr<Matrix> part_of(const std::shared_ptr<Matrix>& whole, int64_t first, int64_t rows) {
    if (whole->is_in_place) throw std::invalid_argument("a matrix in place has no parts");
    if (first < 0 || first % kPanelRows != 0 || rows < 1 || rows > whole->rows || first > whole->rows - rows) {
        throw std::invalid_argument("rows " + std::to_string(first) + " to " + std::to_string(first + rows) + " are no part of a matrix of " + std::to_string(whole->rows) +
                                    "; a part begins at a multiple of " + std::to_string(kPanelRows));
    }
    const int64_t panel = whole->data.size() / whole->panels;
    auto part = std::make_shared<Matrix>();
    part->storage = whole->storage;
    part->arithmetic = whole->arithmetic;
    part->rows = rows;
    part->columns = whole->columns;
    part->panels = panels_of(rows);
    part->data = AlignedBytes(whole->data.data() + first / kPanelRows * panel, part->panels * panel, whole);
    return part;
}

nb::ndarray<nb::memview, const uint8_t> packed_of(nb::handle self) {
    const auto& matrix = nb::cast<const Matrix&>(self);
    if (matrix.is_in_place) throw std::invalid_argument("the matrix is in place, not packed");
    const AlignedBytes& data = matrix.data;
    return {data.data(), {static_cast<size_t>(data.size())}, self};
}

}  // namespace

void bind_matrix(nb::module_& m) {
    m.attr("PACKED_LAYOUT") = kPackedLayout;
    nb::class_<Chunks>(m, "Chunks", "Memory for many matrices that come and go together, in pieces of 64 MB.").def(nb::init<>());
    nb::class_<Matrix>(m, "Matrix", "A matrix packed for one instruction set. `storage` is ggml's number of the format, `data` the file's rows as bytes.")
        .def(nb::new_(&pack_matrix), "machine"_a, "storage"_a, "activations"_a, "rows"_a, "columns"_a, "data"_a, "memory"_a.none() = nb::none(), "head_width"_a = 0)
        .def_static("in_place", &matrix_in_place, "machine"_a, "storage"_a, "activations"_a, "rows"_a, "columns"_a, "data"_a, "head_width"_a = 0,
                    "A matrix of a plain format over the rows of a file, which must stay as they are: no copy, the same products, more slowly.")
        .def("settle", &settle, "machine"_a, "memory"_a.none() = nb::none(), "Packs a matrix that is in place, in this thread, while others multiply it.")
        .def_prop_ro("is_in_place", [](const Matrix& matrix) { return matrix.is_in_place; })
        .def_static("over", &matrix_over, "machine"_a, "storage"_a, "activations"_a, "rows"_a, "columns"_a, "packed"_a,
                    "A matrix over bytes that `packed` gave before, for the same instruction set and activations: no copy, and they are kept alive.")
        .def_prop_ro("packed", &packed_of, nb::sig("def packed(self) -> memoryview"), "Its panels as bytes: a view. Their layout is that of PACKED_LAYOUT.")
        .def("part", &part_of, "first_row"_a, "rows"_a, "Some rows as a matrix of their own, in the same memory; `first_row` is a multiple of 16.")
        .def_prop_ro("rows", [](const Matrix& matrix) { return matrix.rows; })
        .def_prop_ro("columns", [](const Matrix& matrix) { return matrix.columns; })
        .def_prop_ro("storage", [](const Matrix& matrix) { return static_cast<int>(matrix.storage); })
        .def_prop_ro("num_bytes", [](const Matrix& matrix) { return matrix.data.size(); }, "Bytes of its panels, or in place of its rows.")
        .def(
            "row",
            [](const Matrix& matrix, Machine& machine, int64_t row, FloatsOut out) {
                Dim D{"D", matrix.columns, "the matrix"};
                expect(out, "out").shape(D);
                if (row < 0 || row >= matrix.rows) throw std::invalid_argument("row " + std::to_string(row) + " of a matrix of " + std::to_string(matrix.rows));
                const std::lock_guard lock(machine.mutex);  // `settle` may run
                machine.linear.unpack_row(matrix, row, out.data());
            },
            "machine"_a, "row"_a, "out"_a, "One row [D], exactly the stored values, into `out`.");
}

}  // namespace herd
