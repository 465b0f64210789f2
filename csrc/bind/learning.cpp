// What training asks of a processor, over torch's tensors - checks, signature, docstring; no arithmetic.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <iterator>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "bind/learning.h"
#include "learning/attention.h"

namespace herd {

using namespace nb::literals;

Element element_of(const Tensor& tensor, const char* name) {
    if (tensor.dtype() == nb::dtype<float>()) return Element::Float32;
    constexpr nb::dlpack::dtype kBFloat16{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
    if (tensor.dtype() == kBFloat16) return Element::BFloat16;
    const auto [code, bits, lanes] = tensor.dtype();
    const char* kinds[] = {"int", "uint", "float"};
    const std::string found = code < std::size(kinds) ? kinds[code] + std::to_string(bits) : "of another type";
    throw std::invalid_argument(std::string(name) + " is " + found + "; it must be float32 or bfloat16");
}

void check_threads(int threads) {
    if (threads < 1 || threads > 1024) throw std::invalid_argument("threads is " + std::to_string(threads) + "; it must be from 1 to 1024");
}

void expect_size(int64_t found, int64_t expected, const char* name) {
    if (found != expected) throw std::invalid_argument(std::string(name) + " has " + std::to_string(found) + " of what must be " + std::to_string(expected));
}

namespace {

std::string type_name(Element element) { return element == Element::Float32 ? "float32" : "bfloat16"; }

template <typename Array>
std::string shape_of(const Array& tensor) {
    std::string shape;
    for (size_t axis = 0; axis < tensor.ndim(); ++axis) shape += (axis == 0 ? "[" : ", ") + std::to_string(tensor.shape(axis));
    return tensor.ndim() == 0 ? "[]" : shape + "]";
}

// Rows of heads [T, heads, H] whose heads lie side by side; their stride is free.
class HeadTensor {
  public:
    HeadTensor(const Tensor& tensor, const char* name) : tensor_(tensor), name_(name), element_(element_of(tensor, name)) {
        if (tensor.ndim() != 3) throw std::invalid_argument(name_ + " has shape " + shape_of(tensor) + "; it must have 3 axes: tokens, heads and their width");
        // Of one head alone the stride means nothing, and may be anything.
        if (tensor.stride(2) != 1 || (heads() > 1 && tensor.stride(1) != width())) {
            throw std::invalid_argument(name_ + " has strides [" + std::to_string(tensor.stride(0)) + ", " + std::to_string(tensor.stride(1)) + ", " +
                                        std::to_string(tensor.stride(2)) + "]; the heads of a token must lie side by side: [any, " + std::to_string(width()) + ", 1]");
        }
    }

    int64_t tokens() const { return static_cast<int64_t>(tensor_.shape(0)); }
    int64_t heads() const { return static_cast<int64_t>(tensor_.shape(1)); }
    int64_t width() const { return static_cast<int64_t>(tensor_.shape(2)); }
    Element element() const { return element_; }
    TokenRows rows() const { return {tensor_.data(), tensor_.stride(0)}; }
    void* data() const { return tensor_.data(); }
    std::string found() const { return name_ + " is " + type_name(element_) + " " + shape_of(tensor_); }
    [[noreturn]] void fail(const std::string& what) const { throw std::invalid_argument(found() + "; " + what); }

    void must_be_like(const HeadTensor& other) const {
        const bool is_alike = tokens() == other.tokens() && heads() == other.heads() && width() == other.width() && element_ == other.element_;
        if (!is_alike) fail("it must be like this: " + other.found());
    }
    // What is written: without gaps.
    void must_be_whole_like(const HeadTensor& other) const {
        must_be_like(other);
        const int64_t row = heads() * width();
        if (tokens() > 1 && tensor_.stride(0) != row) fail("it must have no gaps: its rows are " + std::to_string(tensor_.stride(0)) + " apart, and " + std::to_string(row) + " long");
    }

  private:
    const Tensor& tensor_;
    std::string name_;
    Element element_;
};

using Workspace = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tops = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Attention over packed documents, and the kernels that it is made of.
struct Attention {
    const LearnKernels& kernels;
    const LearnRowKernels& row_kernels;
    int threads;
    std::vector<int64_t> lengths;
    Sight sight;
    float scale;

    DocumentAttention over(const HeadTensor& q, const HeadTensor& k, const HeadTensor& v) const {
        v.must_be_like(k);
        if (q.element() != k.element() || q.width() != k.width() || q.tokens() != k.tokens()) {
            k.fail("it must have the type, the tokens and the width of the queries: " + q.found());
        }
        if (q.width() < 1 || q.width() % 16 != 0 || q.width() > kMostHeadWidth) {
            q.fail("the width of a head must be a multiple of 16, and at most " + std::to_string(kMostHeadWidth));
        }
        if (q.heads() < 1 || k.heads() < 1 || q.heads() % k.heads() != 0) k.fail("there must be a multiple of its heads in the queries: " + q.found());
        const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
        if (tokens != q.tokens()) q.fail("the documents have " + std::to_string(tokens) + " tokens together");
        return {q.element(), lengths, q.heads(), k.heads(), q.width(), scale, sight};
    }

    void check_memory(const DocumentAttention& of, const Workspace& workspace, bool for_backward) const {
        const int64_t needed = attention_workspace_bytes(kernels, threads, of, for_backward), given = static_cast<int64_t>(workspace.size());
        if (given < needed) throw std::invalid_argument("workspace has " + std::to_string(given) + " bytes; it must have " + std::to_string(needed));
        if (reinterpret_cast<uintptr_t>(workspace.data()) % 16 != 0) throw std::invalid_argument("workspace must begin at a multiple of 16 bytes");
    }
};

void check_tops(const Tops& tops, const HeadTensor& q) {
    if (static_cast<int64_t>(tops.shape(0)) == q.heads() && static_cast<int64_t>(tops.shape(1)) == q.tokens()) return;
    throw std::invalid_argument("tops has shape " + shape_of(tops) + "; it must be [heads, tokens], and " + q.found());
}

void check_lengths(const std::vector<int64_t>& lengths) {
    if (lengths.empty()) throw std::invalid_argument("lengths is empty; there must be a document");
    int64_t left = std::numeric_limits<int64_t>::max();
    for (size_t document = 0; document < lengths.size(); ++document) {
        const int64_t length = lengths[document];
        if (length < 1 || length > left) {
            throw std::invalid_argument("document " + std::to_string(document) + " has " + std::to_string(length) + " tokens; it must have one at least, and all together few enough to be counted");
        }
        left -= length;
    }
}

// What a query does not see has a score of minus infinity, which only a positive scale leaves there.
void check_scale(float scale) {
    if (!(scale > 0.0f) || scale > std::numeric_limits<float>::max()) throw std::invalid_argument("scale is " + std::to_string(scale) + "; it must be positive and finite");
}

}  // namespace

void bind_learning(nb::module_& m) {
    nb::class_<Attention>(m, "DocumentAttention", "Causal attention inside packed documents, with a way back, by the threads of torch.")
        .def(nb::new_([](const std::string& isa, int threads, const std::vector<int64_t>& lengths, const std::string& window, int64_t window_tokens, float scale) {
                 check_lengths(lengths);
                 check_scale(scale);
                 check_threads(threads);
                 const Sight sight = sight_of(window, window_tokens);
                 if (window != "past" && window_tokens < 1) {
                     throw std::invalid_argument("a window has " + std::to_string(window_tokens) + " tokens; it must have one at least");
                 }
                 return Attention{learn_kernels(isa_by_name(isa)), learn_row_kernels(isa_by_name(isa)), threads, lengths, sight, scale};
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
                out.must_be_whole_like(rows);
                check_tops(tops, rows);
                self.check_memory(of, workspace, false);
                const nb::gil_scoped_release released;
                attend_documents(self.kernels, self.threads, of, rows.rows(), keys.rows(), values.rows(), out.data(), tops.data(), workspace.data());
            },
            "q"_a, "k"_a, "v"_a, "y"_a, "tops"_a, "workspace"_a,
            "q [T, N, H], k and v [T, K, H] -> y [T, N, H], and tops [N, T] float32, the largest of each query's scaled scores. All float32 or bfloat16.")
        .def(
            "backward",
            [](const Attention& self, const Tensor& q, const Tensor& k, const Tensor& v, const Tops& tops, const Tensor& dy, const Tensor& dq, const Tensor& dk,
               const Tensor& dv, const Workspace& workspace) {
                const HeadTensor rows(q, "q"), keys(k, "k"), values(v, "v"), slopes(dy, "dy"), for_q(dq, "dq"), for_k(dk, "dk"), for_v(dv, "dv");
                const DocumentAttention of = self.over(rows, keys, values);
                slopes.must_be_like(rows);
                for_q.must_be_whole_like(rows);
                for_k.must_be_whole_like(keys);
                for_v.must_be_whole_like(keys);
                check_tops(tops, rows);
                self.check_memory(of, workspace, true);
                const nb::gil_scoped_release released;
                attend_documents_backward(self.kernels, self.row_kernels, self.threads, of, rows.rows(), keys.rows(), values.rows(), tops.data(), slopes.rows(), for_q.data(),
                                          for_k.data(), for_v.data(), workspace.data());
            },
            "q"_a, "k"_a, "v"_a, "tops"_a, "dy"_a, "dq"_a, "dk"_a, "dv"_a, "workspace"_a, "What comes back to q, k and v from dy [T, N, H], by the tops of `forward`.");
}

}  // namespace herd
