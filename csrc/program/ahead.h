// Weights of a mapped file that memory does not hold: asked for before they are used, and let go of after.
//
// The system forgets first what was used longest ago, which for weights that are used in turns is what is wanted next: of a file a
// little larger than memory it would read everything for every step. So the first weights of a step stay, and only the rest comes and goes.
#pragma once

#include <vector>

#include "kernels/matrix.h"

namespace herd {

// Asks the system to read what a matrix or a part of one has in a file, if it is not in memory; does not wait.
void ask_for(const uint8_t* data, int64_t bytes);
inline void ask_for(const Matrix& matrix) { ask_for(matrix.data.data(), matrix.data.size()); }

class Ahead {
  public:
    // The instruction, none before the last one that was added, uses all of the matrix in every step.
    void add(size_t instruction, const Matrix& matrix);
    // From now on weights are asked for `window` bytes ahead; `keep` bytes of them stay.
    void start(int64_t keep, int64_t window);
    bool is_on() const { return is_on_; }
    // To be called by one thread before each instruction of a step.
    void before(size_t instruction) const;

  private:
    struct Part {
        size_t instruction;
        const uint8_t* data;
        int64_t bytes, at;  // where it begins among all weights, in the order of use
    };
    // Asks for the weights from `at` on.
    void ask(int64_t at, int64_t bytes) const;

    std::vector<Part> parts_;
    int64_t total_ = 0, keep_ = 0, window_ = 0;
    bool is_on_ = false;
};

}  // namespace herd
