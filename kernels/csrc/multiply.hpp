// Matrix products with the sums in registers. Included once per instruction set.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace affectrt {
namespace {

// A panel is the vectors of outputs that one tile computes; with kRows rows it fills the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr std::size_t kPanel = 4;  // 32 registers
#else
constexpr std::size_t kPanel = 2;  // 16 registers
#endif
constexpr std::size_t kRows = 6;

// Few rows leave few sums in flight; more sums over parts of the depth hide the latency of the additions.
constexpr std::size_t parts(std::size_t rows, std::size_t vectors) {
    return rows * vectors <= 1 ? 8 : rows * vectors <= 2 ? 4 : rows * vectors <= 4 ? 2 : 1;
}

template <std::size_t Rows, std::size_t Vectors, bool Transposed>
inline void tile(const Product& p, std::size_t row, const float* w, std::size_t first) {
    constexpr std::size_t kParts = parts(Rows, Vectors);
    constexpr std::size_t kWidth = Vectors * kLanes;
    const auto at = static_cast<std::ptrdiff_t>(row);
    const float* a = Transposed ? p.a + row : p.a + at * p.a_stride;
    const std::ptrdiff_t step = Transposed ? p.a_stride : 1;
    // Two pointers and a stride reach six rows: more pointers than that would not stay in registers.
    const float* low = a;
    const float* high = Transposed ? a + 3 : a + 3 * p.a_stride;
    const std::ptrdiff_t apart = Transposed ? 1 : p.a_stride;
    const auto element = [&](std::size_t m) {
        return m < 3 ? low[static_cast<std::ptrdiff_t>(m) * apart] : high[static_cast<std::ptrdiff_t>(m - 3) * apart];
    };
    Lanes sum[kParts][Rows][Vectors];
#pragma GCC unroll 8
    for (std::size_t m = 0; m < Rows; ++m) {
        const std::ptrdiff_t from = (at + static_cast<std::ptrdiff_t>(m)) * p.start_stride;
#pragma GCC unroll 4
        for (std::size_t v = 0; v < Vectors; ++v) {
            sum[0][m][v] = p.start == nullptr ? Lanes{} : load(p.start + from + first + v * kLanes);
#pragma GCC unroll 8
            for (std::size_t part = 1; part < kParts; ++part) sum[part][m][v] = Lanes{};
        }
    }
    std::size_t k = 0;
    for (; k + kParts <= p.w.depth; k += kParts) {
#pragma GCC unroll 8
        for (std::size_t part = 0; part < kParts; ++part) {
            // In this order the compiler needs one register beside sums and columns.
            Lanes column[Vectors];
#pragma GCC unroll 4
            for (std::size_t v = 0; v < Vectors; ++v) column[v] = load(w + v * kLanes);
#pragma GCC unroll 8
            for (std::size_t m = 0; m < Rows; ++m) {
                const Lanes value = broadcast(element(m));
#pragma GCC unroll 4
                for (std::size_t v = 0; v < Vectors; ++v) sum[part][m][v] += value * column[v];
            }
            w += kWidth;
            low += step;
            high += step;
        }
    }
    for (; k < p.w.depth; ++k, w += kWidth, low += step, high += step)
        for (std::size_t v = 0; v < Vectors; ++v)
            for (std::size_t m = 0; m < Rows; ++m) sum[0][m][v] += element(m) * load(w + v * kLanes);
#pragma GCC unroll 8
    for (std::size_t m = 0; m < Rows; ++m) {
        float* c = p.c + (at + static_cast<std::ptrdiff_t>(m)) * p.c_stride + first;
#pragma GCC unroll 4
        for (std::size_t v = 0; v < Vectors; ++v) {
            Lanes total = sum[0][m][v];
#pragma GCC unroll 8
            for (std::size_t part = 1; part < kParts; ++part) total += sum[part][m][v];
            store(c + v * kLanes, total);
        }
    }
}

template <std::size_t Vectors, bool Transposed>
inline void panel_product(const Product& p, const float* w, std::size_t first) {
    std::size_t row = 0;
    for (; row + kRows <= p.rows; row += kRows) tile<kRows, Vectors, Transposed>(p, row, w, first);
    switch (p.rows - row) {
        case 5: return tile<5, Vectors, Transposed>(p, row, w, first);
        case 4: return tile<4, Vectors, Transposed>(p, row, w, first);
        case 3: return tile<3, Vectors, Transposed>(p, row, w, first);
        case 2: return tile<2, Vectors, Transposed>(p, row, w, first);
        case 1: return tile<1, Vectors, Transposed>(p, row, w, first);
        default: return;
    }
}

template <bool Transposed>
inline void product(const Product& p) {
    const float* w = p.w.weights;
    for (std::size_t vector = 0; vector < p.w.vectors;) {
        const std::size_t left = p.w.vectors - vector;
        const std::size_t vectors = left < kPanel ? left : kPanel;
        const std::size_t first = vector * kLanes;
        switch (vectors) {
            case 1: panel_product<1, Transposed>(p, w, first); break;
            case 2: panel_product<2, Transposed>(p, w, first); break;
#if defined(__AVX512F__) || defined(__aarch64__)
            case 3: panel_product<3, Transposed>(p, w, first); break;
            default: panel_product<4, Transposed>(p, w, first); break;
#else
            default: break;
#endif
        }
        w += vectors * kLanes * p.w.depth;
        vector += vectors;
    }
}

void multiply(const Product& p) {
    if (p.a_transposed) return product<true>(p);
    product<false>(p);
}

}  // namespace
}  // namespace affectrt
