// The instructions that treat every row alike.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "program/instructions.h"

namespace herd {

int64_t RowInstruction::pieces(const Context& context) const {
    return std::min<int64_t>(context.rows(out_), 8 * context.machine.pool.workers());
}

void RowInstruction::run(const Context& context, int64_t piece) const {
    const int64_t rows = context.rows(out_), count = std::min<int64_t>(rows, 8 * context.machine.pool.workers());
    for (int64_t at = rows * piece / count; at < rows * (piece + 1) / count; ++at) row(context, at);
}

void Embed::row(const Context& context, int64_t row) const {
    int32_t token = context.step.tokens[static_cast<size_t>(row)];
    for (const auto& [alias, other] : aliases_) {
        if (token == alias) {
            token = other;
            break;
        }
    }
    context.machine.linear.unpack_row(*table_, token, context.floats(out_, row));
}

void Rotary::row(const Context& context, int64_t row) const {
    const double position = context.step.positions[static_cast<size_t>(row)];
    float* cosine = context.floats(out_, row);
    float* sine = cosine + frequencies_.size();
    for (size_t i = 0; i < frequencies_.size(); ++i) {
        cosine[i] = static_cast<float>(std::cos(position * frequencies_[i]) * magnitude_);
        sine[i] = static_cast<float>(std::sin(position * frequencies_[i]) * magnitude_);
    }
}

void Norm::row(const Context& context, int64_t row) const {
    const int64_t width = context.buffer(x_).width / heads_;
    for (int64_t head = 0; head < heads_; ++head) {
        context.machine.kernels.rms_norm(context.floats(x_, row) + head * width, weight_ ? weight_->as<float>() : nullptr, eps_, width,
                                         context.floats(out_, row) + head * width);
    }
}

void Temper::row(const Context& context, int64_t row) const {
    const double position = context.step.positions[static_cast<size_t>(row)];
    const double factor = 1.0 + scale_ * std::log(std::floor((position + 1.0) / floor_) + 1.0);
    context.machine.kernels.scale(context.floats(x_, row), static_cast<float>(factor), context.buffer(out_).width, context.floats(out_, row));
}

void Rotate::row(const Context& context, int64_t row) const {
    const int64_t width = context.buffer(x_).width, head_width = width / heads_, pairs = context.buffer(rotary_).width / 2;
    const float* cosine = context.floats(rotary_, row);
    float* out = context.floats(out_, row);
    if (out_ != x_) std::memcpy(out, context.floats(x_, row), static_cast<size_t>(width) * sizeof(float));
    for (int64_t head = 0; head < heads_; ++head) context.machine.kernels.rotate(out + head * head_width, cosine, cosine + pairs, pairs);
}

void SiluGate::row(const Context& context, int64_t row) const {
    context.machine.kernels.silu_gate(context.floats(gate_, row), context.floats(up_, row), context.buffer(out_).width, context.floats(out_, row));
}

void SigmoidGate::row(const Context& context, int64_t row) const {
    context.machine.kernels.sigmoid_gate(context.floats(x_, row), context.floats(gate_, row), context.buffer(out_).width, context.floats(out_, row));
}

void SoftCap::row(const Context& context, int64_t row) const {
    context.machine.kernels.soft_cap(context.floats(x_, row), factor_, cap_, context.buffer(out_).width, context.floats(out_, row));
}

void GatedAdd::row(const Context& context, int64_t row) const {
    if (!if_seen_ || context.step.seen[static_cast<size_t>(row)] != 0) {
        context.machine.kernels.add_scaled(context.floats(x_, row), context.floats(y_, row), factor_, context.buffer(out_).width, context.floats(out_, row));
    } else if (out_ != x_) {
        std::memcpy(context.floats(out_, row), context.floats(x_, row), static_cast<size_t>(context.buffer(out_).width) * sizeof(float));
    }
}

void Overlay::row(const Context& context, int64_t row) const {
    const int32_t from = context.step.feature_rows[static_cast<size_t>(row)];
    const float* source = from < 0 ? context.floats(x_, row) : context.step.features + from * context.step.feature_width;
    if (from >= 0 || out_ != x_) std::memcpy(context.floats(out_, row), source, static_cast<size_t>(context.buffer(out_).width) * sizeof(float));
}

void Copy::row(const Context& context, int64_t row) const {
    std::memcpy(context.floats(out_, row), context.floats(x_, row), static_cast<size_t>(context.buffer(out_).width) * sizeof(float));
}

void Add::row(const Context& context, int64_t row) const {
    context.machine.kernels.add(context.floats(x_, row), context.floats(y_, row), context.buffer(out_).width, context.floats(out_, row));
}

void Select::row(const Context& context, int64_t row) const {
    std::memcpy(context.floats(out_, row), context.floats(x_, context.step.output_rows[static_cast<size_t>(row)]),
                static_cast<size_t>(context.buffer(out_).width) * sizeof(float));
}

void CheckFinite::row(const Context& context, int64_t row) const {
    if (!context.machine.kernels.all_finite(context.floats(out_, row), context.buffer(out_).width)) context.not_finite[row].store(true, std::memory_order_relaxed);
}

bool Prepare::is_own(const Context& context) const { return context.rows(out_) <= context.buffer(out_).own_rows; }

int64_t Prepare::pieces(const Context& context) const { return is_own(context) ? 0 : RowInstruction::pieces(context); }

void Prepare::prepare_row(const Context& context, int64_t row, uint8_t* out) const {
    const float* x = context.floats(x_, selects_ ? context.step.output_rows[static_cast<size_t>(row)] : row);
    const int64_t width = context.buffer(x_).width;
    if (has_norm_) {
        auto* normed = reinterpret_cast<float*>(context.scratch);
        context.machine.kernels.rms_norm(x, weight_ ? weight_->as<float>() : nullptr, eps_, width, normed);
        x = normed;
    }
    context.machine.linear.prepare(context.buffer(out_).form, x, width, out);
}

void Prepare::row(const Context& context, int64_t row) const {
    Buffer& buffer = context.buffers[static_cast<size_t>(out_)];
    prepare_row(context, row, buffer.shared.data() + row * buffer.stride);
}

void Prepare::own(const Context& context) const {
    Buffer& buffer = context.buffers[static_cast<size_t>(out_)];
    uint8_t* rows = buffer.own.data() + context.worker * buffer.own_rows * buffer.stride;
    for (int64_t row = 0; row < context.rows(out_); ++row) prepare_row(context, row, rows + row * buffer.stride);
}

const uint8_t* Prepare::prepared(const Context& context) const {
    const Buffer& buffer = context.buffer(out_);
    return is_own(context) ? buffer.own.data() + context.worker * buffer.own_rows * buffer.stride : buffer.shared.data();
}

}  // namespace herd
