// What training asks of a processor, over torch's tensors - checks, signature, docstring; no arithmetic.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <numeric>
#include <vector>

#include "bind/bind.h"
#include "learning/attention.h"

namespace herd {

using namespace nb::literals;

namespace {

using Tensor = nb::ndarray<nb::device::cpu>;

Element element_of(const Tensor& tensor, const char* name) {
    if (tensor.dtype() == nb::dtype<float>()) return Element::Float32;
    constexpr nb::dlpack::dtype kBFloat16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
    if (tensor.dtype() == kBFloat16) return Element::BFloat16;
    throw std::invalid_argument(std::string(name) + " must be float32 or bfloat16");
}

// Rows of heads [T, heads, H] whose heads lie side by side; their stride is free.
class HeadTensor {
  public:
    HeadTensor(const Tensor& tensor, const char* name) : tensor_(tensor), element_(element_of(tensor, name)) {
        if (tensor.ndim() != 3) throw std::invalid_argument(std::string(name) + " must have 3 axes: tokens, heads and their width");
        const int64_t width = tensor.shape(2);
        if (tensor.stride(2) != 1 || tensor.stride(1) != width) throw std::invalid_argument(std::string(name) + " must have its heads side by side");
    }

    int64_t tokens() const { return static_cast<int64_t>(tensor_.shape(0)); }
    int64_t heads() const { return static_cast<int64_t>(tensor_.shape(1)); }
    int64_t width() const { return static_cast<int64_t>(tensor_.shape(2)); }
    Element element() const { return element_; }
    TokenRows rows() const { return {tensor_.data(), tensor_.stride(0)}; }
    void* data() const { return tensor_.data(); }
    bool is_like(const HeadTensor& other) const { return tokens() == other.tokens() && heads() == other.heads() && width() == other.width() && element_ == other.element_; }
    bool has_no_gaps() const { return tokens() < 2 || tensor_.stride(0) == heads() * width(); }

  private:
    const Tensor& tensor_;
    Element element_;
};

void check(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

// Attention over packed documents, and the kernels that it is made of.
struct Attention {
    const LearnKernels& kernels;
    int threads;
    std::vector<int64_t> lengths;
    Sight sight;
    float scale;

    DocumentAttention over(const HeadTensor& q, const HeadTensor& k, const HeadTensor& v) const {
        check(k.is_like(v), "k and v must be alike");
        check(q.element() == k.element() && q.width() == k.width() && q.tokens() == k.tokens(), "q, k and v must have one type, width and number of tokens");
        check(q.width() % 16 == 0 && q.width() > 0 && q.width() <= kMostHeadWidth, "heads must be a multiple of 16 wide, and at most 1024");
        check(k.heads() > 0 && q.heads() % k.heads() == 0, "query heads must be a multiple of the kv heads");
        check(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}) == q.tokens(), "the documents' lengths must add up to the tokens");
        return {q.element(), lengths, q.heads(), k.heads(), q.width(), scale, sight};
    }

    void check_memory(const DocumentAttention& of, nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> workspace, bool for_backward) const {
        check(static_cast<int64_t>(workspace.size()) >= attention_workspace_bytes(kernels, threads, of, for_backward), "the workspace is too small");
        check(reinterpret_cast<uintptr_t>(workspace.data()) % 16 == 0, "the workspace must begin at a multiple of 16 bytes");
    }
};

using Workspace = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tops = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check_tops(const Tops& tops, const HeadTensor& q) {
    check(static_cast<int64_t>(tops.shape(0)) == q.heads() && static_cast<int64_t>(tops.shape(1)) == q.tokens(), "tops must be [heads, tokens]");
}

}  // namespace

void bind_learning(nb::module_& m) {
    nb::class_<Attention>(m, "DocumentAttention", "Causal attention inside packed documents, with a way back, by the threads of torch.")
        .def(nb::new_([](const std::string& isa, int threads, const std::vector<int64_t>& lengths, const std::string& window, int64_t window_tokens, float scale) {
                 check(!lengths.empty() && std::ranges::all_of(lengths, [](int64_t length) { return length > 0; }), "there must be documents, of a token at least");
                 check(threads >= 1 && threads <= 1024, "threads must be from 1 to 1024");
                 return Attention{learn_kernels(isa_by_name(isa)), threads, lengths, sight_of(window, window_tokens), scale};
             }),
             "isa"_a, "threads"_a, "lengths"_a, "window"_a, "window_tokens"_a, "scale"_a)
        .def(
            "workspace_bytes",
            [](const Attention& self, const Tensor& q, const Tensor& k, bool for_backward) {
                const HeadTensor rows(q, "q"), keys(k, "k");
                return attention_workspace_bytes(self.kernels, self.threads, self.over(rows, keys, keys), for_backward);
            },
            "q"_a, "k"_a, "for_backward"_a, "Bytes that `forward`, or `backward`, works in.")
        .def(
            "forward",
            [](const Attention& self, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& y, const Tops& tops, const Workspace& workspace) {
                const HeadTensor rows(q, "q"), keys(k, "k"), values(v, "v"), out(y, "y");
                const DocumentAttention of = self.over(rows, keys, values);
                check(out.is_like(rows) && out.has_no_gaps(), "y must be like q, without gaps");
                check_tops(tops, rows);
                self.check_memory(of, workspace, false);
                const nb::gil_scoped_release released;
                attend_documents(self.kernels, self.threads, of, rows.rows(), keys.rows(), values.rows(), out.data(), tops.data(), workspace.data());
            },
            "q"_a, "k"_a, "v"_a, "y"_a, "tops"_a, "workspace"_a,
            "q [T, N, H], k and v [T, K, H] -> y [T, N, H], and tops [N, T] float32, the log sum exp of each query's scores. All float32 or bfloat16.")
        .def(
            "backward",
            [](const Attention& self, const Tensor& q, const Tensor& k, const Tensor& v, const Tops& tops, const Tensor& dy, const Tensor& dq, const Tensor& dk,
               const Tensor& dv, const Workspace& workspace) {
                const HeadTensor rows(q, "q"), keys(k, "k"), values(v, "v"), slopes(dy, "dy"), for_q(dq, "dq"), for_k(dk, "dk"), for_v(dv, "dv");
                const DocumentAttention of = self.over(rows, keys, values);
                check(slopes.is_like(rows), "dy must be like q");
                check(for_q.is_like(rows) && for_q.has_no_gaps(), "dq must be like q, without gaps");
                check(for_k.is_like(keys) && for_k.has_no_gaps() && for_v.is_like(keys) && for_v.has_no_gaps(), "dk and dv must be like k, without gaps");
                check_tops(tops, rows);
                self.check_memory(of, workspace, true);
                const nb::gil_scoped_release released;
                attend_documents_backward(self.kernels, self.threads, of, rows.rows(), keys.rows(), values.rows(), tops.data(), slopes.rows(), for_q.data(),
                                          for_k.data(), for_v.data(), workspace.data());
            },
            "q"_a, "k"_a, "v"_a, "tops"_a, "dy"_a, "dq"_a, "dk"_a, "dv"_a, "workspace"_a, "What comes back to q, k and v from dy [T, N, H], by the tops of `forward`.");
}

}  // namespace herd
