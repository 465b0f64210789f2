// Single kernels, for tests against numpy - checks, signature, docstring; no arithmetic.
#include <nanobind/stl/optional.h>

#include <optional>

#include "bind/bind.h"

namespace herd {

using namespace nb::literals;

void bind_kernels(nb::module_& m) {
    m.def(
        "rms_norm",
        [](Machine& machine, FloatsIn x, std::optional<FloatsIn> weight, float eps, FloatsOut y) {
            Dim T{"T"}, D{"D"};
            expect(x, "x").shape(T, D);
            expect(y, "y").shape(T, D);
            if (weight) expect(*weight, "weight").shape(D);
            for (int64_t t = 0; t < T.size; ++t) {
                machine.kernels.rms_norm(x.data() + t * D.size, weight ? weight->data() : nullptr, eps, D.size, y.data() + t * D.size);
            }
        },
        "machine"_a, "x"_a, "weight"_a.none(), "eps"_a, "y"_a, "Root-mean-square norm of each row of x [T, D] into y.");
    m.def(
        "silu_gate",
        [](Machine& machine, FloatsIn gate, FloatsIn up, FloatsOut y) {
            Dim F{"F"};
            expect(gate, "gate").shape(F);
            expect(up, "up").shape(F);
            expect(y, "y").shape(F);
            machine.kernels.silu_gate(gate.data(), up.data(), F.size, y.data());
        },
        "machine"_a, "gate"_a, "up"_a, "y"_a, "silu(gate) * up into y, all [F].");
    m.def(
        "sigmoid_gate",
        [](Machine& machine, FloatsIn x, FloatsIn gate, FloatsOut y) {
            Dim F{"F"};
            expect(x, "x").shape(F);
            expect(gate, "gate").shape(F);
            expect(y, "y").shape(F);
            machine.kernels.sigmoid_gate(x.data(), gate.data(), F.size, y.data());
        },
        "machine"_a, "x"_a, "gate"_a, "y"_a, "x * sigmoid(gate) into y, all [F].");
    m.def(
        "soft_cap",
        [](Machine& machine, FloatsIn x, float factor, float cap, FloatsOut y) {
            Dim F{"F"};
            expect(x, "x").shape(F);
            expect(y, "y").shape(F);
            machine.kernels.soft_cap(x.data(), factor, cap, F.size, y.data());
        },
        "machine"_a, "x"_a, "factor"_a, "cap"_a, "y"_a, "cap * tanh(factor * x / cap) into y, both [F].");
    m.def(
        "exponential",
        [](Machine& machine, FloatsIn x, FloatsOut y) {
            Dim F{"F"};
            expect(x, "x").shape(F);
            expect(y, "y").shape(F);
            machine.kernels.exponential(x.data(), F.size, y.data());
        },
        "machine"_a, "x"_a, "y"_a, "e^x as attention and the gate compute it, into y, all [F]; x at most 88.");
}

}  // namespace herd
