// Where torch's tensors lie - signature, docstring; no arithmetic.
#include <nanobind/stl/tuple.h>

#include <tuple>

#include "base/tensor_memory.h"
#include "bind/bind.h"

namespace herd {

void bind_tensor_memory(nb::module_& m) {
    m.def("open_tensor_memory", &open_tensor_memory,
          "From now on large tensors of torch on the processor lie in pages of their own. Whether that can be: torch must be loaded, over glibc.");
    m.def("close_tensor_memory", &close_tensor_memory, "No more of them, once it was closed as often as opened; what is free goes back to the system.");
    m.def(
        "tensor_memory_bytes",
        [] {
            const RegionBytes bytes = tensor_memory_bytes();
            return std::tuple(bytes.used, bytes.most, bytes.resident, bytes.fetched);
        },
        "(in use, the most of it since it was opened, resident, ever given by the system), in bytes.");
}

}  // namespace herd
