// Where torch's tensors on the processor lie while somebody trains: a region of their own in the place of the C library's heap.
#pragma once

#include "base/region.h"

namespace herd {

// From now on large tensors are made in the region, until it has been closed as often as opened. Whether that can be: torch must be loaded,
// and be one that asks glibc. Without it nothing changes.
bool open_tensor_memory();

// Tensors that are there stay where they are; what is free goes back to the system.
void close_tensor_memory();

// Zeros if it was never open.
RegionBytes tensor_memory_bytes();

}  // namespace herd
