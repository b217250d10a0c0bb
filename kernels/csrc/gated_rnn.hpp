// The reset-before gated recurrence: see affectrt_kernels/reference.py for the equations.
#pragma once

#include <cstddef>
#include <cstdint>

namespace affectrt {

// Everything is C-contiguous and checked by the caller; `lengths` and `h0` may be null.
struct GatedRnn {
    std::size_t streams, batch, steps, inputs, hidden, gates;
    bool reverse;
    const float* x;               // (S, B, T, I)
    const float* w_x;             // (S, (gates+1)·H, I), blocks z, (r,) candidate
    const float* w_h;             // (S, (gates+1)·H, H)
    const float* bias;            // (S, (gates+1)·H)
    const std::int64_t* lengths;  // (B,)
    const float* h0;              // (S, B, H)
    float* y;                     // (S, B, T, H)
    float* h_n;                   // (S, B, H)

    std::size_t length(std::size_t row) const {
        return lengths == nullptr ? steps : static_cast<std::size_t>(lengths[row]);
    }
};

// Weights of one stream in the order the kernel reads them: for each vector of outputs, for each input.
struct PackedStream {
    const float* w_x;
    const float* w_h;
    const float* bias;
};

// Rows of one stream that advance together, longest first.
struct RowBlock {
    std::size_t stream;
    const std::size_t* rows;
    std::size_t count;
};

// gated_rnn_kernel.cpp as compiled for one instruction set.
struct GatedRnnKernels {
    const char* name;
    std::size_t lanes;  // floats in a vector
    void (*pack)(const GatedRnn&, std::size_t stream, float* w_x, float* w_h, float* bias);
    void (*run)(const GatedRnn&, const PackedStream&, const RowBlock&, float* scratch);
};

constexpr std::size_t kRowsTogether = 16;

constexpr std::size_t padded(std::size_t hidden, std::size_t lanes) {
    return (hidden + lanes - 1) / lanes * lanes;
}

// Steps whose inputs are projected at once: enough for the GEMM, few enough to stay in the L2 cache.
constexpr std::size_t steps_together(std::size_t rows) { return rows >= 16 ? 16 : 256 / rows; }

// What `run` needs beside its arguments: the states, the reset states, and the sums of `steps_together` steps.
constexpr std::size_t scratch_floats(std::size_t padded_hidden, std::size_t gates, std::size_t rows) {
    return rows * padded_hidden * (2 + (gates + 1) * steps_together(rows));
}

}  // namespace affectrt
