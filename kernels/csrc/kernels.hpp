// What is compiled once per instruction set, behind one table of functions. Plain structs and pointers only: the
// caller checks shapes, owns memory and shares work between threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace affectrt {

// A matrix (outputs, depth) in the order `multiply` reads it; outputs are padded with zeros to whole vectors.
struct Packed {
    const float* weights;
    std::size_t depth;
    std::size_t vectors;  // of outputs
};

// c (rows, outputs) = start + a · wᵀ. Strides are in floats.
struct Product {
    const float* a;            // (rows, depth), or where `a_transposed` (depth, rows)
    std::ptrdiff_t a_stride;
    bool a_transposed;
    std::size_t rows;
    Packed w;
    const float* start;        // (rows, outputs), null for zeros; a stride of 0 starts every row alike: a bias
    std::ptrdiff_t start_stride;
    float* c;                  // may be `start`
    std::ptrdiff_t c_stride;
};

// y (rows, outputs) of three taps over time: row t is bias + Σ_tap w_tap · x[t + tap].
struct Convolution {
    const float* x;    // (rows rounded up to kTileRows, + 2; dim)
    std::size_t rows, dim;
    const Packed* w;   // kTilePoints matrices (outputs, dim): kTileWeights of the taps
    const float* bias;
    float* y;
    std::ptrdiff_t y_stride;
};

// y = (x − mean) / √(variance + 1e-5) ∘ scale + shift, row by row.
struct LayerNorm {
    const float* x;
    std::ptrdiff_t x_stride;
    std::size_t rows;
    std::size_t dim;
    const float* scale;
    const float* shift;
    float* y;
    std::ptrdiff_t y_stride;
};

// Rows of one stream of the gated recurrence that advance together, longest first; see reference.py for the equations.
struct Recurrence {
    std::size_t inputs, hidden, gates;
    bool reverse;
    Packed w_x, w_gates, w_candidate;
    const float* bias;           // padded like the outputs of w_x
    const float* x;              // (B, T, I) of this stream
    std::ptrdiff_t x_row;        // floats from row to row
    const float* h0;             // (B, H) or null
    float* y;                    // (B, T, H) or null
    float* h_n;                  // (B, H)
    std::size_t steps;           // T
    const std::size_t* rows;     // which of the batch, longest first
    const std::size_t* lengths;  // of these rows
    std::size_t count;
};

// Up to `panel` queries of one head against the keys of one row of the batch. Strides are in floats.
struct Attention {
    const float* q;  // (queries, dim)
    std::ptrdiff_t q_stride;
    std::size_t queries;
    const float* k;  // (keys, dim); the first is the null slot
    std::ptrdiff_t k_stride;
    const float* v;
    std::ptrdiff_t v_stride;
    std::size_t keys;
    std::size_t dim;
    const std::int64_t* windows;  // (queries, 2) first key seen and the one after the last; null: all
    float* out;                   // (queries, dim)
    std::ptrdiff_t out_stride;
    float* log_sum;               // (queries,) or null
};

// One query of every head against a ring of keys: what an incremental tick computes.
struct RingAttention {
    const float* q;          // (heads · dim)
    std::size_t heads, dim;
    const float* null_k;     // (heads · dim)
    const float* null_v;
    const float* k;          // (slots / lanes, heads · dim, lanes)
    const float* v;          // likewise
    std::size_t slots;       // a multiple of the lanes
    std::size_t first;       // slot of the oldest key
    std::size_t count;       // keys in the ring
    float* out;              // (heads · dim)
};

// kernels.cpp as compiled for one instruction set.
struct Kernels {
    const char* name;
    std::size_t lanes;          // floats in a vector
    std::size_t panel;          // queries that `attend` takes at most
    // (blocks · rows, depth) row-major → Packed::weights; every block is padded to whole vectors on its own.
    void (*pack)(const float* w, std::size_t blocks, std::size_t rows, std::size_t depth, float* packed);
    void (*multiply)(const Product&);
    void (*convolve)(const Convolution&, float* scratch);
    void (*normalize)(const LayerNorm&);
    void (*recur)(const Recurrence&, float* scratch);
    void (*attend)(const Attention&, float* scratch);
    void (*attend_ring)(const RingAttention&, float* scratch);
};

constexpr std::size_t padded(std::size_t count, std::size_t lanes) { return (count + lanes - 1) / lanes * lanes; }

constexpr std::size_t kRowsTogether = 16;

// Steps whose inputs are projected at once: enough for the product, few enough to stay in the L2 cache.
constexpr std::size_t steps_together(std::size_t rows) { return rows >= 16 ? 16 : 256 / rows; }

// What `recur` needs: the states, the reset states, and the sums of `steps_together` steps.
constexpr std::size_t recur_scratch(std::size_t padded_hidden, std::size_t gates, std::size_t rows) {
    return rows * padded_hidden * (2 + (gates + 1) * steps_together(rows));
}

constexpr std::size_t kTileRows = 4;
constexpr std::size_t kTilePoints = 6;
constexpr std::size_t kTilesTogether = 24;

// What `convolve` needs: transformed inputs and products of some tiles.
constexpr std::size_t convolve_scratch(std::size_t dim, std::size_t padded_outputs) {
    return kTilePoints * kTilesTogether * (dim + padded_outputs);
}

// The weights of each point from those of the three taps.
constexpr double kTileWeights[kTilePoints][3] = {{1.0, 0.0, 0.0},
                                                 {1.0 / 3, 1.0 / 3, 1.0 / 3},
                                                 {-1.0 / 3, 1.0 / 3, -1.0 / 3},
                                                 {-16.0 / 15, -8.0 / 15, -4.0 / 15},
                                                 {1.0 / 15, -2.0 / 15, 4.0 / 15},
                                                 {0.0, 0.0, 1.0}};

constexpr std::size_t kKeysTogether = 64;

// What `attend` needs: queries and outputs (dim, panel), the scores of a block of keys, maximum, sum and window edges.
constexpr std::size_t attend_scratch(std::size_t panel, std::size_t dim) {
    return panel * (2 * dim + kKeysTogether + 4);
}

// What `attend_ring` needs: the weights of one head's keys, and which slots are in use.
constexpr std::size_t attend_ring_scratch(std::size_t slots) { return 2 * slots; }

}  // namespace affectrt
