// Attention with an online softmax. Included once per instruction set.
//
// Lanes are queries: a block of scores is (keys, queries), so maximum, exponential and sum run down the lanes and
// nothing is added across a vector, and keys and values are read where they lie, whatever their width.
#pragma once

#include "kernels.hpp"
#include "multiply.hpp"
#include "simd.hpp"

namespace affectrt {
namespace {

constexpr float kLn2 = 0.693147181f;

// Hides the scores of keys outside each query's window; `from` is the block's first key. The null slot stays.
inline void hide_outside(float* scores, std::size_t from, std::size_t count, const float* edges, std::size_t width) {
    for (std::size_t j = from == 0 ? 1 : 0; j < count; ++j) {
        const Lanes key = broadcast(static_cast<float>(from + j));
        for (std::size_t i = 0; i < width; i += kLanes) {
            const Lanes score = load(scores + j * width + i);
            const Lanes after_first = key >= load(edges + i) ? score : broadcast(-kInfinity);
            store(scores + j * width + i, key < load(edges + width + i) ? after_first : broadcast(-kInfinity));
        }
    }
}

constexpr std::size_t kTogether = 4;

// Scores become weights relative to the new maximum; what came before is scaled to it.
inline void softmax_block(float* scores, std::size_t count, std::size_t width, float* maximum, float* sum, float* out,
                          std::size_t dim) {
    for (std::size_t i = 0; i < width; i += kLanes) {
        const Lanes before = load(maximum + i);
        Lanes top = before;
        Lanes tops[4] = {before, before, before, before};
        std::size_t next = 0;
        for (; next + 4 <= count; next += 4)
            for (std::size_t j = 0; j < 4; ++j) tops[j] = max(tops[j], load(scores + (next + j) * width + i));
        for (; next < count; ++next) top = max(top, load(scores + next * width + i));
        top = max(max(top, tops[0]), max(max(tops[1], tops[2]), tops[3]));
        Lanes total = {};
        std::size_t j = 0;
        for (; j + kTogether <= count; j += kTogether) {
            float* const at = scores + j * width + i;
            Lanes weights[kTogether];
#pragma GCC unroll 8
            for (std::size_t k = 0; k < kTogether; ++k) weights[k] = load(at + k * width) - top;
            exp2(weights);
#pragma GCC unroll 8
            for (std::size_t k = 0; k < kTogether; ++k) store(at + k * width, weights[k]);
#pragma GCC unroll 8
            for (std::size_t k = 0; k < kTogether; ++k) total += weights[k];
        }
        for (; j < count; ++j) {
            const Lanes weight = exp2(load(scores + j * width + i) - top);
            total += weight;
            store(scores + j * width + i, weight);
        }
        const Lanes kept = exp2(before - top);
        store(maximum + i, top);
        store(sum + i, load(sum + i) * kept + total);
        for (std::size_t d = 0; d < dim; ++d) store(out + d * width + i, load(out + d * width + i) * kept);
    }
}

void attend(const Attention& p, float* scratch) {
    const std::size_t width = padded(p.queries, kLanes);
    const auto stride = static_cast<std::ptrdiff_t>(width);
    float* const q = scratch;                       // (dim, width), scaled for powers of two
    float* const out = q + p.dim * width;           // (dim, width)
    float* const scores = out + p.dim * width;      // (kKeysTogether, width)
    float* const maximum = scores + kKeysTogether * width;
    float* const sum = maximum + width;
    float* const edges = sum + width;               // (2, width)

    const float scale = kLog2E / __builtin_sqrtf(static_cast<float>(p.dim));
    for (std::size_t i = 0; i < width; ++i) {
        const bool real = i < p.queries;
        const float* from = p.q + static_cast<std::ptrdiff_t>(real ? i : 0) * p.q_stride;
        for (std::size_t d = 0; d < p.dim; ++d) q[d * width + i] = real ? from[d] * scale : 0.0f;
    }
    std::memset(out, 0, p.dim * width * sizeof(float));
    for (std::size_t i = 0; i < width; ++i) {
        maximum[i] = -kInfinity;
        sum[i] = 0.0f;
    }
    std::size_t first_seen = p.keys, last_seen = p.keys;
    if (p.windows != nullptr) {
        last_seen = 0;
        const auto keys = static_cast<std::int64_t>(p.keys);
        for (std::size_t i = 0; i < width; ++i) {
            const std::size_t query = i < p.queries ? i : p.queries - 1;
            std::int64_t low = p.windows[2 * query], high = p.windows[2 * query + 1];
            low = low < 0 ? 0 : low > keys ? keys : low;
            high = high < low ? low : high > keys ? keys : high;
            edges[i] = static_cast<float>(low);  // exact: fewer than 2^24 keys
            edges[width + i] = static_cast<float>(high);
            if (low == high) continue;
            if (static_cast<std::size_t>(low) < first_seen) first_seen = static_cast<std::size_t>(low);
            if (static_cast<std::size_t>(high) > last_seen) last_seen = static_cast<std::size_t>(high);
        }
    }

    for (std::size_t from = 0; from < p.keys; from += kKeysTogether) {
        std::size_t count = p.keys - from < kKeysTogether ? p.keys - from : kKeysTogether;
        if (p.windows != nullptr) {
            if (from != 0 && (from >= last_seen || from + count <= first_seen)) continue;
            if (from == 0 && first_seen >= count) count = 1;  // the null slot alone
        }
        const auto key = static_cast<std::ptrdiff_t>(from);
        const std::size_t vectors = width / kLanes;
        multiply({p.k + key * p.k_stride, p.k_stride, false, count, {q, p.dim, vectors}, nullptr, 0, scores, stride});
        if (p.windows != nullptr) hide_outside(scores, from, count, edges, width);
        softmax_block(scores, count, width, maximum, sum, out, p.dim);
        multiply({p.v + key * p.v_stride, p.v_stride, true, p.dim, {scores, count, vectors}, out, stride, out, stride});
    }

    for (std::size_t i = 0; i < width; i += kLanes) {
        const Lanes total = load(sum + i);
        const Lanes share = 1.0f / total;
        for (std::size_t d = 0; d < p.dim; ++d) store(out + d * width + i, load(out + d * width + i) * share);
        if (p.log_sum != nullptr) store(sum + i, (load(maximum + i) + log2(total)) * kLn2);
    }
    for (std::size_t i = 0; i < p.queries; ++i) {
        float* to = p.out + static_cast<std::ptrdiff_t>(i) * p.out_stride;
        for (std::size_t d = 0; d < p.dim; ++d) to[d] = out[d * width + i];
        if (p.log_sum != nullptr) p.log_sum[i] = sum[i];
    }
}

}  // namespace
}  // namespace affectrt
