// Adapters of single sequences: out = out + (x down^T) up^T in the rows of those that have one.
#pragma once

#include <utility>
#include <vector>

#include "program/program.h"

namespace herd {

class LowRank final : public Instruction {
  public:
    // `updates` by number of the adapter; one without matrices leaves this product as it is.
    LowRank(int x, std::vector<Update> updates, int out) : Instruction("adapters"), x_(x), updates_(std::move(updates)), out_(out) {}
    int64_t pieces(const Context& context) const override;
    void run(const Context& context, int64_t piece) const override;

    static int64_t scratch_bytes(const LinearKernels& linear, const Update& update);

  private:
    int64_t slices(const Context& context) const;

    int x_;
    std::vector<Update> updates_;
    int out_;
};

}  // namespace herd
