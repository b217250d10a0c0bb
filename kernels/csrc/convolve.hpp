// Convolution of three taps over time with half the multiplications. Included once per instruction set.
//
// Winograd's F(4, 3) (arXiv:1509.09308 §4.1, after Cook and Toom): four outputs are six products of a sum of inputs with
// a sum of weights, instead of twelve. The points 0, 1, −1, ½, −2 and ∞ keep the error at twice that of a plain sum.
#pragma once

#include "kernels.hpp"
#include "multiply.hpp"
#include "simd.hpp"

namespace affectrt {
namespace {

// Six rows x (dim) → six rows v, each `v_stride` apart.
inline void transform_inputs(const float* x, std::size_t dim, float* v, std::size_t v_stride) {
    std::size_t i = 0;
    const auto at = [&](std::size_t row) { return load(x + row * dim + i); };
    for (; i + kLanes <= dim; i += kLanes) {
        const Lanes x0 = at(0), x1 = at(1), x2 = at(2), x3 = at(3), x4 = at(4), x5 = at(5);
        store(v + i, x0 - 1.5f * x1 - 2.0f * x2 + 1.5f * x3 + x4);
        store(v + v_stride + i, x4 - x1 + 0.5f * x2 + 2.5f * x3);
        store(v + 2 * v_stride + i, x4 + x1 - 2.5f * x2 + 0.5f * x3);
        store(v + 3 * v_stride + i, x4 - x2 + 2.0f * (x3 - x1));
        store(v + 4 * v_stride + i, x4 - x2 + 0.5f * (x1 - x3));
        store(v + 5 * v_stride + i, x5 + x1 - 1.5f * x2 - 2.0f * x3 + 1.5f * x4);
    }
    for (; i < dim; ++i) {
        const float x0 = x[i], x1 = x[dim + i], x2 = x[2 * dim + i], x3 = x[3 * dim + i], x4 = x[4 * dim + i],
                    x5 = x[5 * dim + i];
        v[i] = x0 - 1.5f * x1 - 2.0f * x2 + 1.5f * x3 + x4;
        v[v_stride + i] = x4 - x1 + 0.5f * x2 + 2.5f * x3;
        v[2 * v_stride + i] = x4 + x1 - 2.5f * x2 + 0.5f * x3;
        v[3 * v_stride + i] = x4 - x2 + 2.0f * (x3 - x1);
        v[4 * v_stride + i] = x4 - x2 + 0.5f * (x1 - x3);
        v[5 * v_stride + i] = x5 + x1 - 1.5f * x2 - 2.0f * x3 + 1.5f * x4;
    }
}

// Six rows m, each `m_stride` apart → the first `rows` of four rows of y.
inline void transform_outputs(const float* m, std::size_t m_stride, const float* bias, std::size_t width, std::size_t rows,
                              float* y, std::ptrdiff_t y_stride) {
    for (std::size_t i = 0; i < width; i += kLanes) {
        const auto at = [&](std::size_t row) { return load(m + row * m_stride + i); };
        const Lanes shift = load(bias + i), m3 = at(3), m4 = at(4);
        const Lanes sum = at(1) + at(2) + shift, difference = at(1) - at(2) + shift;
        store(y + i, at(0) + sum + m3 + m4);
        if (rows > 1) store(y + y_stride + i, difference + 0.5f * m3 - 2.0f * m4);
        if (rows > 2) store(y + 2 * y_stride + i, sum + 0.25f * m3 + 4.0f * m4);
        if (rows > 3) store(y + 3 * y_stride + i, difference + 0.125f * m3 - 8.0f * m4 + at(5));
    }
}

void convolve(const Convolution& p, float* scratch) {
    const std::size_t width = p.w[0].vectors * kLanes;
    const auto v_stride = static_cast<std::ptrdiff_t>(p.dim);
    const auto m_stride = static_cast<std::ptrdiff_t>(width);
    float* const v = scratch;                                        // (6, kTilesTogether, dim)
    float* const m = v + kTilePoints * kTilesTogether * p.dim;       // (6, kTilesTogether, width)
    const std::size_t tiles = (p.rows + kTileRows - 1) / kTileRows;
    for (std::size_t first = 0; first < tiles; first += kTilesTogether) {
        const std::size_t count = tiles - first < kTilesTogether ? tiles - first : kTilesTogether;
        for (std::size_t i = 0; i < count; ++i)
            transform_inputs(p.x + (first + i) * kTileRows * p.dim, p.dim, v + i * p.dim, kTilesTogether * p.dim);
        for (std::size_t point = 0; point < kTilePoints; ++point)
            multiply({v + point * kTilesTogether * p.dim, v_stride, false, count, p.w[point], nullptr, 0,
                      m + point * kTilesTogether * width, m_stride});
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t row = (first + i) * kTileRows;
            const std::size_t rows = p.rows - row < kTileRows ? p.rows - row : kTileRows;
            float* const y = p.y + static_cast<std::ptrdiff_t>(row) * p.y_stride;
            transform_outputs(m + i * width, kTilesTogether * width, p.bias, width, rows, y, p.y_stride);
        }
    }
}

}  // namespace
}  // namespace affectrt
