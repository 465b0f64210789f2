// Row by row operations of training over torch's tensors - checks, signature, docstring; no arithmetic.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>

#include "bind/bind.h"
#include "bind/learning.h"
#include "learning/rows.h"

namespace herd {

using namespace nb::literals;

namespace {

// Rows of numbers side by side [rows, width]; their stride is free.
class RowTensor {
  public:
    RowTensor(const Tensor& tensor, const char* name) : tensor_(tensor), element_(element_of(tensor, name)) {
        if (tensor.ndim() != 2) throw std::invalid_argument(std::string(name) + " has " + std::to_string(tensor.ndim()) + " axes; it must have 2: rows and their numbers");
        if (tensor.stride(1) != 1 && tensor.shape(1) > 1) throw std::invalid_argument(std::string(name) + " must have the numbers of a row side by side");
    }
    int64_t rows() const { return static_cast<int64_t>(tensor_.shape(0)); }
    int64_t width() const { return static_cast<int64_t>(tensor_.shape(1)); }
    Matrix2 matrix() const { return {tensor_.data(), tensor_.stride(0)}; }
    Element element() const { return element_; }

  private:
    const Tensor& tensor_;
    Element element_;
};

using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Targets = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The kernels of an instruction set, by the threads of torch.
struct LearnRows {
    const LearnRowKernels& kernels;
    int threads;

    // What is done to rows like these; all others must be alike.
    RowWork work(const RowTensor& first, std::initializer_list<const RowTensor*> others) const {
        for (const RowTensor* other : others) {
            if (other->rows() != first.rows() || other->width() != first.width() || other->element() != first.element()) {
                throw std::invalid_argument("rows must be alike: [" + std::to_string(first.rows()) + ", " + std::to_string(first.width()) + "] beside [" +
                                            std::to_string(other->rows()) + ", " + std::to_string(other->width()) + "], or of another type");
            }
        }
        return {kernels, threads, first.element(), first.rows(), first.width()};
    }
};

const float* scales_of(const std::optional<Floats>& scales, int64_t width) {
    if (!scales) return nullptr;
    expect_size(static_cast<int64_t>(scales->size()), width, "scales");
    return scales->data();
}

}  // namespace

void bind_learning_rows(nb::module_& m) {
    nb::class_<LearnRows>(m, "LearnRows", "Operations on rows with a way back, by the threads of torch. Tensors are float32 or bfloat16 [rows, width].")
        .def(nb::new_([](const std::string& isa, int threads) {
                 check_threads(threads);
                 return LearnRows{learn_row_kernels(isa_by_name(isa)), threads};
             }),
             "isa"_a, "threads"_a)
        .def(
            "rms_norm",
            [](const LearnRows& self, const Tensor& x, const std::optional<Floats>& scales, float eps, const Tensor& y, const Floats& factors) {
                const RowTensor from(x, "x"), to(y, "y");
                const RowWork work = self.work(from, {&to});
                expect_size(static_cast<int64_t>(factors.size()), work.rows, "factors");
                const float* known = scales_of(scales, work.width);
                const nb::gil_scoped_release released;
                rms_norm_rows(work, from.matrix(), known, eps, to.matrix(), factors.data());
            },
            "x"_a, "scales"_a.none(), "eps"_a, "y"_a, "factors"_a, "y = x factor scales; factors [rows] = 1 / sqrt(mean(x^2) + eps).")
        .def(
            "rms_norm_backward",
            [](const LearnRows& self, const Tensor& x, const std::optional<Floats>& scales, const Floats& factors, const Tensor& dy, const Tensor& dx,
               const std::optional<FloatRows>& for_scales) {
                const RowTensor from(x, "x"), slopes(dy, "dy"), to(dx, "dx");
                const RowWork work = self.work(from, {&slopes, &to});
                expect_size(static_cast<int64_t>(factors.size()), work.rows, "factors");
                if (for_scales) {
                    expect_size(static_cast<int64_t>(for_scales->shape(0)), (work.rows + kScaleRows - 1) / kScaleRows, "for_scales");
                    expect_size(static_cast<int64_t>(for_scales->shape(1)), work.width, "for_scales");
                }
                const float* known = scales_of(scales, work.width);
                const nb::gil_scoped_release released;
                rms_norm_rows_backward(work, from.matrix(), known, factors.data(), slopes.matrix(), to.matrix(), for_scales ? for_scales->data() : nullptr);
            },
            "x"_a, "scales"_a.none(), "factors"_a, "dy"_a, "dx"_a, "for_scales"_a.none(),
            "What comes back to x, and added to for_scales [ceil(rows / 16), width], what comes back to the scales from each 16 rows.")
        .def(
            "rotate",
            [](const LearnRows& self, const Tensor& x, int64_t heads, const FloatRows& cosines, const FloatRows& sines, bool back, const Tensor& y) {
                const RowTensor from(x, "x"), to(y, "y");
                const RowWork work = self.work(from, {&to});
                if (heads < 1 || work.width % (2 * heads) != 0) throw std::invalid_argument("x must have heads of an even width");
                for (const FloatRows* angles : {&cosines, &sines}) {
                    expect_size(static_cast<int64_t>(angles->shape(0)), work.rows, "cosines and sines");
                    expect_size(static_cast<int64_t>(angles->shape(1)), work.width / heads / 2, "cosines and sines");
                }
                const nb::gil_scoped_release released;
                rotate_rows(work, heads, from.matrix(), cosines.data(), sines.data(), back, to.matrix());
            },
            "x"_a, "heads"_a, "cosines"_a, "sines"_a, "back"_a, "y"_a, "Pairs of neighbours in each head as complex numbers, turned by angles, or back.")
        .def(
            "silu_gate",
            [](const LearnRows& self, const Tensor& gate, const Tensor& up, const Tensor& y) {
                const RowTensor gates(gate, "gate"), ups(up, "up"), to(y, "y");
                const RowWork work = self.work(gates, {&ups, &to});
                const nb::gil_scoped_release released;
                silu_gate_rows(work, gates.matrix(), ups.matrix(), to.matrix());
            },
            "gate"_a, "up"_a, "y"_a, "y = silu(gate) up.")
        .def(
            "silu_gate_backward",
            [](const LearnRows& self, const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& for_gate, const Tensor& for_up) {
                const RowTensor gates(gate, "gate"), ups(up, "up"), slopes(dy, "dy"), to_gate(for_gate, "for_gate"), to_up(for_up, "for_up");
                const RowWork work = self.work(gates, {&ups, &slopes, &to_gate, &to_up});
                const nb::gil_scoped_release released;
                silu_gate_rows_backward(work, gates.matrix(), ups.matrix(), slopes.matrix(), to_gate.matrix(), to_up.matrix());
            },
            "gate"_a, "up"_a, "dy"_a, "for_gate"_a, "for_up"_a, "What comes back to gate and up.")
        .def(
            "softmax",
            [](const LearnRows& self, const Tensor& logits, const Targets& targets, float z_loss, bool with_slopes, const Floats& logprobs, const Floats& lse) {
                const RowTensor rows(logits, "logits");
                const RowWork work = self.work(rows, {});
                for (const auto size : {targets.size(), logprobs.size(), lse.size()}) expect_size(static_cast<int64_t>(size), work.rows, "targets, logprobs and lse");
                const auto known = [&](int64_t target) { return target >= 0 && target < work.width; };
                if (!std::all_of(targets.data(), targets.data() + work.rows, known)) throw std::invalid_argument("a target is not in the vocabulary");
                const nb::gil_scoped_release released;
                softmax_rows(work, rows.matrix(), targets.data(), z_loss, with_slopes, logprobs.data(), lse.data());
            },
            "logits"_a, "targets"_a, "z_loss"_a, "with_slopes"_a, "logprobs"_a, "lse"_a,
            "log p(target) and log sum exp of each row. With slopes the logits become (1 + 2 z_loss lse) softmax - 1[target].");
}

}  // namespace herd
