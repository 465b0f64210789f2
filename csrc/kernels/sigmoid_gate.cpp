// sigmoid_gate: y = x / (1 + exp(-gate)), elementwise
//
// Reference: backends/reference/ops.py:sigmoid_gate.
#include "kernels/elementwise.h"
#include "kernels/operations.h"

namespace herd::HERD_ISA {

void sigmoid_gate(const float* x, const float* gate, int64_t count, float* y) {
    elementwise(x, gate, count, y, [](Vector value, Vector z) { return value * sigmoid(z); });
}

}  // namespace herd::HERD_ISA
