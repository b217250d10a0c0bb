// The causal GHRNN-CMA one tick at a time: what a tick costs does not depend on how long the stream has run.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "ghrnn_cma.hpp"

namespace affectrt {

// New rows of audio or vision since the last tick, with their times.
struct TimedRows {
    const float* values;    // (rows, D)
    const double* times_s;  // (rows,), not decreasing and none after the tick
    std::size_t rows;
};

// Keys and values of the last seconds.
class Ring {
  public:
    Ring(std::size_t width, const Kernels& kernels) : width_(width), kernels_(&kernels) {}

    // Forget what lies at or before `time_s`.
    void expire(double time_s);
    // Make room for so many more. Throws std::bad_alloc.
    void reserve(std::size_t more);
    // key_value: (2 · width).
    void push(const float* key_value, double time_s);

    std::size_t count() const { return count_; }
    std::size_t slots() const { return slots_; }
    bool empty() const { return count_ == 0; }
    double newest_s() const { return times_[(first_ + count_ - 1) % slots_]; }

    void attend(RingAttention part, float* scratch) const;

  private:
    float* slot(Buffer& buffer, std::size_t index) const;

    std::size_t width_;
    const Kernels* kernels_;
    std::size_t slots_ = 0, first_ = 0, count_ = 0;
    Buffer keys_, values_;  // (slots / lanes, width, lanes)
    std::vector<double> times_;
};

// One person's state. The model must outlive it; not for two threads at once.
class GhrnnCmaStream {
  public:
    // `no_word` (D_text) stands for the text of a tick in which no word ended.
    GhrnnCmaStream(const GhrnnCma& model, const float* no_word, double window_s);

    // One result at `time_s`. `text` (D_text) is the mean of the words that ended since the last tick, or null.
    // Throws std::bad_alloc only, and then nothing has changed.
    void step(double time_s, const float* text, const std::array<TimedRows, kAnswers>& rows, float* sentiment,
              float* logits);

    double window_s() const { return window_s_; }
    double last_tick_s() const { return last_tick_s_; }
    double newest_s(std::size_t which) const { return newest_s_[which]; }
    // Results since the start.
    std::size_t ticks() const { return ticks_; }

  private:
    void recur(const float* text, const std::array<const float*, kAnswers>& heads, float* memory);
    std::size_t recur_floats() const;

    const GhrnnCma* model_;
    double window_s_, last_tick_s_;
    std::array<double, kAnswers> newest_s_;
    std::size_t ticks_ = 0;
    std::vector<float> no_word_;
    std::array<std::vector<float>, kModalities> before_;  // the last taps − 1 normalised rows
    std::vector<Ring> rings_;
    std::vector<float> states_;  // (streams, hidden)
};

}  // namespace affectrt
