// Attention of one query to a ring of keys. Included once per instruction set.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace affectrt {
namespace {

// Lanes are keys here: there is but one query.
void attend_ring(const RingAttention& p, float* scratch) {
    const std::size_t width = p.heads * p.dim;
    float* const weights = scratch;         // (slots,)
    float* const hidden = weights + p.slots;  // (slots,): 0 where a key lies, else −∞
    for (std::size_t slot = 0; slot < p.slots; ++slot) {
        const std::size_t age = slot >= p.first ? slot - p.first : slot + p.slots - p.first;
        hidden[slot] = age < p.count ? 0.0f : -kInfinity;
    }
    const float scale = kLog2E / __builtin_sqrtf(static_cast<float>(p.dim));
    for (std::size_t head = 0; head < p.heads; ++head) {
        const std::size_t at = head * p.dim;
        const float* const q = p.q + at;
        float null_score = 0.0f;
        for (std::size_t d = 0; d < p.dim; ++d) null_score += q[d] * p.null_k[at + d];
        null_score *= scale;

        Lanes tops = broadcast(null_score);
        for (std::size_t slot = 0; slot < p.slots; slot += kLanes) {
            const float* k = p.k + slot * width + at * kLanes;
            Lanes score = {}, other = {};
            std::size_t d = 0;
            for (; d + 2 <= p.dim; d += 2) {
                score += q[d] * load(k + d * kLanes);
                other += q[d + 1] * load(k + (d + 1) * kLanes);
            }
            if (d < p.dim) score += q[d] * load(k + d * kLanes);
            score = (score + other) * scale + load(hidden + slot);
            store(weights + slot, score);
            tops = max(tops, score);
        }
        float top = null_score;
        for (std::size_t lane = 0; lane < kLanes; ++lane) top = tops[lane] > top ? tops[lane] : top;
        Lanes sums = {};
        for (std::size_t slot = 0; slot < p.slots; slot += kLanes) {
            const Lanes weight = exp2(load(weights + slot) - top);
            store(weights + slot, weight);
            sums += weight;
        }
        const float null_weight = exp2(broadcast(null_score - top))[0];
        const float share = 1.0f / (null_weight + sum_of(sums));

        constexpr std::size_t kTogether = 4;
        for (std::size_t d = 0; d < p.dim; d += kTogether) {
            const std::size_t count = p.dim - d < kTogether ? p.dim - d : kTogether;
            Lanes out[kTogether] = {};
            for (std::size_t slot = 0; slot < p.slots; slot += kLanes) {
                const float* v = p.v + slot * width + (at + d) * kLanes;
                const Lanes weight = load(weights + slot);
                if (count == kTogether) {
#pragma GCC unroll 4
                    for (std::size_t i = 0; i < kTogether; ++i) out[i] += weight * load(v + i * kLanes);
                } else {
                    for (std::size_t i = 0; i < count; ++i) out[i] += weight * load(v + i * kLanes);
                }
            }
            for (std::size_t i = 0; i < count; ++i)
                p.out[at + d + i] = (sum_of(out[i]) + null_weight * p.null_v[at + d + i]) * share;
        }
    }
}

}  // namespace
}  // namespace affectrt
