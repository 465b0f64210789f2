// Weights - checks, signature, docstring; packing runs on the machine's threads.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>

#include "bind/bind.h"

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

std::shared_ptr<Matrix> make_matrix(Machine& machine, int storage_id, const std::string& activations, int64_t rows, int64_t columns, Bytes data, Chunks* memory) {
    const Storage storage = storage_of(storage_id);
    const Arithmetic arithmetic = arithmetic_of(activations);
    const LinearKernels& linear = machine.linear;
    constexpr int64_t kMost = int64_t{1} << 28;  // so that no product of the two can overflow
    if (rows < 1 || columns < 1 || rows > kMost || columns > kMost) {
        throw std::invalid_argument("a matrix of shape [" + std::to_string(rows) + ", " + std::to_string(columns) + "] cannot be");
    }
    if (columns % linear.block_columns(storage) != 0) {
        throw std::invalid_argument("columns is " + std::to_string(columns) + ", expected a multiple of the block of " + std::to_string(linear.block_columns(storage)));
    }
    const int64_t expected = rows * linear.row_bytes(storage, columns);
    if (static_cast<int64_t>(data.size()) != expected) {
        throw std::invalid_argument("data has " + std::to_string(data.size()) + " bytes, expected " + std::to_string(expected) + " for shape [" +
                                    std::to_string(rows) + ", " + std::to_string(columns) + "]");
    }
    nb::gil_scoped_release unlocked;
    const std::lock_guard lock(machine.mutex);
    auto matrix = std::make_shared<Matrix>();
    matrix->storage = storage;
    matrix->arithmetic = arithmetic;
    matrix->rows = rows;
    matrix->columns = columns;
    matrix->panels = panels_of(rows);
    const int64_t packed = linear.packed_bytes(storage, arithmetic, rows, columns);
    matrix->data = memory != nullptr ? memory->take(packed) : AlignedBytes(packed);
    const int64_t pieces = std::min<int64_t>(matrix->panels, 16 * machine.pool.workers());
    machine.pool.reset_phases(1);
    machine.pool.run([&](int worker) {
        for (int64_t piece = machine.pool.next_piece(0, worker, pieces); piece >= 0; piece = machine.pool.next_piece(0, worker, pieces)) {
            linear.pack(storage, arithmetic, data.data(), rows, columns, matrix->data.data(), matrix->panels * piece / pieces,
                        matrix->panels * (piece + 1) / pieces);
        }
    });
    return matrix;
}

}  // namespace

void bind_matrix(nb::module_& m) {
    nb::class_<Chunks>(m, "Chunks", "Memory for many matrices that come and go together, in pieces of 64 MB.").def(nb::init<>());
    nb::class_<Matrix>(m, "Matrix", "A matrix packed for one instruction set. `storage` is ggml's number of the format, `data` the file's rows as bytes.")
        .def(nb::new_(&make_matrix), "machine"_a, "storage"_a, "activations"_a, "rows"_a, "columns"_a, "data"_a, "memory"_a.none() = nb::none())
        .def_prop_ro("rows", [](const Matrix& matrix) { return matrix.rows; })
        .def_prop_ro("columns", [](const Matrix& matrix) { return matrix.columns; })
        .def_prop_ro("num_bytes", [](const Matrix& matrix) { return matrix.data.size(); })
        .def(
            "row",
            [](const Matrix& matrix, Machine& machine, int64_t row, FloatsOut out) {
                Dim D{"D", matrix.columns, "the matrix"};
                expect(out, "out").shape(D);
                if (row < 0 || row >= matrix.rows) throw std::invalid_argument("row " + std::to_string(row) + " of a matrix of " + std::to_string(matrix.rows));
                machine.linear.unpack_row(matrix, row, out.data());
            },
            "machine"_a, "row"_a, "out"_a, "One row [D], exactly the stored values, into `out`.");
}

}  // namespace herd
