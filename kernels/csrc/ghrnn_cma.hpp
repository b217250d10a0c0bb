// The whole GHRNN-CMA fusion (ghrnn_cma §3.2, eq. 9–12): features in, sentiment and emotion logits out.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "gated_rnn.hpp"
#include "layers.hpp"

namespace affectrt {

constexpr std::size_t kModalities = 3;  // text, audio, vision
constexpr std::size_t kAnswers = 2;     // audio and vision answer, text asks
constexpr std::size_t kStreams = 3;     // the pairs of eq. 9: [t; at], [t; vt], [at; vt]
constexpr std::size_t kSides[kStreams][2] = {{0, 1}, {0, 2}, {1, 2}};

// A weight by its name in the state dict, checked to have this shape.
using Weights = std::function<const float*(const std::string& name, const std::vector<std::size_t>& shape)>;

struct GhrnnCmaSizes {
    std::array<std::size_t, kModalities> dims;  // features per row
    std::size_t model, heads, hidden, fused, taps, emotions;
};

// One modality's rows (T, D).
struct FeatureRows {
    const float* values;
    std::size_t rows;
};

class GhrnnCma {
  public:
    GhrnnCma(const GhrnnCmaSizes& sizes, const Weights& weights, const Kernels& kernels);

    const GhrnnCmaSizes& sizes() const { return sizes_; }

    // One result for each subset: bit m says that modality m counts. sentiment (count,), logits (count, emotions).
    void operator()(const std::array<FeatureRows, kModalities>& features, const unsigned* subsets, std::size_t count,
                    float* sentiment, float* logits) const;

  private:
    friend class GhrnnCmaStream;

    struct Answer {  // how one modality answers the text
        Linear key_value;
        Linear out;
        std::vector<float> null_key_value;  // (2 · model)
    };

    Answer answer(const Weights& weights, const char* name, const float* null) const;

    // Attended heads (count, width_) → the model's width, in `rows` (count, width_) → normalised (count, model).
    void finish(std::size_t which, const float* heads, std::size_t count, float* rows, float* attended) const;

    // Last states (streams, count, hidden) → sentiment and logits (eq. 11).
    void verdict(const float* last, std::size_t count, float* sentiment, float* logits, float* scratch) const;
    std::size_t verdict_floats(std::size_t count) const;

    GhrnnCmaSizes sizes_;
    const Kernels* kernels_;
    std::size_t width_;  // of a padded row of the model's
    std::vector<Projection> projections_;
    std::vector<std::vector<float>> nulls_;  // (model) each
    Linear query_;                           // text → queries for audio, for vision
    std::vector<Answer> answers_;
    std::vector<Norm> norms_;
    GatedRnn rnn_;
    Linear fused_;
    Linear heads_;  // sentiment, emotions
};

}  // namespace affectrt
