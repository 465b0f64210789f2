// What encoders of pictures call, and the keys and values that are kept of a picture - checks, signature, docstring; no arithmetic.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "bind/bind.h"
#include "program/eager.h"

namespace herd {

using namespace nb::literals;

namespace {

void linear(Machine& machine, const Matrix& matrix, std::optional<FloatsIn> bias, FloatsIn x, FloatsOut y) {
    Dim I{"I"}, in{"in", matrix.columns, "the matrix"}, out{"out", matrix.rows, "the matrix"};
    expect(x, "x").shape(I, in);
    expect(y, "y").shape(I, out);
    if (bias) expect(*bias, "bias").shape(out);
    nb::gil_scoped_release unlocked;
    const std::lock_guard lock(machine.mutex);
    multiply_rows(machine, matrix, bias ? bias->data() : nullptr, x.data(), I.size, y.data());
}

void attend(Machine& machine, FloatsIn q, const KeyValues& seen, int64_t layer, float scale, FloatsOut y) {
    Dim I{"I"}, N{"N"}, H{"H", seen.shape().head_width, "the keys"};
    expect(q, "q").shape(I, N, H);
    expect(y, "y").shape(I, N, H);
    if (N.size < 1 || N.size % seen.kv_heads() != 0) throw std::invalid_argument("q has " + std::to_string(N.size) + " heads; there are " + std::to_string(seen.kv_heads()) + " kv heads");
    if (layer < 0 || layer >= seen.layers()) throw std::invalid_argument("there is no layer " + std::to_string(layer));
    nb::gil_scoped_release unlocked;
    const std::lock_guard lock(machine.mutex);
    attend_rows(machine, q.data(), I.size, N.size, seen, layer, scale, y.data());
}

void layer_norm(Machine& machine, FloatsIn x, FloatsIn weight, FloatsIn bias, float eps, FloatsOut y) {
    Dim I{"I"}, D{"D"};
    expect(x, "x").shape(I, D);
    expect(weight, "weight").shape(D);
    expect(bias, "bias").shape(D);
    expect(y, "y").shape(I, D);
    if (D.size < 1) throw std::invalid_argument("x has no columns");
    nb::gil_scoped_release unlocked;
    const std::lock_guard lock(machine.mutex);
    layer_norm_rows(machine, x.data(), weight.data(), bias.data(), eps, I.size, D.size, y.data());
}

void gelu(Machine& machine, FloatsIn x, FloatsOut y) {
    Dim count{"F"};
    expect(x, "x").shape(count);
    expect(y, "y").shape(count);
    nb::gil_scoped_release unlocked;
    const std::lock_guard lock(machine.mutex);
    gelu_all(machine, x.data(), count.size, y.data());
}

std::shared_ptr<KeyValues> key_values(int64_t layers, int64_t rows, int64_t kv_heads, int64_t head_width, const std::string& format) {
    constexpr int64_t kMost = int64_t{1} << 15;  // so that no product can overflow
    if (layers < 1 || kv_heads < 1 || head_width < 1 || layers > kMost || kv_heads > kMost || head_width > kMost || rows < 1 || rows > (kMost << 9)) {
        throw std::invalid_argument("keys and values of " + std::to_string(layers) + " layers, " + std::to_string(rows) + " rows, " + std::to_string(kv_heads) +
                                    " heads of " + std::to_string(head_width) + " cannot be");
    }
    return std::make_shared<KeyValues>(layers, rows, kv_heads, head_width, cache_format(format, head_width));
}

}  // namespace

void bind_pictures(nb::module_& m) {
    nb::class_<KeyValues>(m, "KeyValues", "Keys and values that are seen whole: of a picture, for some layers, in a format of `Cache`.")
        .def(nb::new_(&key_values), "layers"_a, "rows"_a, "kv_heads"_a, "head_width"_a, "format"_a)
        .def_prop_ro("nbytes", &KeyValues::num_bytes)
        .def(
            "store",
            [](KeyValues& self, Machine& machine, int64_t layer, FloatsIn keys, FloatsIn values) {
                Dim I{"I", self.rows(), "the rows"}, K{"K", self.kv_heads(), "the kv heads"}, H{"H", self.shape().head_width, "the head width"};
                expect(keys, "keys").shape(I, K, H);
                expect(values, "values").shape(I, K, H);
                if (layer < 0 || layer >= self.layers()) throw std::invalid_argument("there is no layer " + std::to_string(layer));
                self.store(machine.kernels, layer, keys.data(), values.data());
            },
            "machine"_a, "layer"_a, "keys"_a, "values"_a, "Takes over keys and values [I, K, H] of one layer.");
    m.def("linear", &linear, "machine"_a, "matrix"_a, "bias"_a.none(), "x"_a, "y"_a, "y [I, out] = x [I, in] w^T + bias.");
    m.def("attend", &attend, "machine"_a, "q"_a, "seen"_a, "layer"_a, "scale"_a, "y"_a, "y [I, N, H] = softmax(scale q k^T) v over all rows of one layer of `seen`.");
    m.def("layer_norm", &layer_norm, "machine"_a, "x"_a, "weight"_a, "bias"_a, "eps"_a, "y"_a, "Layer norm of each row of x [I, D] into y.");
    m.def("gelu", &gelu, "machine"_a, "x"_a, "y"_a, "x * Phi(x) into y, both [F].");
}

}  // namespace herd
