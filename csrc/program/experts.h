// Experts: each row goes through the few whose scores are highest (models/ops.py:experts).
//
//   route    rows and their experts become entries, sorted by expert        one piece: some thousand comparisons
//   prepare  sigmoid(score) * x of every entry, as products want it
//   gate     silu(gate x) * up x, expert by expert, a piece being a run of panels of one expert
//   prepare  of what came out
//   down     down of that
//   sum      of each row's entries, experts rising
//
// A row's bits depend on the row alone: products give a row the same bits whatever else they multiply (kernels/matrix.h), and the
// order of the sum is fixed.
#pragma once

#include <vector>

#include "program/program.h"

namespace herd {

// Where the experts of one layer compute; layers of one shape share it.
struct ExpertRoom {
    int64_t num_experts, num_chosen, width, ffn_width;
    Form gate_form, up_form, down_form;
    // Which entries there are.
    std::vector<int32_t> starts;   // [E + 1], the first entry of each expert
    std::vector<int32_t> active;   // experts that have entries
    std::vector<int32_t> rows;     // [entry], the step's row
    std::vector<float> factors;    // [entry], the sigmoid of its score
    std::vector<int32_t> entries;  // [row][chosen], experts rising
    // Per entry.
    struct Rows {
        int64_t stride;  // bytes
        AlignedBytes bytes;
        uint8_t* at(int64_t entry) { return bytes.data() + entry * stride; }
    };
    Rows gate_input, up_input, gate, up, down_input, out;  // `up_input` is empty when both are prepared alike

    int64_t num_bytes() const;
};

// Where memory does not hold the weights it also has the chosen experts read from their file, and, while they compute, those
// that the next layer's router would choose for the same rows: x changes little from one layer to the next, so most of them are right.
class Route final : public Instruction {
  public:
    struct Weights {
        std::vector<MatrixPtr> gates, ups, downs;
    };
    Route(int x, int scores, ExpertRoom& room, Weights weights) : Instruction("route"), x_(x), scores_(scores), room_(room), weights_(std::move(weights)) {}
    int64_t pieces(const Context&) const override { return 1; }
    void run(const Context& context, int64_t piece) const override;
    // The next layer with experts and its router.
    void guess(const Route& next, MatrixPtr router) {
        next_ = &next;
        next_router_ = std::move(router);
    }
    static int64_t scratch_bytes(const LinearKernels& linear, const Matrix& router);

  private:
    void choose(const float* scores, int32_t* chosen) const;
    void ask_for_expert(int32_t expert) const;
    void ask_for_next(const Context& context) const;

    int x_, scores_;
    ExpertRoom& room_;
    Weights weights_;
    const Route* next_ = nullptr;
    MatrixPtr next_router_;
};

// Instructions over entries.
class EntryInstruction : public Instruction {
  public:
    EntryInstruction(std::string label, ExpertRoom& room) : Instruction(std::move(label)), room_(room) {}
    int64_t pieces(const Context& context) const override;
    void run(const Context& context, int64_t piece) const final;

  protected:
    int64_t num_entries(const Context& context) const { return context.step.rows(Rows::Tokens) * room_.num_chosen; }
    virtual void entry(const Context& context, int64_t entry) const = 0;
    ExpertRoom& room_;
};

class PrepareEntries final : public EntryInstruction {
  public:
    PrepareEntries(int x, ExpertRoom& room) : EntryInstruction("experts: prepare", room), x_(x) {}

  protected:
    void entry(const Context& context, int64_t entry) const override;

  private:
    int x_;
};

class PrepareHidden final : public EntryInstruction {
  public:
    explicit PrepareHidden(ExpertRoom& room) : EntryInstruction("experts: prepare hidden", room) {}

  protected:
    void entry(const Context& context, int64_t entry) const override;
};

// Products of the matrices of all active experts with their entries: down, or gate and up with SiLU.
class ExpertProduct final : public Instruction {
  public:
    ExpertProduct(std::vector<MatrixPtr> gates, std::vector<MatrixPtr> ups, ExpertRoom& room)
        : Instruction("experts: gate, up"), first_(std::move(gates)), second_(std::move(ups)), room_(room) {}
    ExpertProduct(std::vector<MatrixPtr> downs, ExpertRoom& room) : Instruction("experts: down"), first_(std::move(downs)), room_(room) {}
    int64_t pieces(const Context& context) const override;
    void run(const Context& context, int64_t piece) const override;

  private:
    // Experts that may have entries, and the pieces of each.
    int64_t places(const Context& context) const;
    int64_t cuts(const Context& context) const;

    std::vector<MatrixPtr> first_, second_;
    ExpertRoom& room_;
};

class SumEntries final : public Instruction {
  public:
    SumEntries(ExpertRoom& room, int out) : Instruction("experts: sum"), room_(room), out_(out) {}
    int64_t pieces(const Context& context) const override;
    void run(const Context& context, int64_t piece) const override;

  private:
    ExpertRoom& room_;
    int out_;
};

}  // namespace herd
