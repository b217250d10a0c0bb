// Weights in the order `multiply` reads them. Included once per instruction set.
#pragma once

#include "kernels.hpp"
#include "multiply.hpp"

namespace affectrt {
namespace {

// For each panel, for each input, the weights of the panel's outputs; padding is 0.
void pack(const float* w, std::size_t blocks, std::size_t rows, std::size_t depth, float* packed) {
    const std::size_t units = padded(rows, kLanes);
    const std::size_t outputs = blocks * units;
    for (std::size_t first = 0; first < outputs; first += kPanel * kLanes) {
        const std::size_t width = outputs - first < kPanel * kLanes ? outputs - first : kPanel * kLanes;
        for (std::size_t i = 0; i < width; ++i) {
            const std::size_t block = (first + i) / units, unit = (first + i) % units;
            const float* from = unit < rows ? w + (block * rows + unit) * depth : nullptr;
            for (std::size_t k = 0; k < depth; ++k) packed[k * width + i] = from == nullptr ? 0.0f : from[k];
        }
        packed += width * depth;
    }
}

}  // namespace
}  // namespace affectrt
