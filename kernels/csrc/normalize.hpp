// Layer normalisation. Included once per instruction set.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace affectrt {
namespace {

constexpr float kVarianceFloor = 1e-5f;  // PyTorch's default

void normalize(const LayerNorm& p) {
    const std::size_t whole = p.dim / kLanes * kLanes;
    const float share = 1.0f / static_cast<float>(p.dim);
    for (std::size_t row = 0; row < p.rows; ++row) {
        const float* x = p.x + static_cast<std::ptrdiff_t>(row) * p.x_stride;
        float* y = p.y + static_cast<std::ptrdiff_t>(row) * p.y_stride;
        Lanes sums[2] = {};
        for (std::size_t i = 0; i < whole; i += kLanes) sums[i / kLanes % 2] += load(x + i);
        float mean = sum_of(sums[0] + sums[1]);
        for (std::size_t i = whole; i < p.dim; ++i) mean += x[i];
        mean *= share;

        Lanes squares[2] = {};
        for (std::size_t i = 0; i < whole; i += kLanes) {
            const Lanes off = load(x + i) - mean;
            squares[i / kLanes % 2] += off * off;
        }
        float variance = sum_of(squares[0] + squares[1]);
        for (std::size_t i = whole; i < p.dim; ++i) variance += (x[i] - mean) * (x[i] - mean);
        const float factor = 1.0f / __builtin_sqrtf(variance * share + kVarianceFloor);

        for (std::size_t i = 0; i < whole; i += kLanes)
            store(y + i, (load(x + i) - mean) * factor * load(p.scale + i) + load(p.shift + i));
        for (std::size_t i = whole; i < p.dim; ++i) y[i] = (x[i] - mean) * factor * p.scale[i] + p.shift[i];
    }
}

}  // namespace
}  // namespace affectrt
