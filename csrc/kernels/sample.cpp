// sample: passes over one row of V logits; see sample.h. Reference: sampling/chain.py.
//
// Written as plain loops over blocks of eight lanes, which compilers turn into vector instructions. Sums are kept per lane and
// joined in a fixed order, so that their bits depend on nothing but the row. Built once per instruction set.
#include "kernels/sample.h"

#include <cstring>

namespace herd::HERD_ISA {

const SampleKernels& sample_table();

namespace {

constexpr int64_t kLanes = 8;
constexpr double kSmallestExponent = -700.0;

#if defined(HERD_ISA_PORTABLE)
inline double fused(double a, double b, double c) { return a * b + c; }
#else
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif

inline uint64_t bits_of(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline double from_bits(uint64_t bits) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// e^x for x <= 0; 0 below -700; e^0 is exactly 1. x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 11,
// whose relative error is below 7e-15.
inline double exponential(double x) {
    constexpr double kRounder = 0x1.8p52;                 // adding it leaves the nearest whole number in the last bits
    constexpr double kLn2High = 6.93147180369123816490e-01;  // 32 bits, so that n times it is exact
    constexpr double kLn2Low = 1.90821492927058770002e-10;
    const double rounded = fused(x, 1.44269504088896338700e+00, kRounder);
    const double n = rounded - kRounder;
    const double r = fused(n, -kLn2Low, fused(n, -kLn2High, x));
    const double square = r * r;  // even and odd powers apart: two short chains instead of a long one
    double odd = 1.0 / 39916800, even = 1.0 / 3628800;
    odd = fused(odd, square, 1.0 / 362880);
    even = fused(even, square, 1.0 / 40320);
    odd = fused(odd, square, 1.0 / 5040);
    even = fused(even, square, 1.0 / 720);
    odd = fused(odd, square, 1.0 / 120);
    even = fused(even, square, 1.0 / 24);
    odd = fused(odd, square, 1.0 / 6);
    even = fused(even, square, 0.5);
    odd = fused(odd, square, 1.0);
    even = fused(even, square, 1.0);
    const double p = fused(odd, r, even);
    const uint64_t keep = -static_cast<uint64_t>(x >= kSmallestExponent);  // no branch, so that loops become vectors
    return from_bits((bits_of(p) + (bits_of(rounded) << 52)) & keep);
}

// Sums of eight lanes, and how they are joined.
struct Lanes {
    double of[kLanes] = {};

    void add(const double* x, int64_t n) {
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) {
            for (int64_t lane = 0; lane < kLanes; ++lane) of[lane] += x[i + lane];
        }
        for (int64_t lane = 0; i + lane < n; ++lane) of[lane] += x[i + lane];
    }
    double sum() const { return ((of[0] + of[4]) + (of[2] + of[6])) + ((of[1] + of[5]) + (of[3] + of[7])); }
};

double sum(const float* x, int64_t n, double largest) {
    Lanes lanes;
    double block[kRun];
    for (int64_t begin = 0; begin < n; begin += kRun) {
        const int64_t size = n - begin < kRun ? n - begin : kRun;
        for (int64_t i = 0; i < size; ++i) block[i] = exponential(static_cast<double>(x[begin + i]) - largest);
        lanes.add(block, size);
    }
    return lanes.sum();
}

template <typename Element>
Element run_largest(const Element* x, int64_t n) {
    if (n < kLanes) {
        Element best = x[0];
        for (int64_t i = 1; i < n; ++i) best = x[i] > best ? x[i] : best;
        return best;
    }
    Element lanes[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = x[lane];
    for (int64_t i = kLanes; i + kLanes <= n; i += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
    }
    const Element* end = x + (n - kLanes);  // the last full run, which may overlap the one before
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = end[lane] > lanes[lane] ? end[lane] : lanes[lane];
    Element best = lanes[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) best = lanes[lane] > best ? lanes[lane] : best;
    return best;
}

template <typename Element>
bool any_nan(const Element* x, int64_t n) {
    int32_t count = 0;  // as wide as a float: the loop becomes one of vectors
    for (int64_t i = 0; i < n; ++i) count += x[i] != x[i] ? 1 : 0;
    return count != 0;
}

template <typename Element>
double weigh_row(const Element* x, int64_t n, double largest, double factor, double* weights, double* runs) {
    Lanes lanes;
    for (int64_t begin = 0; begin < n; begin += kRun) {
        const int64_t size = n - begin < kRun ? n - begin : kRun;
        const Element* from = x + begin;
        double* to = weights + begin;
        for (int64_t i = 0; i < size; ++i) to[i] = exponential((static_cast<double>(from[i]) - largest) * factor);
        lanes.add(to, size);
        runs[begin / kRun] = run_largest(to, size);
    }
    return lanes.sum();
}

// `note(begin, largest)` is told the largest of every run.
template <typename Element, typename Note>
Largest largest_of(const Element* x, int64_t n, const Note& note) {
    Element best = x[0];
    int64_t run = 0;
    bool has_nan = false;
    for (int64_t begin = 0; begin < n; begin += kRun) {
        const int64_t size = n - begin < kRun ? n - begin : kRun;
        has_nan |= any_nan(x + begin, size);
        const Element here = run_largest(x + begin, size);
        note(begin, here);
        if (here > best) {
            best = here;
            run = begin;
        }
    }
    int64_t index = run;
    while (!has_nan && !(x[index] == best)) ++index;
    return {static_cast<double>(best), index, has_nan};
}

Largest largest(const float* x, int64_t n, float* runs) {
    return largest_of(x, n, [runs](int64_t begin, float here) { runs[begin / kRun] = here; });
}
Largest largest_double(const double* x, int64_t n) {
    return largest_of(x, n, [](int64_t, double) {});
}

double weigh(const float* x, int64_t n, double largest, double factor, double* weights, double* runs) {
    return weigh_row(x, n, largest, factor, weights, runs);
}
double weigh_double(const double* x, int64_t n, double largest, double factor, double* weights, double* runs) {
    return weigh_row(x, n, largest, factor, weights, runs);
}

int64_t collect(const double* weights, const double* runs, int64_t n, double threshold, int32_t* indices) {
    int64_t count = 0;
    for (int64_t begin = 0; begin < n; begin += kRun) {
        if (runs[begin / kRun] < threshold || runs[begin / kRun] <= 0.0) continue;
        const int64_t end = n - begin < kRun ? n : begin + kRun;
        for (int64_t i = begin; i < end; ++i) {
            indices[count] = static_cast<int32_t>(i);
            count += weights[i] >= threshold && weights[i] > 0.0 ? 1 : 0;
        }
    }
    return count;
}

int64_t most(const float* x, const float* runs, int64_t n, int64_t count, int32_t* indices) {
    int64_t found = 0;
    for (int64_t begin = 0; begin < n && count > 0; begin += kRun) {
        if (found == count && !(runs[begin / kRun] > x[indices[count - 1]])) continue;
        const int64_t end = n - begin < kRun ? n : begin + kRun;
        for (int64_t i = begin; i < end; ++i) {
            if (found == count && !(x[i] > x[indices[count - 1]])) continue;
            int64_t place = found < count ? found++ : count - 1;
            for (; place > 0 && x[i] > x[indices[place - 1]]; --place) indices[place] = indices[place - 1];
            indices[place] = static_cast<int32_t>(i);
        }
    }
    return found;
}

}  // namespace

const SampleKernels& sample_table() {
    static constexpr SampleKernels table{largest, largest_double, weigh, weigh_double, sum, collect, most};
    return table;
}

}  // namespace herd::HERD_ISA
