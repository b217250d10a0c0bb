#include "ghrnn_cma.hpp"

#include <cstring>

namespace affectrt {
namespace {

const char* const kNames[kModalities] = {"text", "audio", "vision"};
const char* const kAnswerNames[kAnswers] = {"text_to_audio", "text_to_vision"};
constexpr float kSentimentLimit = 3.0f;

std::vector<std::size_t> shape(std::initializer_list<std::size_t> sizes) { return sizes; }

}  // namespace

GhrnnCma::GhrnnCma(const GhrnnCmaSizes& sizes, const Weights& weights, const Kernels& kernels)
    : sizes_(sizes),
      kernels_(&kernels),
      width_(padded(sizes.model, kernels.lanes)),
      query_([&] {
          const std::size_t d = sizes.model;
          std::vector<float> w, bias;
          for (const char* name : kAnswerNames) {
              const float* const part = weights(std::string(name) + ".query.weight", shape({d, d}));
              const float* const shift = weights(std::string(name) + ".query.bias", shape({d}));
              w.insert(w.end(), part, part + d * d);
              bias.insert(bias.end(), shift, shift + d);
          }
          return Linear({w.data(), kAnswers * d, d}, bias.data(), kernels);
      }()),
      rnn_({kStreams, 2 * sizes.model, sizes.hidden, 1,
            weights("w_x", shape({kStreams, 2 * sizes.hidden, 2 * sizes.model})),
            weights("w_h", shape({kStreams, 2 * sizes.hidden, sizes.hidden})),
            weights("bias", shape({kStreams, 2 * sizes.hidden}))},
           kernels),
      fused_({weights("fused.weight", shape({sizes.fused, kStreams * sizes.hidden})), sizes.fused,
              kStreams * sizes.hidden},
             weights("fused.bias", shape({sizes.fused})), kernels),
      heads_([&] {
          const float* const sentiment = weights("sentiment.weight", shape({1, sizes.fused}));
          const float* const emotion = weights("emotion.weight", shape({sizes.emotions, sizes.fused}));
          std::vector<float> w(sentiment, sentiment + sizes.fused), bias(1, *weights("sentiment.bias", shape({1})));
          w.insert(w.end(), emotion, emotion + sizes.emotions * sizes.fused);
          const float* const shift = weights("emotion.bias", shape({sizes.emotions}));
          bias.insert(bias.end(), shift, shift + sizes.emotions);
          return Linear({w.data(), 1 + sizes.emotions, sizes.fused}, bias.data(), kernels);
      }()) {
    const std::size_t d = sizes.model;
    for (std::size_t m = 0; m < kModalities; ++m) {
        const std::string name = kNames[m];
        const std::size_t dim = sizes.dims[m];
        projections_.emplace_back(weights(name + ".norm.weight", shape({dim})),
                                  weights(name + ".norm.bias", shape({dim})),
                                  weights(name + ".conv.weight", shape({d, dim, sizes.taps})),
                                  weights(name + ".conv.bias", shape({d})), d, dim, sizes.taps, kernels);
        const float* const null = weights(name + ".null", shape({d}));
        nulls_.emplace_back(null, null + d);
        const std::string norm = "norms." + std::to_string(m);
        norms_.emplace_back(weights(norm + ".weight", shape({d})), weights(norm + ".bias", shape({d})), d, kernels);
    }
    for (std::size_t which = 0; which < kAnswers; ++which)
        answers_.push_back(answer(weights, kAnswerNames[which], nulls_[1 + which].data()));
}

GhrnnCma::Answer GhrnnCma::answer(const Weights& weights, const char* name, const float* null) const {
    const std::size_t d = sizes_.model;
    const std::string at = name;
    Answer made{Linear({weights(at + ".key_value.weight", shape({2 * d, d})), 2 * d, d},
                       weights(at + ".key_value.bias", shape({2 * d})), *kernels_),
                Linear({weights(at + ".out.weight", shape({d, d})), d, d}, weights(at + ".out.bias", shape({d})),
                       *kernels_),
                {}};
    made.null_key_value.resize(made.key_value.width());
    made.key_value(null, d, 1, made.null_key_value.data(), made.key_value.width());
    return made;
}

void GhrnnCma::finish(std::size_t which, const float* heads, std::size_t count, float* rows, float* attended) const {
    answers_[which].out(heads, width_, count, rows, width_);
    norms_[1 + which](rows, width_, count, attended, sizes_.model);
}

std::size_t GhrnnCma::verdict_floats(std::size_t count) const {
    return Pieces::rounded(count * kStreams * sizes_.hidden) + Pieces::rounded(count * fused_.width()) +
           Pieces::rounded(count * heads_.width());
}

void GhrnnCma::verdict(const float* last, std::size_t count, float* sentiment, float* logits, float* scratch) const {
    Pieces pieces(scratch);
    const std::size_t h = sizes_.hidden;
    float* const states = pieces.take(count * kStreams * h);
    float* const fused = pieces.take(count * fused_.width());
    float* const out = pieces.take(count * heads_.width());
    for (std::size_t s = 0; s < kStreams; ++s)
        for (std::size_t r = 0; r < count; ++r)
            std::copy_n(last + (s * count + r) * h, h, states + (r * kStreams + s) * h);
    fused_(states, kStreams * h, count, fused, fused_.width());
    for (std::size_t i = 0; i < count * fused_.width(); ++i) fused[i] = fused[i] < 0.0f ? 0.0f : fused[i];
    heads_(fused, fused_.width(), count, out, heads_.width());
    for (std::size_t r = 0; r < count; ++r) {
        const float* const row = out + r * heads_.width();
        const float value = row[0] > kSentimentLimit ? kSentimentLimit : row[0];
        sentiment[r] = value < -kSentimentLimit ? -kSentimentLimit : value;
        std::copy_n(row + 1, sizes_.emotions, logits + r * sizes_.emotions);
    }
}

void GhrnnCma::operator()(const std::array<FeatureRows, kModalities>& features, const unsigned* subsets,
                          std::size_t count, float* sentiment, float* logits) const {
    if (count == 0) return;
    const std::size_t d = sizes_.model, h = sizes_.hidden;
    unsigned used = 0;
    for (std::size_t r = 0; r < count; ++r) used |= subsets[r];
    std::array<std::size_t, kModalities> rows{};  // with the null slot; 1 where nobody wants the modality
    std::size_t normed_floats = 0, projection_floats = 0, longest = 1;
    for (std::size_t m = 0; m < kModalities; ++m) {
        rows[m] = 1 + ((used >> m & 1u) != 0 ? features[m].rows : 0);
        longest = std::max(longest, rows[m]);
        normed_floats = std::max(normed_floats, (rows[m] + projections_[m].spare_rows()) * sizes_.dims[m]);
        projection_floats = std::max(projection_floats, projections_[m].scratch());
    }
    const std::size_t queries = rows[0], pair = kAnswers * d, joint = query_.width();
    const std::size_t attend_floats = attend_scratch(kernels_->panel, d / sizes_.heads);
    const std::size_t rnn_floats = rnn_.scratch(count, 1);

    std::size_t floats = 0;
    for (const std::size_t part :
         {normed_floats, projection_floats, longest * width_, longest * joint, queries * joint, 2 * queries * width_, kStreams * queries * d,
          kAnswers * d, kStreams * count * queries * pair, kStreams * count * h, 2 * count, attend_floats, rnn_floats,
          verdict_floats(count)})
        floats += Pieces::rounded(part);
    Pieces pieces(thread_scratch(floats));
    float* const normed = pieces.take(normed_floats);
    float* const projection_memory = pieces.take(projection_floats);
    float* const projected = pieces.take(longest * width_);
    float* const key_values = pieces.take(longest * joint);
    float* const asked = pieces.take(queries * joint);
    float* const work = pieces.take(2 * queries * width_);
    float* const attended = pieces.take(kStreams * queries * d);  // normalised: text, then each answer
    float* const unanswered = pieces.take(kAnswers * d);           // what attention yields on a null slot alone
    float* const pairs = pieces.take(kStreams * count * queries * pair);
    float* const last = pieces.take(kStreams * count * h);
    auto* const lengths = reinterpret_cast<std::int64_t*>(pieces.take(2 * count));
    float* const attend_memory = pieces.take(attend_floats);
    float* const rnn_memory = pieces.take(rnn_floats);
    float* const verdict_memory = pieces.take(verdict_floats(count));

    const auto project = [&](std::size_t m) {  // (rows, width_), the null slot first
        std::copy_n(nulls_[m].data(), d, projected);
        const std::size_t before = projections_[m].taps() / 2;
        if (rows[m] == 1) return;
        std::fill_n(normed, before * sizes_.dims[m], 0.0f);
        projections_[m](features[m].values, rows[m] - 1, before, normed, projected + width_, width_,
                        projection_memory);
    };

    project(0);
    norms_[0](projected, width_, queries, attended, d);
    query_(projected, width_, queries, asked, joint);
    float* const heads = work;
    float* const brought = work + queries * width_;
    for (std::size_t which = 0; which < kAnswers; ++which) {
        const Answer& answer = answers_[which];
        finish(which, answer.null_key_value.data() + d, 1, brought, unanswered + which * d);
        const std::size_t keys = rows[1 + which];
        float* const answered = attended + (1 + which) * queries * d;
        if (keys == 1) {
            for (std::size_t i = 0; i < queries; ++i) std::copy_n(unanswered + which * d, d, answered + i * d);
            continue;
        }
        project(1 + which);
        answer.key_value(projected, width_, keys, key_values, joint);
        for (std::size_t head = 0; head < sizes_.heads; ++head) {
            const std::size_t dim = d / sizes_.heads, at = head * dim;
            for (std::size_t first = 0; first < queries; first += kernels_->panel) {
                Attention part{};
                part.q = asked + first * joint + which * d + at;
                part.k = key_values + at;
                part.v = key_values + d + at;
                part.q_stride = part.k_stride = part.v_stride = static_cast<std::ptrdiff_t>(joint);
                part.queries = std::min(kernels_->panel, queries - first);
                part.keys = keys;
                part.dim = dim;
                part.out = heads + first * width_ + at;
                part.out_stride = static_cast<std::ptrdiff_t>(width_);
                kernels_->attend(part, attend_memory);
            }
        }
        finish(which, heads, queries, brought, answered);
    }

    for (std::size_t r = 0; r < count; ++r) {
        const auto counts = [&](std::size_t m) { return (subsets[r] >> m & 1u) != 0; };
        const std::size_t length = counts(0) ? queries : 1;
        lengths[r] = static_cast<std::int64_t>(length);
        const auto side = [&](std::size_t m, std::size_t i) -> const float* {
            if (m > 0 && !counts(m)) return unanswered + (m - 1) * d;
            return attended + (m * queries + i) * d;
        };
        for (std::size_t s = 0; s < kStreams; ++s) {
            float* to = pairs + (s * count + r) * queries * pair;
            for (std::size_t i = 0; i < length; ++i, to += pair) {
                std::copy_n(side(kSides[s][0], i), d, to);
                std::copy_n(side(kSides[s][1], i), d, to + d);
            }
        }
    }
    GatedRnnCall call{};
    call.batch = count;
    call.steps = queries;
    call.x = pairs;
    call.lengths = lengths;
    call.h_n = last;
    rnn_.run(call, 1, rnn_memory);  // eq. 10, 12
    verdict(last, count, sentiment, logits, verdict_memory);
}

}  // namespace affectrt
