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
    const std::size_t batch = call.batch;
    if (streams_ == 0 || batch == 0) return;
    const std::size_t blocks = (batch + kRowsTogether - 1) / kRowsTogether;
    const std::size_t tasks = streams_ * blocks;
    const std::size_t workers = std::max<std::size_t>(1, std::min(threads, tasks));
    const std::size_t units = padded(hidden_, kernels_->lanes);
    const std::size_t each = Pieces::rounded(recur_scratch(units, gates_, std::min(batch, kRowsTogether)));
    static_assert(sizeof(std::size_t) <= 2 * sizeof(float), "rows and lengths lie in scratch of floats");
    Pieces pieces(thread_scratch(workers * each + 2 * Pieces::rounded(2 * batch)));
    float* const scratch = pieces.take(workers * each);
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

    share(tasks, workers, [&](std::size_t task, std::size_t worker) {
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
