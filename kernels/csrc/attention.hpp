// Directed pairwise cross-modal attention over a padded batch; see reference.py for the equations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.hpp"

namespace affectrt {

// A tensor (B, rows, N, D) whose heads lie contiguously; strides are in floats.
struct Rows {
    const float* data;
    std::ptrdiff_t batch_stride, row_stride;
};

// One directed pair, checked by the caller. Row 0 of each modality is its null slot.
struct Pair {
    Rows q, k, v;
    std::size_t queries, keys;          // rows, null slots included
    const std::int64_t* query_lengths;  // (B,) without the null slot; null: all
    const std::int64_t* key_lengths;
    const std::int64_t* windows;        // (B, queries, 2) or null
    float* out;                         // (B, queries, N, D)
    float* log_sums;                    // (B, N, queries) or null
};

// Computes all of `out` and `log_sums`; padded queries give 0 and +∞. Throws std::bad_alloc only.
void pairwise_attention(const Pair* pairs, std::size_t count, std::size_t batch, std::size_t heads, std::size_t dim,
                        const Kernels& kernels, std::size_t threads);

}  // namespace affectrt
