// The gated recurrence over a padded batch; see reference.py for the equations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"

namespace affectrt {

// Everything is C-contiguous and checked by the caller.
struct GatedRnnWeights {
    std::size_t streams, inputs, hidden, gates;
    const float* w_x;   // (S, (gates+1)·H, I), blocks z, (r,) candidate
    const float* w_h;   // (S, (gates+1)·H, H)
    const float* bias;  // (S, (gates+1)·H)
};

struct GatedRnnCall {
    std::size_t batch, steps;
    bool reverse;
    const float* x;               // (S, B, T, I)
    const std::int64_t* lengths;  // (B,) or null
    const float* h0;              // (S, B, H) or null
    float* y;                     // (S, B, T, H) or null
    float* h_n;                   // (S, B, H); may be `h0` when the batch is 1
};

// Weights in the order the kernels read them, for any number of calls from any number of threads.
class GatedRnn {
  public:
    GatedRnn(const GatedRnnWeights& weights, const Kernels& kernels);

    // With scratch of the calling thread. Throws std::bad_alloc only.
    void operator()(const GatedRnnCall& call, std::size_t threads) const;
    // With the caller's, of `scratch(batch, threads)` floats.
    void run(const GatedRnnCall& call, std::size_t threads, float* scratch) const;
    std::size_t scratch(std::size_t batch, std::size_t threads) const;

    std::size_t streams() const { return streams_; }
    std::size_t inputs() const { return inputs_; }
    std::size_t hidden() const { return hidden_; }
    std::size_t gates() const { return gates_; }

  private:
    std::size_t workers(std::size_t batch, std::size_t threads) const;
    std::size_t recur_floats(std::size_t batch) const;

    struct Stream {
        Packed w_x, w_gates, w_candidate;
        const float* bias;
    };
    std::size_t streams_, inputs_, hidden_, gates_;
    const Kernels* kernels_;
    Buffer memory_;
    std::vector<Stream> packed_;
};

}  // namespace affectrt
