#include "base/cpu.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace herd {

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::Portable: return "portable";
        case Isa::Avx2: return "avx2";
        case Isa::AvxVnni: return "avxvnni";
        case Isa::Avx512: return "avx512";
        case Isa::Avx512Bf16: return "avx512bf16";
        case Isa::Neon: return "neon";
    }
    return "unknown";
}

namespace {

#if defined(__x86_64__)

// Whether this build computes instructions that the processor may lack (HERD_EMULATE in CMakeLists.txt).
#if defined(HERD_EMULATE)
constexpr bool kIsEmulated = true;
#else
constexpr bool kIsEmulated = false;
#endif

// The registers that `cpuid` answers with; zero for a leaf that the processor does not know.
struct Cpuid {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    Cpuid(uint32_t leaf, uint32_t part) { __get_cpuid_count(leaf, part, &a, &b, &c, &d); }
};

bool bit(uint32_t word, int number) { return (word >> number & 1) != 0; }

// Whether the system saves all of these parts of the registers when it switches threads (XCR0).
bool system_saves(uint32_t parts) {
    if (!bit(Cpuid(1, 0).c, 27)) return false;
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & parts) == parts;
}

[[maybe_unused]] bool has_avx2() {
    const Cpuid first(1, 0), seventh(7, 0);
    const bool has_fma = bit(first.c, 12), has_f16c = bit(first.c, 29);
    return has_fma && has_f16c && bit(seventh.b, 5) && system_saves(0x06);
}

[[maybe_unused]] bool has_avxvnni() { return has_avx2() && (kIsEmulated || bit(Cpuid(7, 1).a, 4)); }

// F, DQ, BW, VL; VNNI.
[[maybe_unused]] bool has_avx512() {
    if (kIsEmulated) return has_avx2();
    const Cpuid seventh(7, 0);
    const bool has_base = bit(seventh.b, 16) && bit(seventh.b, 17) && bit(seventh.b, 30) && bit(seventh.b, 31);
    return has_avx2() && has_base && bit(seventh.c, 11) && system_saves(0xe6);
}

[[maybe_unused]] bool has_avx512bf16() { return has_avx512() && (kIsEmulated || bit(Cpuid(7, 1).a, 5)); }

#endif

#if defined(HERD_HAVE_NEON)
bool has_dot_product() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return true;  // every Apple processor with this architecture has it
#endif
}
#endif

// One line of a file of the kernel, "" when there is none.
std::string first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

// Cores by control group v2: the smallest quota on the way from the process's group to the root; infinity when unlimited.
double quota_cores() {
    double cores = INFINITY;
    std::ifstream groups("/proc/self/cgroup");
    std::string line, path;
    while (std::getline(groups, line)) {
        if (line.rfind("0::", 0) == 0) path = line.substr(3);
    }
    while (true) {
        std::istringstream limit(first_line("/sys/fs/cgroup" + (path == "/" ? "" : path) + "/cpu.max"));
        std::string quota;
        double period = 0;
        if (limit >> quota >> period && quota != "max" && period > 0) cores = std::min(cores, std::atof(quota.c_str()) / period);
        const size_t slash = path.rfind('/');
        if (slash == std::string::npos || path.size() <= 1) return cores;
        path.resize(slash);
    }
}

// Physical cores among the processors of the affinity mask; two threads of one core count once.
int affinity_cores() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
        std::set<std::string> cores;
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            const std::string siblings =
                first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
            cores.insert(siblings.empty() ? "cpu" + std::to_string(cpu) : siblings);
        }
        if (!cores.empty()) return static_cast<int>(cores.size());
    }
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

std::vector<Isa> available_isas() {
    std::vector<Isa> isas{Isa::Portable};
#if defined(HERD_HAVE_AVX2)
    if (has_avx2()) isas.push_back(Isa::Avx2);
#endif
#if defined(HERD_HAVE_AVXVNNI)
    if (has_avxvnni()) isas.push_back(Isa::AvxVnni);
#endif
#if defined(HERD_HAVE_AVX512)
    if (has_avx512()) isas.push_back(Isa::Avx512);
#endif
#if defined(HERD_HAVE_AVX512BF16)
    if (has_avx512bf16()) isas.push_back(Isa::Avx512Bf16);
#endif
#if defined(HERD_HAVE_NEON)
    if (has_dot_product()) isas.push_back(Isa::Neon);
#endif
    return isas;
}

Isa best_isa() { return available_isas().back(); }

Isa isa_by_name(std::string_view name) {
    std::string possible;
    for (Isa isa : available_isas()) {
        if (name == isa_name(isa)) return isa;
        possible += (possible.empty() ? "" : ", ") + std::string(isa_name(isa));
    }
    throw std::invalid_argument("instruction set \"" + std::string(name) + "\" is not available here; this processor and build have: " +
                                possible + ".");
}

int usable_cores() {
    const double quota = quota_cores();
    const int cores = affinity_cores();
    return std::isfinite(quota) ? std::clamp(static_cast<int>(std::ceil(quota)), 1, cores) : cores;
}

#if defined(__x86_64__)
FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(static_cast<uint32_t>(saved_) | 0x8040); }
FlushDenormals::~FlushDenormals() { _mm_setcsr(static_cast<uint32_t>(saved_)); }
#elif defined(__aarch64__)
FlushDenormals::FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (uint64_t{1} << 24)));
}
FlushDenormals::~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
FlushDenormals::FlushDenormals() : saved_(0) {}
FlushDenormals::~FlushDenormals() = default;
#endif

}  // namespace herd
