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
    std::size_t depth() const { return depth_; }

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

// Layer normalisation, then a convolution over time: `taps` rows as they lie in memory are one row of a product.
class Projection {
  public:
    // conv (width, dim, taps), as PyTorch keeps it.
    Projection(const float* scale, const float* shift, const float* conv, const float* bias, std::size_t width,
               std::size_t dim, std::size_t taps, const Kernels& kernels)
        : taps_(taps), norm_(scale, shift, dim, kernels), conv_(by_tap(conv, bias, width, dim, taps, kernels)) {}

    std::size_t dim() const { return norm_.dim(); }
    std::size_t taps() const { return taps_; }

    // `normed` holds taps − 1 rows more than `rows`, and `before` of them are there already: they come first, the
    // others last and are cleared. y: (rows, width).
    void operator()(const float* x, std::size_t rows, std::size_t before, float* normed, float* y,
                    std::size_t y_stride) const {
        const std::size_t after = taps_ - 1 - before;
        norm_(x, dim(), rows, normed + before * dim(), dim());
        std::fill_n(normed + (before + rows) * dim(), after * dim(), 0.0f);
        conv_(normed, dim(), rows, y, y_stride);
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

    std::size_t taps_;
    Norm norm_;
    Linear conv_;
};

}  // namespace affectrt
