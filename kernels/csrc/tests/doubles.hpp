// What the kernels compute, as plain loops in double precision.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "check.hpp"
#include "gated_rnn.hpp"
#include "ghrnn_cma.hpp"

namespace affectrt::tests {

// x (rows, depth) · wᵀ (depth, outputs) + bias; without a bias: null.
Doubles linear(const Doubles& x, std::size_t depth, const float* w, const float* bias, std::size_t outputs);

// Over the last axis.
Doubles layer_norm(const Doubles& x, std::size_t dim, const float* scale, const float* shift);

// Over time: x (T, dim), w (width, dim, taps); row t sees rows t − before … t − before + taps − 1, zeros beyond the ends.
Doubles convolution(const Doubles& x, std::size_t dim, const float* w, const float* bias, std::size_t width,
                    std::size_t taps, std::size_t before);

struct States {
    Doubles y, h_n;
};

// eq. 12 of ghrnn_cma, eq. 1–4 of mulg; the inputs of `call` come in double, its outputs are ignored.
States gated_rnn(const GatedRnnWeights& weights, const GatedRnnCall& call, const Doubles& x);

// Of one row of the batch and one head.
struct Attended {
    Doubles out, log_sums;
};

// q (queries, dim), k and v (keys, dim). `sees` (query, key).
Attended attention(const Doubles& q, const Doubles& k, const Doubles& v, std::size_t dim,
                   const std::function<bool(std::size_t, std::size_t)>& sees);

// The weights of a GHRNN-CMA by name, of random numbers. Names and shapes are those that the C++ asks for.
class RandomWeights {
  public:
    RandomWeights(const GhrnnCmaSizes& sizes, std::uint64_t seed) : sizes_(sizes), random_(seed) {}
    Weights source();
    const float* operator[](const std::string& name) const { return found_.at(name).data(); }
    const GhrnnCmaSizes& sizes() const { return sizes_; }

  private:
    GhrnnCmaSizes sizes_;
    Random random_;
    std::map<std::string, std::vector<float>> found_;
};

// One modality's rows, projected: (T, model).
Doubles projection(const RandomWeights& weights, std::size_t modality, const Doubles& x, std::size_t before);
// One modality's null slot.
Doubles null_slot(const RandomWeights& weights, std::size_t modality);

// Text rows (queries, model) attend to rows of audio (0) or vision (1); heads joined, projected, normalised.
Doubles answered(const RandomWeights& weights, std::size_t which, const Doubles& text, const Doubles& rows,
                 const std::function<bool(std::size_t, std::size_t)>& sees);

// What the recurrences make of text rows and the two answers, all (T, model): states (3, T, hidden).
Doubles states(const RandomWeights& weights, const Doubles& text, const std::array<Doubles, kAnswers>& answers);

// Of the states after row t of T.
struct Verdict {
    double sentiment;
    Doubles logits;
};
Verdict verdict(const RandomWeights& weights, const Doubles& states, std::size_t t, std::size_t steps);

}  // namespace affectrt::tests
