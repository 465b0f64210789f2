// What the binding files share: array types and the checks of their arguments.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

#include "program/program.h"

namespace herd {

namespace nb = nanobind;

using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using FloatsIn = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

// A length that must be the same wherever its symbol appears; the first use decides.
struct Dim {
    const char* symbol;
    int64_t size = -1;
    std::string from = {};
};

// expect(x, "x").shape(T, D): ValueError naming argument, shape and symbol otherwise.
template <typename Array>
class Expect {
  public:
    Expect(const Array& array, const char* name) : array_(array), name_(name) {}

    template <typename... Dims>
    void shape(Dims&... dims) {
        if (array_.ndim() != sizeof...(dims)) fail("expected " + std::to_string(sizeof...(dims)) + " axes");
        size_t axis = 0;
        (check(axis++, dims), ...);
    }

  private:
    void check(size_t axis, Dim& dim) {
        const auto size = static_cast<int64_t>(array_.shape(axis));
        if (dim.size < 0) {
            dim.size = size;
            dim.from = name_;
        } else if (dim.size != size) {
            fail(std::string("axis ") + std::to_string(axis) + " must be " + dim.symbol + " = " + std::to_string(dim.size) + " (from " + dim.from + ")");
        }
    }
    [[noreturn]] void fail(const std::string& what) const {
        std::string shape;
        for (size_t i = 0; i < array_.ndim(); ++i) shape += (i == 0 ? "" : ", ") + std::to_string(array_.shape(i));
        throw std::invalid_argument(std::string(name_) + " has shape [" + shape + "]; " + what);
    }

    const Array& array_;
    const char* name_;
};

template <typename Array>
Expect<Array> expect(const Array& array, const char* name) {
    return {array, name};
}

// What tokens see, by its name and size.
Sight sight_of(const std::string& name, int64_t tokens);

// A format of keys and values by its name, for heads of this width.
CacheFormat cache_format(const std::string& name, int64_t head_width);

void bind_machine(nb::module_& m);
void bind_matrix(nb::module_& m);
void bind_program(nb::module_& m);
void bind_kernels(nb::module_& m);
void bind_learning(nb::module_& m);
void bind_learning_rows(nb::module_& m);
void bind_pictures(nb::module_& m);
void bind_sample(nb::module_& m);
void bind_tensor_memory(nb::module_& m);
void bind_vocabulary(nb::module_& m);

}  // namespace herd
