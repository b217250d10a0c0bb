// Layer normalisation. Included once per instruction set.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace affectrt {
namespace {

constexpr float kVarianceFloor = 1e-5f;  // PyTorch's default

// Σ f(x) over `whole` floats, in four sums to hide the latency of the additions.
template <typename Term>
inline float sum_over(const float* x, std::size_t whole, const Term& term) {
    Lanes a = {}, b = {}, c = {}, d = {};
    std::size_t i = 0;
    for (; i + 4 * kLanes <= whole; i += 4 * kLanes) {
        a += term(load(x + i));
        b += term(load(x + i + kLanes));
        c += term(load(x + i + 2 * kLanes));
        d += term(load(x + i + 3 * kLanes));
    }
    for (; i < whole; i += kLanes) a += term(load(x + i));
    return sum_of((a + b) + (c + d));
}

void normalize(const LayerNorm& p) {
    const std::size_t whole = p.dim / kLanes * kLanes;
    const float share = 1.0f / static_cast<float>(p.dim);
    for (std::size_t row = 0; row < p.rows; ++row) {
        const float* x = p.x + static_cast<std::ptrdiff_t>(row) * p.x_stride;
        float* y = p.y + static_cast<std::ptrdiff_t>(row) * p.y_stride;
        float mean = sum_over(x, whole, [](Lanes lanes) { return lanes; });
        for (std::size_t i = whole; i < p.dim; ++i) mean += x[i];
        mean *= share;
        float variance = sum_over(x, whole, [&](Lanes lanes) { return (lanes - mean) * (lanes - mean); });
        for (std::size_t i = whole; i < p.dim; ++i) variance += (x[i] - mean) * (x[i] - mean);
        const float factor = 1.0f / __builtin_sqrtf(variance * share + kVarianceFloor);

        for (std::size_t i = 0; i < whole; i += kLanes)
            store(y + i, (load(x + i) - mean) * factor * load(p.scale + i) + load(p.shift + i));
        for (std::size_t i = whole; i < p.dim; ++i) y[i] = (x[i] - mean) * factor * p.scale[i] + p.shift[i];
    }
}

}  // namespace
}  // namespace affectrt
