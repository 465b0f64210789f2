// What this processor can do, and how many cores this process may use.
//
// Kernels are built once per instruction set (CMakeLists.txt) and chosen at run time: `best_isa()` unless a caller names
// another one. Every kernel file lives in `namespace herd::HERD_ISA`, so that the copies never collide; it must not use
// anything of the standard library that the linker could merge between copies built with different flags.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace herd {

enum class Isa : int32_t { Portable, Avx2, AvxVnni, Avx512, Avx512Bf16, Neon };

// "portable", "avx2", "avxvnni", "avx512", "avx512bf16", "neon".
const char* isa_name(Isa isa);

// The instruction sets that are in this build and that this processor runs, slowest first. Portable is always there.
std::vector<Isa> available_isas();

// The last of `available_isas()`.
Isa best_isa();

// By name. Throws std::invalid_argument naming the possible ones.
Isa isa_by_name(std::string_view name);

// Physical cores that the affinity mask and the control group's quota allow; at least 1.
int usable_cores();

// Subnormal numbers become zero in this thread until destroyed: they cost hundreds of cycles and carry nothing here.
class FlushDenormals {
  public:
    FlushDenormals();
    ~FlushDenormals();
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

  private:
    uint64_t saved_;
};

}  // namespace herd
