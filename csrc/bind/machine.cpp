// Threads, instruction sets and the limits of the machine - checks, signature, docstring; no arithmetic.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>

#include "bind/bind.h"

namespace herd {

using namespace nb::literals;

namespace {

// Seconds that `job` of every worker takes together. Results go to `sink` so that no loop is optimised away.
std::atomic<uint64_t> sink;

template <typename Function>
double time_all(Machine& machine, const Function& function) {
    const std::lock_guard lock(machine.mutex);
    const auto before = std::chrono::steady_clock::now();
    machine.pool.run_everywhere([&](int worker) { sink.fetch_add(function(worker), std::memory_order_relaxed); });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
}

std::shared_ptr<Machine> make_machine(int threads, const std::string& isa) {
    if (threads < 1 || threads > 1024) throw std::invalid_argument("threads is " + std::to_string(threads) + "; it must be from 1 to 1024");
    return std::make_shared<Machine>(threads, isa_by_name(isa));
}

}  // namespace

void bind_machine(nb::module_& m) {
    m.def("usable_cores", &usable_cores, "Physical cores that the affinity mask and the control group allow this process.");
    m.def(
        "available_isas",
        [] {
            std::vector<std::string> names;
            for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
            return names;
        },
        "Instruction sets that this build and this processor have, slowest first.");

    nb::class_<Machine>(m, "Machine", "A pool of threads and the kernels of one instruction set. One caller at a time runs; others wait.")
        .def(nb::new_(&make_machine), "threads"_a, "isa"_a)
        .def_prop_ro("threads", [](const Machine& machine) { return machine.pool.workers(); })
        .def_prop_ro("isa", [](const Machine& machine) { return std::string(isa_name(machine.isa)); })
        .def(
            "float_operations_per_second",
            [](Machine& machine, int64_t rounds) {
                const double seconds = time_all(machine, [&](int) { return static_cast<uint64_t>(machine.kernels.float_peak(rounds) != 0.0f); });
                return static_cast<double>(rounds * machine.kernels.float_peak_operations * machine.pool.workers()) / seconds;
            },
            "rounds"_a, nb::call_guard<nb::gil_scoped_release>(),
            "Float32 multiply-adds from registers, all threads; an add and a multiply count as two.")
        .def(
            "int8_operations_per_second",
            [](Machine& machine, int64_t rounds) {
                const double seconds = time_all(machine, [&](int) { return static_cast<uint64_t>(machine.kernels.int8_peak(rounds) & 1); });
                return static_cast<double>(rounds * machine.kernels.int8_peak_operations * machine.pool.workers()) / seconds;
            },
            "rounds"_a, nb::call_guard<nb::gil_scoped_release>(),
            "Int8 products summed to 32 bits from registers, all threads; a multiply and an add count as two.")
        .def_prop_ro(
            "multiplies_bf16", [](const Machine& machine) { return machine.kernels.bf16_peak_operations > 0; },
            "Whether bf16 weights are multiplied by dot products of bf16; else in float32.")
        .def(
            "bf16_operations_per_second",
            [](Machine& machine, int64_t rounds) {
                if (machine.kernels.bf16_peak_operations == 0) {
                    throw std::invalid_argument(std::string(isa_name(machine.isa)) + " has no dot product of bf16");
                }
                const double seconds = time_all(machine, [&](int) { return static_cast<uint64_t>(machine.kernels.bf16_peak(rounds) != 0.0f); });
                return static_cast<double>(rounds * machine.kernels.bf16_peak_operations * machine.pool.workers()) / seconds;
            },
            "rounds"_a, nb::call_guard<nb::gil_scoped_release>(),
            "Bf16 products summed in float32 from registers, all threads; a multiply and an add count as two. ValueError without such a dot product.")
        .def(
            "bytes_read_per_second",
            [](Machine& machine, Bytes data, int64_t rounds) {
                const auto size = static_cast<int64_t>(data.size());
                const int64_t part = size / machine.pool.workers();
                const double seconds = time_all(machine, [&](int worker) {
                    uint64_t sum = 0;
                    for (int64_t round = 0; round < rounds; ++round) sum += machine.kernels.read_bytes(data.data() + worker * part, part);
                    return sum;
                });
                return static_cast<double>(part * machine.pool.workers() * rounds) / seconds;
            },
            "data"_a, "rounds"_a, nb::call_guard<nb::gil_scoped_release>(), "Reads `data` [bytes] `rounds` times, a part of it in each thread.");
}

}  // namespace herd
