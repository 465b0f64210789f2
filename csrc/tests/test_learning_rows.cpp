// Norms, rotations, gates and the softmax of the vocabulary that learn, on every instruction set of this machine, against plain loops in double:
// forwards and backwards. The budget is that of test_learning.cpp. Threads are torch's: tests/training/test_native_rows.py has them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "learning/rows.h"
#include "tests/check.h"
#include "tests/learning_numbers.h"

using namespace herd;
using namespace herd::test;

namespace {

constexpr int64_t kRows = 130;
constexpr float kInfinite = std::numeric_limits<float>::infinity(), kNotANumber = std::numeric_limits<float>::quiet_NaN();
constexpr Element kElements[] = {Element::Float32, Element::BFloat16};

// Columns of a wider matrix, of which nothing else may be touched: it is not a number.
class Rows {
  public:
    Rows(Element element, int64_t rows, int64_t width)
        : element_(element), rows_(rows), width_(width), bytes_(at((rows * stride() + kBefore) * bytes_of(element)), kPattern) {}

    static Rows drawn(Element element, int64_t rows, int64_t width, uint32_t seed, float spread = 1.0f) {
        Rows made(element, rows, width);
        std::mt19937 random(seed);
        std::normal_distribution<float> normal(0.0f, spread);
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t i = 0; i < width; ++i) made.set(row, i, normal(random));
        }
        return made;
    }

    Rows like() const { return Rows(element_, rows_, width_); }
    Element element() const { return element_; }
    int64_t rows() const { return rows_; }
    int64_t width() const { return width_; }
    float get(int64_t row, int64_t i) const { return read(element_, bytes_.data(), place(row, i)); }
    void set(int64_t row, int64_t i, float value) { write(element_, bytes_.data(), place(row, i), value); }
    Matrix2 matrix() { return {bytes_.data() + kBefore * bytes_of(element_), stride()}; }
    bool operator==(const Rows&) const = default;
    bool starts_like(const Rows& other) const { return std::memcmp(bytes_.data(), other.bytes_.data(), at(place(rows_ - 1, width_) * bytes_of(element_))) == 0; }

    bool gaps_are_untouched() const {
        Rows wiped = *this;
        for (int64_t row = 0; row < rows_; ++row) {
            for (int64_t i = 0; i < width_; ++i) std::memset(wiped.bytes_.data() + place(row, i) * bytes_of(element_), kPattern, at(bytes_of(element_)));
        }
        return wiped == like();
    }

  private:
    static constexpr int64_t kBefore = 1, kAfter = 2;
    static constexpr uint8_t kPattern = 0xff;

    int64_t stride() const { return kBefore + width_ + kAfter; }
    int64_t place(int64_t row, int64_t i) const { return row * stride() + kBefore + i; }

    Element element_;
    int64_t rows_, width_;
    std::vector<uint8_t> bytes_;
};

// Floats between two zones that nobody may write.
struct Floats : Guarded {
    explicit Floats(int64_t count, float value = kNotANumber) : Guarded(4 * count) { std::fill_n(floats(), count, value); }
    float* floats() { return reinterpret_cast<float*>(data()); }
};

std::vector<float> drawn(int64_t count, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(at(count));
    for (float& value : values) value = normal(random);
    return values;
}

// What plain loops find, in one order: in doubles, or in floats.
template <typename Number>
using Found = std::vector<std::vector<Number>>;

// The errors of floats that kernels wrote, and of those that plain loops found, against doubles.
template <typename Ours>
void is_near(const Ours& ours, Element element, std::vector<float> plain, const std::vector<double>& exact, const std::string& what) {
    double error = 0, allowed = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
        const double mine = std::abs(static_cast<double>(ours(static_cast<int64_t>(i))) - exact[i]);
        error = mine <= error ? error : mine;  // what is not a number stays
        allowed = std::max(allowed, 2 * std::abs(static_cast<double>(rounded(element, plain[i])) - exact[i]));
    }
    CHECK(error <= allowed, "%s: error %g, allowed %g", what.c_str(), error, allowed);
}
void is_near(const Rows& ours, const std::vector<float>& plain, const std::vector<double>& exact, const std::string& what) {
    CHECK(ours.gaps_are_untouched(), "%s: written outside", what.c_str());
    is_near([&](int64_t i) { return ours.get(i / ours.width(), i % ours.width()); }, ours.element(), plain, exact, what);
}
void is_near(const Floats& ours, const std::vector<float>& plain, const std::vector<double>& exact, const std::string& what) {
    CHECK(ours.is_whole(), "%s: written outside", what.c_str());
    is_near([&](int64_t i) { return read(Element::Float32, ours.data(), i); }, Element::Float32, plain, exact, what);
}

std::string where(Isa isa, Element element, const char* what, int64_t width) {
    return std::string(isa_name(isa)) + (element == Element::Float32 ? " float32 " : " bfloat16 ") + what + " of " + std::to_string(width);
}

// y, factors, dx, for_scales.
template <typename Number>
Found<Number> plain_norm(const Rows& x, const float* scales, float eps, const Rows& dy) {
    const int64_t rows = x.rows(), width = x.width();
    Found<Number> found{std::vector<Number>(at(rows * width)), std::vector<Number>(at(rows)), std::vector<Number>(at(rows * width)),
                        std::vector<Number>(at((rows + kScaleRows - 1) / kScaleRows * width))};
    for (int64_t row = 0; row < rows; ++row) {
        Number squares = 0, common = 0;
        for (int64_t i = 0; i < width; ++i) squares += static_cast<Number>(x.get(row, i)) * x.get(row, i);
        const Number factor = 1 / std::sqrt(squares / static_cast<Number>(width) + static_cast<Number>(eps));
        found[1][at(row)] = factor;
        const auto scale = [&](int64_t i) { return scales == nullptr ? Number{1} : static_cast<Number>(scales[i]); };
        for (int64_t i = 0; i < width; ++i) {
            found[0][at(row * width + i)] = x.get(row, i) * factor * scale(i);
            common += dy.get(row, i) * scale(i) * (x.get(row, i) * factor);
            found[3][at(row / kScaleRows * width + i)] += dy.get(row, i) * (x.get(row, i) * factor);
        }
        common /= static_cast<Number>(width);
        for (int64_t i = 0; i < width; ++i) found[2][at(row * width + i)] = factor * (dy.get(row, i) * scale(i) - x.get(row, i) * factor * common);
    }
    return found;
}

struct Normed {
    Rows y, dx;
    Floats factors, for_scales;

    Normed(const RowWork& work, Rows x, const float* scales, Rows dy)
        : y(x.like()), dx(x.like()), factors(x.rows()), for_scales((x.rows() + kScaleRows - 1) / kScaleRows * x.width(), 0.0f) {
        rms_norm_rows(work, x.matrix(), scales, kEps, y.matrix(), factors.floats());
        rms_norm_rows_backward(work, x.matrix(), scales, factors.floats(), dy.matrix(), dx.matrix(), for_scales.floats());
        Rows without = x.like();
        rms_norm_rows_backward(work, x.matrix(), scales, factors.floats(), dy.matrix(), without.matrix(), nullptr);
        CHECK(without == dx, "%s", "what comes back to x depends on whether the scales learn");
    }
    bool operator==(const Normed& other) const = default;

    static constexpr float kEps = 1e-5f;
};

void norms_are_right(Isa isa) {
    const LearnRowKernels& kernels = learn_row_kernels(isa);
    for (const Element element : kElements) {
        for (const int64_t width : {1, 7, 64, 255, 256, 257, 576}) {
            const Rows x = Rows::drawn(element, kRows, width, 1), dy = Rows::drawn(element, kRows, width, 2);
            const std::vector<float> learned = drawn(width, 3);
            for (const float* scales : {learned.data(), static_cast<const float*>(nullptr)}) {
                const Found<double> exact = plain_norm<double>(x, scales, Normed::kEps, dy);
                const Found<float> plain = plain_norm<float>(x, scales, Normed::kEps, dy);
                const Normed ours({kernels, 1, element, kRows, width}, x, scales, dy);
                const std::string at = where(isa, element, "norm", width);
                is_near(ours.y, plain[0], exact[0], at + " y");
                is_near(ours.factors, plain[1], exact[1], at + " factors");
                is_near(ours.dx, plain[2], exact[2], at + " dx");
                is_near(ours.for_scales, plain[3], exact[3], at + " scales");
                for (const int threads : {2, 3, 7}) CHECK(Normed({kernels, threads, element, kRows, width}, x, scales, dy) == ours, "%s: other bits with %d threads", at.c_str(), threads);
            }
        }
    }
}

// A row's bits, and those of the slopes of 64 rows, do not depend on how many rows there are.
void rows_do_not_depend_on_company(Isa isa) {
    const LearnRowKernels& kernels = learn_row_kernels(isa);
    constexpr int64_t kWidth = 70;
    for (const Element element : kElements) {
        const std::vector<float> scales = drawn(kWidth, 3);
        const Normed all({kernels, 1, element, kRows, kWidth}, Rows::drawn(element, kRows, kWidth, 1), scales.data(), Rows::drawn(element, kRows, kWidth, 2));
        for (const int64_t rows : {1, 63, 64, 65, 129}) {
            const Normed some({kernels, 1, element, rows, kWidth}, Rows::drawn(element, rows, kWidth, 1), scales.data(), Rows::drawn(element, rows, kWidth, 2));
            CHECK(some.y.starts_like(all.y) && some.dx.starts_like(all.dx), "%s: %ld rows have other bits", isa_name(isa), static_cast<long>(rows));
            CHECK(std::memcmp(some.factors.data(), all.factors.data(), at(4 * rows)) == 0, "%s: %ld rows have other factors", isa_name(isa), static_cast<long>(rows));
            CHECK(std::memcmp(some.for_scales.data(), all.for_scales.data(), at(rows / kScaleRows * kWidth * 4)) == 0, "%s: %ld rows give other slopes to scales", isa_name(isa),
                  static_cast<long>(rows));
        }
    }
}

template <typename Number>
std::vector<Number> plain_turns(const Rows& x, int64_t heads, const std::vector<float>& cosines, const std::vector<float>& sines, bool back) {
    const int64_t width = x.width(), half = width / heads / 2;
    std::vector<Number> found(at(x.rows() * width));
    for (int64_t row = 0; row < x.rows(); ++row) {
        for (int64_t i = 0; i < width; i += 2) {
            const size_t angle = at(row * half + i / 2 % half);
            const Number even = x.get(row, i), odd = x.get(row, i + 1), cosine = cosines[angle], sine = back ? -sines[angle] : sines[angle];
            found[at(row * width + i)] = even * cosine - odd * sine;
            found[at(row * width + i + 1)] = even * sine + odd * cosine;
        }
    }
    return found;
}

void rotations_are_right(Isa isa) {
    for (const Element element : kElements) {
        for (const auto& [heads, head_width] : {std::pair{1, 2}, {3, 6}, {2, 64}, {1, 256}, {2, 300}}) {
            const int64_t width = heads * head_width;
            Rows x = Rows::drawn(element, kRows, width, 1);
            const std::vector<float> cosines = drawn(kRows * head_width / 2, 2), sines = drawn(kRows * head_width / 2, 3);
            for (const bool back : {false, true}) {
                const auto turned = [&](int threads) {
                    Rows y = x.like();
                    rotate_rows({learn_row_kernels(isa), threads, element, kRows, width}, heads, x.matrix(), cosines.data(), sines.data(), back, y.matrix());
                    return y;
                };
                const Rows y = turned(1);
                const std::string at = where(isa, element, back ? "turn back" : "turn", width);
                is_near(y, plain_turns<float>(x, heads, cosines, sines, back), plain_turns<double>(x, heads, cosines, sines, back), at);
                for (const int threads : {2, 3, 7}) CHECK(turned(threads) == y, "%s: other bits with %d threads", at.c_str(), threads);
                Rows same = x;
                rotate_rows({learn_row_kernels(isa), 1, element, kRows, width}, heads, same.matrix(), cosines.data(), sines.data(), back, same.matrix());
                CHECK(same == y, "%s: other bits in its own place", at.c_str());
            }
        }
    }
}

// y, for_gate, for_up.
template <typename Number>
Found<Number> plain_gates(const Rows& gate, const Rows& up, const Rows& dy) {
    Found<Number> found(3, std::vector<Number>(at(gate.rows() * gate.width())));
    for (int64_t place = 0; place < gate.rows() * gate.width(); ++place) {
        const int64_t row = place / gate.width(), i = place % gate.width();
        const Number z = gate.get(row, i), u = up.get(row, i), slope = dy.get(row, i), s = 1 / (1 + std::exp(-z));
        found[0][at(place)] = z * s * u;
        found[1][at(place)] = slope * u * (s * (1 + z * (1 - s)));
        found[2][at(place)] = slope * (z * s);
    }
    return found;
}

struct Gated {
    Rows y, for_gate, for_up;

    Gated(const RowWork& work, Rows gate, Rows up, Rows dy) : y(gate.like()), for_gate(gate.like()), for_up(gate.like()) {
        silu_gate_rows(work, gate.matrix(), up.matrix(), y.matrix());
        silu_gate_rows_backward(work, gate.matrix(), up.matrix(), dy.matrix(), for_gate.matrix(), for_up.matrix());
    }
    bool operator==(const Gated&) const = default;
};

void gates_are_right(Isa isa) {
    const LearnRowKernels& kernels = learn_row_kernels(isa);
    for (const Element element : kElements) {
        for (const int64_t width : {1, 7, 255, 256, 257, 1536}) {
            const Rows gate = Rows::drawn(element, kRows, width, 1, 4.0f), up = Rows::drawn(element, kRows, width, 2), dy = Rows::drawn(element, kRows, width, 3);
            const Found<double> exact = plain_gates<double>(gate, up, dy);
            const Found<float> plain = plain_gates<float>(gate, up, dy);
            const Gated ours({kernels, 1, element, kRows, width}, gate, up, dy);
            const std::string at = where(isa, element, "gate", width);
            is_near(ours.y, plain[0], exact[0], at + " y");
            is_near(ours.for_gate, plain[1], exact[1], at + " gate");
            is_near(ours.for_up, plain[2], exact[2], at + " up");
            for (const int threads : {2, 3, 7}) CHECK(Gated({kernels, threads, element, kRows, width}, gate, up, dy) == ours, "%s: other bits with %d threads", at.c_str(), threads);
        }
    }
}

void huge_gates_are_open_or_shut_and_others_stay(Isa isa) {
    for (const Element element : kElements) {
        constexpr int64_t kWidth = 40;
        Rows gate = Rows::drawn(element, 3, kWidth, 1);
        const Rows up = Rows::drawn(element, 3, kWidth, 2), dy = Rows::drawn(element, 3, kWidth, 3);
        const RowWork work{learn_row_kernels(isa), 1, element, 3, kWidth};
        const Gated before(work, gate, up, dy);
        const float open[] = {100.0f, 1e4f, 1e30f}, shut[] = {-200.0f, -1e4f, -3e38f};
        for (int64_t i = 0; i < 3; ++i) {
            gate.set(1, i, open[i]);
            gate.set(1, 10 + i, shut[i]);
        }
        gate.set(1, 20, kNotANumber);
        const Gated after(work, gate, up, dy);
        for (int64_t row = 0; row < 3; ++row) {
            for (int64_t i = 0; i < kWidth; ++i) {
                if (row == 1 && (i < 3 || (10 <= i && i < 13) || i == 20)) continue;
                CHECK(after.y.get(row, i) == before.y.get(row, i) && after.for_gate.get(row, i) == before.for_gate.get(row, i), "%s: place %ld changed", isa_name(isa), static_cast<long>(i));
            }
        }
        for (int64_t i = 0; i < 3; ++i) {
            CHECK(after.y.get(1, i) == rounded(element, gate.get(1, i) * up.get(1, i)), "%s: an open gate", isa_name(isa));
            CHECK(after.for_gate.get(1, i) == rounded(element, dy.get(1, i) * up.get(1, i)), "%s: the slope of an open gate", isa_name(isa));
            CHECK(after.y.get(1, 10 + i) == 0.0f && after.for_gate.get(1, 10 + i) == 0.0f && after.for_up.get(1, 10 + i) == 0.0f, "%s: a shut gate", isa_name(isa));
        }
        for (const Rows* each : {&after.y, &after.for_gate, &after.for_up}) CHECK(std::isnan(each->get(1, 20)), "%s: what is not a number is lost", isa_name(isa));
    }
}

// log p(target), log sum exp, slopes.
template <typename Number>
Found<Number> plain_softmax(const Rows& logits, const std::vector<int64_t>& targets, float z_loss) {
    const int64_t rows = logits.rows(), width = logits.width();
    Found<Number> found{std::vector<Number>(at(rows)), std::vector<Number>(at(rows)), std::vector<Number>(at(rows * width))};
    for (int64_t row = 0; row < rows; ++row) {
        Number most = -std::numeric_limits<Number>::infinity(), total = 0;
        for (int64_t i = 0; i < width; ++i) most = std::max<Number>(most, logits.get(row, i));
        for (int64_t i = 0; i < width; ++i) total += std::exp(logits.get(row, i) - most);
        const Number lse = most + std::log(total), factor = 1 + 2 * static_cast<Number>(z_loss) * lse;
        found[0][at(row)] = logits.get(row, targets[at(row)]) - lse;
        found[1][at(row)] = lse;
        for (int64_t i = 0; i < width; ++i) found[2][at(row * width + i)] = std::exp(logits.get(row, i) - lse) * factor - (i == targets[at(row)] ? 1 : 0);
    }
    return found;
}

struct Softmaxed {
    Rows slopes;
    Floats logprobs, lse;

    Softmaxed(const RowWork& work, const Rows& logits, const std::vector<int64_t>& targets, float z_loss, bool with_slopes = true)
        : slopes(logits), logprobs(logits.rows()), lse(logits.rows()) {
        softmax_rows(work, slopes.matrix(), targets.data(), z_loss, with_slopes, logprobs.floats(), lse.floats());
    }
    bool operator==(const Softmaxed&) const = default;
};

void softmaxes_are_right(Isa isa) {
    const LearnRowKernels& kernels = learn_row_kernels(isa);
    for (const Element element : kElements) {
        for (const auto& [rows, width] : {std::pair{9, 1}, {kRows, 2}, {kRows, 255}, {kRows, 256}, {kRows, 257}, {4, 49152}}) {
            Rows logits = Rows::drawn(element, rows, width, 1, 5.0f);
            std::vector<int64_t> targets;
            for (int64_t row = 0; row < rows; ++row) targets.push_back(row == 0 ? width - 1 : row * 7919 % width);
            for (int64_t i = 3; i < width; i += 11) {
                if (std::find(targets.begin(), targets.end(), i) == targets.end()) logits.set(1, i, -kInfinite);  // forbidden
            }
            const RowWork work{kernels, 1, element, rows, width};
            for (const float z_loss : {0.0f, 1e-2f}) {
                const Found<double> exact = plain_softmax<double>(logits, targets, z_loss);
                const Found<float> plain = plain_softmax<float>(logits, targets, z_loss);
                const Softmaxed ours(work, logits, targets, z_loss);
                const std::string at = where(isa, element, "softmax", width);
                is_near(ours.logprobs, plain[0], exact[0], at + " logprobs");
                is_near(ours.lse, plain[1], exact[1], at + " lse");
                is_near(ours.slopes, plain[2], exact[2], at + " slopes");
                for (const int threads : {2, 3, 7}) {
                    CHECK(Softmaxed({kernels, threads, element, rows, width}, logits, targets, z_loss) == ours, "%s: other bits with %d threads", at.c_str(), threads);
                }
                const Softmaxed without(work, logits, targets, z_loss, false);
                CHECK(without.slopes == logits && without.logprobs == ours.logprobs && without.lse == ours.lse, "%s: without slopes", at.c_str());
            }
        }
    }
}

void what_is_not_a_number_stays_in_its_row(Isa isa) {
    for (const Element element : kElements) {
        Rows logits = Rows::drawn(element, 3, 300, 1), bad = logits;
        const RowWork work{learn_row_kernels(isa), 1, element, 3, 300};
        const std::vector<int64_t> targets{5, 6, 7};
        const Softmaxed before(work, logits, targets, 0.0f);
        for (const int64_t place : {0, 17, 299}) {
            bad = logits;
            bad.set(1, place, kNotANumber);
            Softmaxed after(work, bad, targets, 0.0f);
            CHECK(std::isnan(after.lse.floats()[1]) && std::isnan(after.logprobs.floats()[1]), "%s: place %ld is not seen", isa_name(isa), static_cast<long>(place));
            for (const int64_t row : {0, 2}) {
                for (int64_t i = 0; i < 300; ++i) CHECK(after.slopes.get(row, i) == before.slopes.get(row, i), "%s: another row changed", isa_name(isa));
            }
        }
    }
}

}  // namespace

int main() {
    const FlushDenormals flush;  // plain loops as the kernels have it
    for (const Isa isa : available_isas()) {
        norms_are_right(isa);
        rows_do_not_depend_on_company(isa);
        rotations_are_right(isa);
        gates_are_right(isa);
        huge_gates_are_open_or_shut_and_others_stay(isa);
        softmaxes_are_right(isa);
        what_is_not_a_number_stays_in_its_row(isa);
    }
    return herd::test::report("learning rows");
}
