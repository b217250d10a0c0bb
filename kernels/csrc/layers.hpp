// The layers of a fusion model, their weights packed once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"

namespace affectrt {

// (outputs, depth) row-major, as PyTorch keeps it.
struct Matrix {
    const float* data;
    std::size_t outputs, depth;
};

// y = W x + b. Rows of y are `width` floats: the outputs and padding, which is 0.
class Linear {
  public:
    Linear(const Matrix& w, const float* bias, const Kernels& kernels)
        : kernels_(&kernels),
          width_(padded(w.outputs, kernels.lanes)),
          depth_(w.depth),
          weights_(width_ * w.depth),
          bias_(width_) {
        kernels.pack(w.data, 1, w.outputs, w.depth, weights_.data());
        std::fill_n(bias_.data(), width_, 0.0f);
        std::copy_n(bias, w.outputs, bias_.data());
    }

    std::size_t width() const { return width_; }
    const float* bias() const { return bias_.data(); }

    // x: rows of `depth` floats, which may overlap.
    void operator()(const float* x, std::size_t x_stride, std::size_t rows, float* y, std::size_t y_stride) const {
        kernels_->multiply({x, static_cast<std::ptrdiff_t>(x_stride), false, rows,
                            Packed{weights_.data(), depth_, width_ / kernels_->lanes}, bias_.data(), 0, y,
                            static_cast<std::ptrdiff_t>(y_stride)});
    }

  private:
    const Kernels* kernels_;
    std::size_t width_, depth_;
    Buffer weights_, bias_;
};

// Layer normalisation over the last axis.
class Norm {
  public:
    Norm(const float* scale, const float* shift, std::size_t dim, const Kernels& kernels)
        : kernels_(&kernels), scale_(scale, scale + dim), shift_(shift, shift + dim) {}

    std::size_t dim() const { return scale_.size(); }

    void operator()(const float* x, std::size_t x_stride, std::size_t rows, float* y, std::size_t y_stride) const {
        kernels_->normalize({x, static_cast<std::ptrdiff_t>(x_stride), rows, dim(), scale_.data(), shift_.data(), y,
                             static_cast<std::ptrdiff_t>(y_stride)});
    }

  private:
    const Kernels* kernels_;
    std::vector<float> scale_, shift_;
};

// Layer normalisation, then a convolution over time.
class Projection {
  public:
    // conv (width, dim, taps), as PyTorch keeps it.
    Projection(const float* scale, const float* shift, const float* conv, const float* bias, std::size_t width,
               std::size_t dim, std::size_t taps, const Kernels& kernels)
        : kernels_(&kernels),
          taps_(taps),
          norm_(scale, shift, dim, kernels),
          direct_(by_tap(conv, bias, width, dim, taps, kernels)),
          tiled_(taps == 3 ? kTilePoints * direct_.width() * dim : 0) {
        if (taps != 3) return;
        std::vector<float> sums(width * dim);
        for (std::size_t point = 0; point < kTilePoints; ++point) {
            for (std::size_t i = 0; i < width * dim; ++i) {
                double sum = 0.0;
                for (std::size_t tap = 0; tap < 3; ++tap)
                    sum += kTileWeights[point][tap] * static_cast<double>(conv[i * 3 + tap]);
                sums[i] = static_cast<float>(sum);
            }
            float* const to = tiled_.data() + point * direct_.width() * dim;
            kernels.pack(sums.data(), 1, width, dim, to);
            points_[point] = {to, dim, direct_.width() / kernels.lanes};
        }
    }

    std::size_t dim() const { return norm_.dim(); }
    std::size_t taps() const { return taps_; }

    // Rows of `normed` beside those that are projected: the neighbours of the first and last, and room for a tile.
    std::size_t spare_rows() const { return taps_ - 1 + kTileRows - 1; }
    std::size_t scratch() const { return taps_ == 3 ? convolve_scratch(dim(), direct_.width()) : 0; }

    // x (rows, dim) → y (rows, width). `normed` is (rows + spare_rows(), dim); its first `before` rows are there
    // already, what follows on x is 0.
    void operator()(const float* x, std::size_t rows, std::size_t before, float* normed, float* y,
                    std::size_t y_stride, float* scratch) const {
        norm_(x, dim(), rows, normed + before * dim(), dim());
        std::fill_n(normed + (before + rows) * dim(), (spare_rows() - before) * dim(), 0.0f);
        if (taps_ != 3 || rows < 2 * kTileRows) {
            // `taps` rows as they lie in memory are one row of a product.
            direct_(normed, dim(), rows, y, y_stride);
        } else {
            kernels_->convolve({normed, rows, dim(), points_, direct_.bias(), y,
                                static_cast<std::ptrdiff_t>(y_stride)}, scratch);
        }
    }

  private:
    static Linear by_tap(const float* conv, const float* bias, std::size_t width, std::size_t dim, std::size_t taps,
                         const Kernels& kernels) {
        std::vector<float> ordered(width * dim * taps);
        for (std::size_t o = 0; o < width; ++o)
            for (std::size_t i = 0; i < dim; ++i)
                for (std::size_t tap = 0; tap < taps; ++tap)
                    ordered[(o * taps + tap) * dim + i] = conv[(o * dim + i) * taps + tap];
        return Linear({ordered.data(), width, taps * dim}, bias, kernels);
    }

    const Kernels* kernels_;
    std::size_t taps_;
    Norm norm_;
    Linear direct_;
    Buffer tiled_;
    Packed points_[kTilePoints] = {};
};

}  // namespace affectrt
