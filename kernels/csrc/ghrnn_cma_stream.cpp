#include "ghrnn_cma_stream.hpp"

#include <limits>

namespace affectrt {

void Ring::expire(double time_s) {
    while (count_ > 0 && times_[first_] <= time_s) {
        first_ = (first_ + 1) % slots_;
        --count_;
    }
    if (count_ == 0) first_ = 0;
}

float* Ring::slot(Buffer& buffer, std::size_t index) const {
    const std::size_t lanes = kernels_->lanes;
    return buffer.data() + index / lanes * width_ * lanes + index % lanes;
}

void Ring::reserve(std::size_t more) {
    if (count_ + more <= slots_) return;
    const std::size_t lanes = kernels_->lanes;
    Ring larger(width_, *kernels_);
    larger.slots_ = padded(std::max(2 * slots_, count_ + more), lanes);
    larger.times_.resize(larger.slots_);
    for (Buffer* buffer : {&larger.keys_, &larger.values_})
        std::fill_n(buffer->at_least(larger.slots_ * width_), larger.slots_ * width_, 0.0f);
    for (std::size_t i = 0; i < count_; ++i) {
        const std::size_t from = (first_ + i) % slots_;
        for (std::size_t u = 0; u < width_; ++u) {
            larger.slot(larger.keys_, i)[u * lanes] = slot(keys_, from)[u * lanes];
            larger.slot(larger.values_, i)[u * lanes] = slot(values_, from)[u * lanes];
        }
        larger.times_[i] = times_[from];
    }
    larger.count_ = count_;
    *this = std::move(larger);
}

void Ring::push(const float* key_value, double time_s) {
    const std::size_t index = (first_ + count_) % slots_;
    float* const key = slot(keys_, index);
    float* const value = slot(values_, index);
    for (std::size_t u = 0; u < width_; ++u) {
        key[u * kernels_->lanes] = key_value[u];
        value[u * kernels_->lanes] = key_value[width_ + u];
    }
    times_[index] = time_s;
    ++count_;
}

void Ring::attend(RingAttention part, float* scratch) const {
    part.k = keys_.data();
    part.v = values_.data();
    part.slots = count_ == 0 ? 0 : slots_;
    part.first = first_;
    part.count = count_;
    kernels_->attend_ring(part, scratch);
}

GhrnnCmaStream::GhrnnCmaStream(const GhrnnCma& model, const float* no_word, double window_s)
    : model_(&model),
      window_s_(window_s),
      last_tick_s_(-std::numeric_limits<double>::infinity()),
      no_word_(no_word, no_word + model.sizes_.dims[0]),
      states_(kStreams * model.sizes_.hidden, 0.0f) {
    newest_s_.fill(-std::numeric_limits<double>::infinity());
    for (std::size_t m = 0; m < kModalities; ++m)
        before_[m].assign((model.sizes_.taps - 1) * model.sizes_.dims[m], 0.0f);
    for (std::size_t which = 0; which < kAnswers; ++which) rings_.emplace_back(model.sizes_.model, *model.kernels_);
    // The null slot of the text asks first, and sees the other null slots only.
    const std::size_t d = model.sizes_.model;
    std::array<const float*, kAnswers> heads{};
    for (std::size_t which = 0; which < kAnswers; ++which)
        heads[which] = model.answers_[which].null_key_value.data() + d;
    recur(model.nulls_[0].data(), heads, thread_scratch(recur_floats()));
}

std::size_t GhrnnCmaStream::recur_floats() const {
    const std::size_t d = model_->sizes_.model;
    return Pieces::rounded(kStreams * d) + Pieces::rounded(model_->width_) + Pieces::rounded(kStreams * 2 * d) +
           model_->rnn_.scratch(1, 1);
}

// One row of text, projected, and what attention answered it → the recurrences' next state.
void GhrnnCmaStream::recur(const float* text, const std::array<const float*, kAnswers>& heads, float* memory) {
    const std::size_t d = model_->sizes_.model;
    Pieces pieces(memory);
    float* const sides = pieces.take(kStreams * d);
    float* const brought = pieces.take(model_->width_);
    float* const pairs = pieces.take(kStreams * 2 * d);
    float* const rnn_memory = pieces.take(0);
    model_->norms_[0](text, d, 1, sides, d);
    for (std::size_t which = 0; which < kAnswers; ++which)
        model_->finish(which, heads[which], 1, brought, sides + (1 + which) * d);
    for (std::size_t s = 0; s < kStreams; ++s) {
        std::copy_n(sides + kSides[s][0] * d, d, pairs + s * 2 * d);
        std::copy_n(sides + kSides[s][1] * d, d, pairs + s * 2 * d + d);
    }
    GatedRnnCall call{};
    call.batch = call.steps = 1;
    call.x = pairs;
    call.h0 = call.h_n = states_.data();
    model_->rnn_.run(call, 1, rnn_memory);
}

void GhrnnCmaStream::step(double time_s, const float* text, const std::array<TimedRows, kAnswers>& rows,
                          float* sentiment, float* logits) {
    const GhrnnCmaSizes& sizes = model_->sizes_;
    const std::size_t d = sizes.model, width = model_->width_, joint = model_->query_.width();
    for (std::size_t which = 0; which < kAnswers; ++which) {
        rings_[which].expire(time_s - window_s_);
        rings_[which].reserve(rows[which].rows);
    }
    std::size_t normed_floats = 0, projection_floats = 0, most = 1, slots = 0;
    for (std::size_t m = 0; m < kModalities; ++m) {
        const std::size_t count = m == 0 ? 1 : rows[m - 1].rows;
        most = std::max(most, count);
        normed_floats = std::max(normed_floats, (count + model_->projections_[m].spare_rows()) * sizes.dims[m]);
        projection_floats = std::max(projection_floats, model_->projections_[m].scratch());
        if (m > 0) slots = std::max(slots, rings_[m - 1].slots());
    }
    std::size_t floats = 0;
    for (const std::size_t part : {normed_floats, projection_floats, most * width, most * joint, width, joint,
                                   kAnswers * width, attend_ring_scratch(slots), recur_floats(),
                                   model_->verdict_floats(1)})
        floats += Pieces::rounded(part);
    Pieces pieces(thread_scratch(floats));
    float* const normed = pieces.take(normed_floats);
    float* const projection_memory = pieces.take(projection_floats);
    float* const projected = pieces.take(most * width);
    float* const key_values = pieces.take(most * joint);
    float* const asking = pieces.take(width);
    float* const asked = pieces.take(joint);
    float* const heads = pieces.take(kAnswers * width);
    float* const attend_memory = pieces.take(attend_ring_scratch(slots));
    float* const recur_memory = pieces.take(recur_floats());
    float* const verdict_memory = pieces.take(model_->verdict_floats(1));

    const auto project = [&](std::size_t m, const float* values, std::size_t count, float* to) {
        const std::size_t kept = before_[m].size(), dim = sizes.dims[m];
        std::copy_n(before_[m].data(), kept, normed);
        model_->projections_[m](values, count, sizes.taps - 1, normed, to, width, projection_memory);
        std::copy_n(normed + count * dim, kept, before_[m].data());
    };
    for (std::size_t which = 0; which < kAnswers; ++which) {
        const TimedRows& fresh = rows[which];
        if (fresh.rows == 0) continue;
        project(1 + which, fresh.values, fresh.rows, projected);
        model_->answers_[which].key_value(projected, width, fresh.rows, key_values, joint);
        for (std::size_t i = 0; i < fresh.rows; ++i) {
            // Older than the window already: no query will see it.
            if (fresh.times_s[i] > time_s - window_s_) rings_[which].push(key_values + i * joint, fresh.times_s[i]);
        }
        newest_s_[which] = fresh.times_s[fresh.rows - 1];
    }
    project(0, text == nullptr ? no_word_.data() : text, 1, asking);
    model_->query_(asking, width, 1, asked, joint);
    std::array<const float*, kAnswers> answered{};
    for (std::size_t which = 0; which < kAnswers; ++which) {
        const std::vector<float>& null = model_->answers_[which].null_key_value;
        RingAttention part{};
        part.q = asked + which * d;
        part.heads = sizes.heads;
        part.dim = d / sizes.heads;
        part.null_k = null.data();
        part.null_v = null.data() + d;
        part.out = heads + which * width;
        rings_[which].attend(part, attend_memory);
        answered[which] = part.out;
    }
    recur(asking, answered, recur_memory);
    model_->verdict(states_.data(), 1, sentiment, logits, verdict_memory);
    last_tick_s_ = time_s;
    ++ticks_;
}

}  // namespace affectrt
