// What the binding files of training share: tensors of torch and the checks of their arguments.
#pragma once

#include <string>

#include "bind/bind.h"
#include "kernels/learn.h"

namespace herd {

using Tensor = nb::ndarray<nb::device::cpu>;

// ValueError for anything but float32 and bfloat16.
Element element_of(const Tensor& tensor, const char* name);
void check_threads(int threads);
void expect_size(int64_t found, int64_t expected, const char* name);

}  // namespace herd
