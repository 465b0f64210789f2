// How fast `linear` is: bench_linear [isa] prints, per shape and token count, time, operations and bytes a second on one thread,
// beside the int8 multiply-add rate and the read bandwidth of the same thread in the same run. Best of many short runs.
//
// Weights are read cold: enough copies of each matrix are used in turn to exceed the caches. Lasts a minute; ctest does not run it.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <random>
#include <vector>

#include "base/cpu.h"
#include "kernels/kernels.h"
#include "kernels/matrix.h"

using namespace herd;

namespace {

// Seconds that this thread has run: on a busy machine the waiting does not count.
double now() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Shortest time of `run`, repeated for `budget_s` and at least three times.
template <class Run>
double shortest(double budget_s, Run run) {
    double best = 1e9;
    const double end = now() + budget_s;
    for (int i = 0; i < 3 || now() < end; ++i) {
        const double begin = now();
        run();
        best = std::min(best, now() - begin);
    }
    return best;
}

struct Shape {
    const char* name;
    Storage storage;
    Arithmetic arithmetic;
    int64_t rows, columns;
};

constexpr Shape kShapes[] = {
    {"qkv  q4_1", Storage::Q4_1, Arithmetic::Int8, 960, 576},       {"out  q4_1", Storage::Q4_1, Arithmetic::Int8, 576, 576},
    {"gate+up q4_1", Storage::Q4_1, Arithmetic::Int8, 3072, 576},   {"down q4_1", Storage::Q4_1, Arithmetic::Int8, 576, 1536},
    {"head q8_0", Storage::Q8_0, Arithmetic::Int8, 49152, 576},     {"1B ffn q4_0", Storage::Q4_0, Arithmetic::Int8, 2048, 2048},
    {"1B ffn q4_k", Storage::Q4_K, Arithmetic::Int8, 2048, 2048},   {"1B ffn q6_k", Storage::Q6_K, Arithmetic::Int8, 2048, 2048},
    {"1B ffn q5_k", Storage::Q5_K, Arithmetic::Int8, 2048, 2048},   {"1B ffn q3_k", Storage::Q3_K, Arithmetic::Int8, 2048, 2048},
    {"1B ffn q2_k", Storage::Q2_K, Arithmetic::Int8, 2048, 2048},   {"1B ffn q8_0", Storage::Q8_0, Arithmetic::Int8, 2048, 2048},
    {"1B ffn iq4_nl", Storage::IQ4_NL, Arithmetic::Int8, 2048, 2048}, {"1B ffn q4_1 f32", Storage::Q4_1, Arithmetic::Float32, 2048, 2048},
    {"1B ffn f32", Storage::F32, Arithmetic::Float32, 2048, 2048},  {"1B ffn f16", Storage::F16, Arithmetic::Float32, 2048, 2048},
    {"1B ffn bf16", Storage::BF16, Arithmetic::Float32, 2048, 2048}};

void measure(const LinearKernels& kernels, const Shape& shape, const std::vector<int64_t>& token_counts, double budget_s) {
    std::mt19937 random(1);
    std::vector<uint8_t> file(static_cast<size_t>(kernels.row_bytes(shape.storage, shape.columns) * shape.rows));
    for (uint8_t& byte : file) byte = static_cast<uint8_t>(random() % 60);  // small numbers as halves, no NaN
    const int64_t bytes = kernels.packed_bytes(shape.storage, shape.arithmetic, shape.rows, shape.columns);
    const int64_t copies = std::max<int64_t>(1, (int64_t{48} << 20) / bytes);
    std::vector<Matrix> matrices;
    double packing = 0;
    for (int64_t i = 0; i < copies; ++i) {
        Matrix m{.storage = shape.storage, .arithmetic = shape.arithmetic, .rows = shape.rows, .columns = shape.columns, .panels = panels_of(shape.rows),
                 .data = AlignedBytes(bytes)};
        const double begin = now();
        kernels.pack(m.storage, m.arithmetic, file.data(), m.rows, m.columns, m.data.data(), 0, m.panels);
        packing += now() - begin;
        matrices.push_back(std::move(m));
    }
    std::printf("%-16s [%lld x %lld], packing %.2f GB/s\n", shape.name, (long long)shape.rows, (long long)shape.columns,
                static_cast<double>(file.size()) * static_cast<double>(copies) / packing * 1e-9);
    const Form form = kernels.form(matrices[0]);
    const int64_t stride = kernels.prepared_bytes(form, shape.columns), most = token_counts.back();
    AlignedBytes x(most * stride), y(most * shape.rows * 4), scratch(kernels.scratch_bytes(matrices[0], most) + 64);
    std::vector<float> token(static_cast<size_t>(shape.columns));
    for (int64_t t = 0; t < most; ++t) {
        for (float& v : token) v = static_cast<float>(random() % 2001) * 1e-3f - 1.0f;
        kernels.prepare(form, token.data(), shape.columns, x.data() + t * stride);
    }
    for (int64_t tokens : token_counts) {
        size_t next = 0;
        const double best = shortest(budget_s, [&] {
            const Matrix& m = matrices[next++ % matrices.size()];
            kernels.linear(m, x.data(), stride, tokens, nullptr, false, y.as<float>(), shape.rows, 0, m.panels, scratch.data());
        });
        const double operations = 2.0 * static_cast<double>(shape.rows * shape.columns * tokens);
        std::printf("  %4lld tokens %10.1f us %8.1f GOPS %7.2f GB/s\n", (long long)tokens, best * 1e6, operations / best * 1e-9, static_cast<double>(bytes) / best * 1e-9);
    }
}

}  // namespace

int main(int count, char** arguments) {
    const Isa isa = count > 1 ? isa_by_name(arguments[1]) : best_isa();
    const Kernels& limits = kernels(isa);
    AlignedBytes memory(int64_t{96} << 20);
    for (int64_t i = 0; i < memory.size(); i += 4096) memory.data()[i] = 1;
    volatile uint64_t sink = 0;
    const double peak = shortest(0.3, [&] { sink = sink + static_cast<uint64_t>(limits.int8_peak(20000)); });
    const double read = shortest(0.3, [&] { sink = sink + limits.read_bytes(memory.data(), memory.size()); });
    std::printf("%s, one thread: int8 peak %.1f GOPS, reading memory %.2f GB/s\n", isa_name(isa),
                static_cast<double>(limits.int8_peak_operations) * 20000 / peak * 1e-9, static_cast<double>(memory.size()) / read * 1e-9);
    const size_t shapes = count > 2 ? 5 : std::size(kShapes);  // any second argument: SmolLM2 only
    for (size_t i = 0; i < shapes; ++i) measure(linear_kernels(isa), kShapes[i], i < 5 ? std::vector<int64_t>{1, 2, 4, 8, 16, 32, 512} : std::vector<int64_t>{1, 4, 32, 512}, 0.3);
    return 0;
}
