#include "gated_rnn.hpp"

#include <algorithm>
#include <numeric>

#include "threads.hpp"

namespace affectrt {

GatedRnn::GatedRnn(const GatedRnnWeights& w, const Kernels& kernels)
    : streams_(w.streams), inputs_(w.inputs), hidden_(w.hidden), gates_(w.gates), kernels_(&kernels) {
    const std::size_t units = padded(hidden_, kernels.lanes);
    const std::size_t blocks = gates_ + 1;
    Pieces pieces(memory_.at_least(
        streams_ * (Pieces::rounded(blocks * units * inputs_) + Pieces::rounded(gates_ * units * hidden_) +
                    Pieces::rounded(units * hidden_) + Pieces::rounded(blocks * units))));
    const auto packed = [&](const float* from, std::size_t count, std::size_t depth) {
        float* const to = pieces.take(count * units * depth);
        kernels.pack(from, count, hidden_, depth, to);
        return Packed{to, depth, count * units / kernels.lanes};
    };
    packed_.reserve(streams_);
    for (std::size_t s = 0; s < streams_; ++s) {
        const float* const w_h = w.w_h + s * blocks * hidden_ * hidden_;
        Stream stream{};
        stream.w_x = packed(w.w_x + s * blocks * hidden_ * inputs_, blocks, inputs_);
        stream.w_gates = packed(w_h, gates_, hidden_);
        stream.w_candidate = packed(w_h + gates_ * hidden_ * hidden_, 1, hidden_);
        float* const bias = pieces.take(blocks * units);
        std::fill_n(bias, blocks * units, 0.0f);
        for (std::size_t block = 0; block < blocks; ++block)
            std::copy_n(w.bias + (s * blocks + block) * hidden_, hidden_, bias + block * units);
        stream.bias = bias;
        packed_.push_back(stream);
    }
}

void GatedRnn::operator()(const GatedRnnCall& call, std::size_t threads) const {
    run(call, threads, thread_scratch(scratch(call.batch, threads)));
}

std::size_t GatedRnn::workers(std::size_t batch, std::size_t threads) const {
    const std::size_t blocks = (batch + kRowsTogether - 1) / kRowsTogether;
    return std::max<std::size_t>(1, std::min(threads, streams_ * blocks));
}

std::size_t GatedRnn::recur_floats(std::size_t batch) const {
    const std::size_t units = padded(hidden_, kernels_->lanes);
    return Pieces::rounded(recur_scratch(units, gates_, std::max<std::size_t>(1, std::min(batch, kRowsTogether))));
}

std::size_t GatedRnn::scratch(std::size_t batch, std::size_t threads) const {
    return workers(batch, threads) * recur_floats(batch) + 2 * Pieces::rounded(2 * batch);
}

void GatedRnn::run(const GatedRnnCall& call, std::size_t threads, float* memory) const {
    const std::size_t batch = call.batch;
    if (streams_ == 0 || batch == 0) return;
    const std::size_t blocks = (batch + kRowsTogether - 1) / kRowsTogether;
    const std::size_t each = recur_floats(batch);
    static_assert(sizeof(std::size_t) <= 2 * sizeof(float), "rows and lengths lie in scratch of floats");
    Pieces pieces(memory);
    float* const scratch = pieces.take(workers(batch, threads) * each);
    auto* const rows = reinterpret_cast<std::size_t*>(pieces.take(2 * batch));
    auto* const lengths = reinterpret_cast<std::size_t*>(pieces.take(2 * batch));

    // Longest first, so that the rows still running at a step are always the first of their block.
    const auto length = [&](std::size_t row) {
        return call.lengths == nullptr ? call.steps : static_cast<std::size_t>(call.lengths[row]);
    };
    std::iota(rows, rows + batch, std::size_t{0});
    std::sort(rows, rows + batch, [&](std::size_t a, std::size_t b) {
        return length(a) != length(b) ? length(a) > length(b) : a < b;
    });
    std::transform(rows, rows + batch, lengths, length);

    share(streams_ * blocks, threads, [&](std::size_t task, std::size_t worker) {
        const std::size_t s = task / blocks, first = task % blocks * kRowsTogether;
        const Stream& stream = packed_[s];
        Recurrence part{};
        part.inputs = inputs_;
        part.hidden = hidden_;
        part.gates = gates_;
        part.reverse = call.reverse;
        part.w_x = stream.w_x;
        part.w_gates = stream.w_gates;
        part.w_candidate = stream.w_candidate;
        part.bias = stream.bias;
        part.x = call.x + s * batch * call.steps * inputs_;
        part.x_row = static_cast<std::ptrdiff_t>(call.steps * inputs_);
        part.h0 = call.h0 == nullptr ? nullptr : call.h0 + s * batch * hidden_;
        part.y = call.y == nullptr ? nullptr : call.y + s * batch * call.steps * hidden_;
        part.h_n = call.h_n + s * batch * hidden_;
        part.steps = call.steps;
        part.rows = rows + first;
        part.lengths = lengths + first;
        part.count = std::min(kRowsTogether, batch - first);
        kernels_->recur(part, scratch + worker * each);
    });
}

}  // namespace affectrt
