// quantise.cpp: activations in the form that a matrix multiplies.
#pragma once

#include "kernels/layout.h"

namespace herd::HERD_ISA {

// Bytes from one prepared row to the next.
int64_t prepared_bytes(Form form, int64_t columns);
// One token.
void prepare(Form form, const float* x, int64_t columns, uint8_t* prepared_row);

}  // namespace herd::HERD_ISA
