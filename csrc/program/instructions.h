// The instructions of a program. Arguments were checked when they were built (program.cpp).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "program/program.h"

namespace herd {

// Instructions that treat every row alike: pieces are runs of rows.
class RowInstruction : public Instruction {
  public:
    RowInstruction(std::string label, int out) : Instruction(std::move(label)), out_(out) {}
    int64_t pieces(const Context& context) const override;
    void run(const Context& context, int64_t piece) const final;

  protected:
    virtual void row(const Context& context, int64_t row) const = 0;
    const int out_;
};

class Embed final : public RowInstruction {
  public:
    Embed(MatrixPtr table, Aliases aliases, int out) : RowInstruction("embed", out), table_(std::move(table)), aliases_(std::move(aliases)) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    MatrixPtr table_;
    Aliases aliases_;
};

// Row: cosines, then sines, in double precision until stored.
class Rotary final : public RowInstruction {
  public:
    Rotary(std::vector<double> frequencies, double magnitude, int out)
        : RowInstruction("rotary", out), frequencies_(std::move(frequencies)), magnitude_(magnitude) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    std::vector<double> frequencies_;
    double magnitude_;
};

// Of each of `heads` equal parts of a row by itself; `weight` is as wide as a part.
class Norm final : public RowInstruction {
  public:
    Norm(int x, FloatsPtr weight, float eps, int64_t heads, int out)
        : RowInstruction("norm", out), x_(x), weight_(std::move(weight)), eps_(eps), heads_(heads) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int x_;
    FloatsPtr weight_;
    float eps_;
    int64_t heads_;
};

class Temper final : public RowInstruction {
  public:
    Temper(int x, double floor, double scale, int out) : RowInstruction("temper", out), x_(x), floor_(floor), scale_(scale) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int x_;
    double floor_, scale_;
};

class Rotate final : public RowInstruction {
  public:
    Rotate(int x, int rotary, int out, int64_t heads) : RowInstruction("rotate", out), x_(x), rotary_(rotary), heads_(heads) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int x_, rotary_;
    int64_t heads_;
};

class SiluGate final : public RowInstruction {
  public:
    SiluGate(int gate, int up, int out) : RowInstruction("silu gate", out), gate_(gate), up_(up) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int gate_, up_;
};

class SigmoidGate final : public RowInstruction {
  public:
    SigmoidGate(int x, int gate, int out) : RowInstruction("sigmoid gate", out), x_(x), gate_(gate) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int x_, gate_;
};

class SoftCap final : public RowInstruction {
  public:
    SoftCap(int x, float factor, float cap, int out) : RowInstruction("soft cap", out), x_(x), factor_(factor), cap_(cap) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int x_;
    float factor_, cap_;
};

// x + factor * y; with `if_seen` only in rows that see a picture.
class GatedAdd final : public RowInstruction {
  public:
    GatedAdd(int x, int y, float factor, bool if_seen, int out)
        : RowInstruction("gated add", out), x_(x), y_(y), factor_(factor), if_seen_(if_seen) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int x_, y_;
    float factor_;
    bool if_seen_;
};

// x, or what the step's pictures have for the row.
class Overlay final : public RowInstruction {
  public:
    Overlay(int x, int out) : RowInstruction("overlay", out), x_(x) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int x_;
};

class Copy final : public RowInstruction {
  public:
    Copy(int x, int out) : RowInstruction("copy", out), x_(x) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int x_;
};

class Add final : public RowInstruction {
  public:
    Add(int x, int y, int out) : RowInstruction("add", out), x_(x), y_(y) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int x_, y_;
};

class Select final : public RowInstruction {
  public:
    Select(int x, int out) : RowInstruction("select", out), x_(x) {}

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    int x_;
};

class CheckFinite final : public RowInstruction {
  public:
    explicit CheckFinite(int x) : RowInstruction("check finite", x) {}

  protected:
    void row(const Context& context, int64_t row) const override;
};

// Rows as products want them. When there are few rows it has no pieces: products then call `own` in every worker.
class Prepare final : public RowInstruction {
  public:
    Prepare(int x, bool has_norm, FloatsPtr weight, float eps, bool selects, int out)
        : RowInstruction(has_norm ? "norm + prepare" : "prepare", out), x_(x), has_norm_(has_norm), weight_(std::move(weight)), eps_(eps), selects_(selects) {}

    int64_t pieces(const Context& context) const override;
    bool is_own(const Context& context) const;
    // Prepares all rows for this worker alone.
    void own(const Context& context) const;
    // The first prepared row, for this worker.
    const uint8_t* prepared(const Context& context) const;

  protected:
    void row(const Context& context, int64_t row) const override;

  private:
    void prepare_row(const Context& context, int64_t row, uint8_t* out) const;

    int x_;
    bool has_norm_;
    FloatsPtr weight_;
    float eps_;
    bool selects_;
};

// One or several products over the same rows. A piece is a run of panels of one term (with After::SiluGate: of both), and of tokens.
class Product final : public Instruction {
  public:
    Product(std::string label, std::vector<Term> terms, std::vector<const Prepare*> prepares, After after, AttentionInputs inputs)
        : Instruction(std::move(label)), terms_(std::move(terms)), prepares_(std::move(prepares)), after_(after), inputs_(inputs) {}

    int64_t pieces(const Context& context) const override;
    void begin(const Context& context) const override;
    void run(const Context& context, int64_t piece) const override;

  private:
    // Panels [first, last) of a term for rows [row, row + rows).
    struct Block {
        size_t term;
        int64_t first, last, row, rows;
    };
    int64_t unit_panels(const Context& context) const;
    int64_t cuts(const Context& context, size_t term) const;
    int64_t row_blocks(const Context& context) const;
    void multiply(const Context& context, const Block& block) const;
    void after_attention_inputs(const Context& context, const Block& block) const;
    void check_finite(const Context& context, const Block& block) const;

    std::vector<Term> terms_;
    std::vector<const Prepare*> prepares_;  // of each term's input
    After after_;
    AttentionInputs inputs_;
};

// Keys and values of this step into the cache: rows [row, row + rows) of `x`, one kv head.
void store_in_cache(const Context& context, bool keys, int64_t layer, int64_t head, int x, int64_t row, int64_t rows);

class Store final : public Instruction {
  public:
    Store(int k, int v, int64_t layer) : Instruction("store"), k_(k), v_(v), layer_(layer) {}
    int64_t pieces(const Context& context) const override;
    void run(const Context& context, int64_t piece) const override;

  private:
    int k_, v_;
    int64_t layer_;
};

class Attention final : public Instruction {
  public:
    Attention(int q, int64_t layer, float scale, int64_t group, Sight sight, int out)
        : Instruction("attention"), q_(q), layer_(layer), scale_(scale), group_(group), sight_(sight), out_(out) {}
    int64_t pieces(const Context& context) const override;
    void run(const Context& context, int64_t piece) const override;

  private:
    void attend(const Context& context, const Step::Part& tile, int64_t head, int64_t split_begin, int64_t split_end, float* partial) const;
    void run_shared(const Context& context, int64_t piece) const;

    int q_;
    int64_t layer_;
    float scale_;
    int64_t group_;
    Sight sight_;
    int out_;
};

// Queries of rows that see pictures against those pictures' keys and values; 0 in the other rows.
class CrossAttention final : public Instruction {
  public:
    CrossAttention(int q, int64_t layer, int64_t heads, float scale, int out)
        : Instruction("cross attention"), q_(q), layer_(layer), heads_(heads), scale_(scale), out_(out) {}
    int64_t pieces(const Context& context) const override;
    void run(const Context& context, int64_t piece) const override;

  private:
    int64_t tile_rows(const Step::Sighted& part) const;
    int64_t pieces_of(const Step::Sighted& part) const;

    int q_;
    int64_t layer_, heads_;
    float scale_;
    int out_;
};

}  // namespace herd
