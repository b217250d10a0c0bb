// Packing, products, convolution and layer normalisation.
#include <algorithm>
#include <vector>

#include "dispatch.hpp"
#include "doubles.hpp"

namespace affectrt::tests {
namespace {

// Random weights (blocks · rows, depth), packed; and with the padding's rows of zeros.
struct Matrix {
    Matrix(const Kernels& kernels, std::size_t blocks, std::size_t rows, std::size_t depth, Random& random)
        : units(padded(rows, kernels.lanes)), packed(blocks * units * depth), with_padding(blocks * units * depth) {
        const Floats w = normals(blocks * rows * depth, random, share_of(depth));
        kernels.pack(w.data(), blocks, rows, depth, packed.data());
        view = {packed.data(), depth, blocks * units / kernels.lanes};
        for (std::size_t block = 0; block < blocks; ++block)
            std::copy_n(w.data() + block * rows * depth, rows * depth, with_padding.data() + block * units * depth);
    }

    std::size_t units;
    Floats packed;
    std::vector<float> with_padding;
    Packed view{};
};

enum class Start { kNone, kBias, kRows, kInPlace };

void multiply_case(const Kernels& kernels, std::size_t rows, std::size_t vectors, std::size_t depth, bool transposed,
                   Start kind, Random& random) {
    const Case here("multiply", kernels.name, "rows", rows, "vectors", vectors, "depth", depth,
                    transposed ? "transposed" : "straight", "start", static_cast<int>(kind));
    // Blocks of less than whole vectors leave padding in the middle.
    const std::size_t blocks = vectors % 3 == 0 ? 3 : 1, block_vectors = vectors / blocks;
    const std::size_t units = block_vectors * kernels.lanes - random.below(kernels.lanes);
    const Matrix matrix(kernels, blocks, units, depth, random);
    const std::size_t width = vectors * kernels.lanes;
    expect_equal(matrix.view.vectors, vectors, "vectors");

    const std::size_t lines = transposed ? depth : rows, line = transposed ? rows : depth;
    const std::size_t a_stride = line + random.below(4);
    const bool backwards = !transposed && random.below(3) == 0;
    Floats a(lines == 0 ? 0 : (lines - 1) * a_stride + line);
    Doubles wide(rows * depth);
    for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t k = 0; k < depth; ++k) {
            const std::size_t at = transposed ? k * a_stride + i : (backwards ? rows - 1 - i : i) * a_stride + k;
            a[at] = random.normal();
            wide[i * depth + k] = static_cast<double>(a[at]);
        }

    const std::size_t c_stride = width + random.below(4);
    Floats c((rows - 1) * c_stride + width);
    Floats start(kind == Start::kBias ? width : c.size(), [&] { return random.normal(); });
    Product product{};
    product.a = backwards ? a.data() + (rows - 1) * a_stride : a.data();
    product.a_stride = static_cast<std::ptrdiff_t>(a_stride) * (backwards ? -1 : 1);
    product.a_transposed = transposed;
    product.rows = rows;
    product.w = matrix.view;
    product.c = c.data();
    product.c_stride = static_cast<std::ptrdiff_t>(c_stride);
    product.start_stride = kind == Start::kBias ? 0 : product.c_stride;
    if (kind == Start::kBias || kind == Start::kRows) product.start = start.data();
    if (kind == Start::kInPlace) {
        for (std::size_t i = 0; i < rows; ++i) std::copy_n(start.data() + i * c_stride, width, c.data() + i * c_stride);
        product.start = c.data();
    }
    kernels.multiply(product);

    Doubles expected =
        depth == 0 ? Doubles(rows * width) : linear(wide, depth, matrix.with_padding.data(), nullptr, width);
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t o = 0; o < width && kind != Start::kNone; ++o)
            expected[i * width + o] += static_cast<double>(start[kind == Start::kBias ? o : i * c_stride + o]);
        expect_close(c.data() + i * c_stride, expected.data() + i * width, width, kProductTolerance, "c");
        for (std::size_t gap = width; i + 1 < rows && gap < c_stride; ++gap)
            expect(c[i * c_stride + gap] != c[i * c_stride + gap], "what lies between rows of c untouched");
    }
}

void test_multiply(const Kernels& kernels) {
    Random random(1);
    std::size_t turn = 0;
    for (std::size_t rows = 1; rows <= 13; ++rows)
        for (std::size_t vectors = 1; vectors <= 9; ++vectors)
            for (const std::size_t depth : Sizes{0, 1, 2, 3, 4, 7, 8, 17, 64, 81})
                for (const bool transposed : {false, true})
                    multiply_case(kernels, rows, vectors, depth, transposed, static_cast<Start>(turn++ % 4), random);
    multiply_case(kernels, 70, 5, 300, false, Start::kBias, random);
}

// What is no number stays in its row, or where it is a weight in its output.
void test_multiply_keeps_nan(const Kernels& kernels) {
    const Case here("multiply of NaN", kernels.name);
    Random random(2);
    const std::size_t rows = 13, depth = 5, width = 3 * kernels.lanes;
    const Matrix matrix(kernels, 1, width, depth, random);
    Floats a = normals(rows * depth, random), before(rows * width), after(rows * width);
    Product product{};
    product.a = a.data();
    product.a_stride = static_cast<std::ptrdiff_t>(depth);
    product.rows = rows;
    product.w = matrix.view;
    product.c = before.data();
    product.c_stride = static_cast<std::ptrdiff_t>(width);
    kernels.multiply(product);
    a[7 * depth + 2] = kNan;
    product.c = after.data();
    kernels.multiply(product);
    const Doubles nans(width, static_cast<double>(kNan));
    for (std::size_t row = 0; row < rows; ++row) {
        if (row == 7) expect_close(after.data() + row * width, nans.data(), width, 0.0, "the row of the NaN");
        else expect_same(after.data() + row * width, before.data() + row * width, width, "another row");
    }
}

void convolve_case(const Kernels& kernels, std::size_t rows, std::size_t dim, std::size_t outputs, Random& random) {
    const Case here("convolve", kernels.name, "rows", rows, "dim", dim, "outputs", outputs);
    const std::size_t width = padded(outputs, kernels.lanes);
    const Floats w = normals(outputs * dim * 3, random, share_of(3 * dim));
    Floats packed(kTilePoints * width * dim);
    std::vector<Packed> points;
    for (std::size_t point = 0; point < kTilePoints; ++point) {
        std::vector<float> sums(outputs * dim);
        for (std::size_t i = 0; i < sums.size(); ++i) {
            double sum = 0.0;
            for (std::size_t tap = 0; tap < 3; ++tap) sum += kTileWeights[point][tap] * static_cast<double>(w[i * 3 + tap]);
            sums[i] = static_cast<float>(sum);
        }
        float* const to = packed.data() + point * width * dim;
        kernels.pack(sums.data(), 1, outputs, dim, to);
        points.push_back({to, dim, width / kernels.lanes});
    }
    const Floats x = normals((padded(rows, kTileRows) + 2) * dim, random);
    Floats bias(width, [] { return 0.0f; });
    for (std::size_t o = 0; o < outputs; ++o) bias[o] = random.normal();
    const std::size_t stride = width + random.below(4);
    Floats y((rows - 1) * stride + width), scratch(convolve_scratch(dim, width));
    kernels.convolve({x.data(), rows, dim, points.data(), bias.data(), y.data(), static_cast<std::ptrdiff_t>(stride)},
                     scratch.data());

    const Doubles expected = convolution(widened(x), dim, w.data(), bias.data(), outputs, 3, 0);
    const Doubles zeros(width - outputs);
    for (std::size_t t = 0; t < rows; ++t) {
        expect_close(y.data() + t * stride, expected.data() + t * outputs, outputs, kConvolutionTolerance, "y");
        expect_close(y.data() + t * stride + outputs, zeros.data(), width - outputs, 0.0, "padding of y");
    }
}

void test_convolve(const Kernels& kernels) {
    Random random(3);
    const std::size_t dims[] = {1, 2, 7, 16, 33, 130}, outputs[] = {1, 8, 30, 64, 65, 144};
    for (std::size_t rows = 1; rows <= 70; ++rows)
        convolve_case(kernels, rows, dims[rows % 6], outputs[rows / 6 % 6], random);
    for (const std::size_t rows : Sizes{96, 97, 193}) convolve_case(kernels, rows, 9, 20, random);  // whole rounds of tiles
}

void test_normalize(const Kernels& kernels) {
    Random random(4);
    for (std::size_t dim = 0; dim <= 130; ++dim)
        for (const std::size_t rows : Sizes{1, 3}) {
            const Case here("normalize", kernels.name, "rows", rows, "dim", dim);
            const std::size_t stride = dim + random.below(4), to_stride = dim + random.below(4);
            Floats x((rows - 1) * stride + dim), y((rows - 1) * to_stride + dim);
            for (std::size_t row = 0; row < rows; ++row) {
                const float level = 3.0f * random.normal();
                for (std::size_t i = 0; i < dim; ++i) x[row * stride + i] = level + random.normal();
            }
            const Floats scale = normals(dim, random), shift = normals(dim, random);
            const auto run = [&] {
                kernels.normalize({x.data(), static_cast<std::ptrdiff_t>(stride), rows, dim, scale.data(), shift.data(),
                                   y.data(), static_cast<std::ptrdiff_t>(to_stride)});
            };
            run();
            if (dim == 0) continue;
            for (std::size_t row = 0; row < rows; ++row) {
                const Doubles expected =
                    layer_norm(widened(x.data() + row * stride, dim), dim, scale.data(), shift.data());
                expect_close(y.data() + row * to_stride, expected.data(), dim, kNormalTolerance, "y");
            }
            std::fill_n(x.data(), dim, 0.0f);
            run();
            expect_same(y.data(), shift.data(), dim, "y of zeros, the shift");
            x[dim / 2] = kNan;
            run();
            const Doubles nans(dim, static_cast<double>(kNan));
            expect_close(y.data(), nans.data(), dim, 0.0, "y of NaN");
        }
}

}  // namespace

void test_layers() {
    for (const Kernels* kernels : runnable_kernels()) {
        test_multiply(*kernels);
        test_multiply_keeps_nan(*kernels);
        test_convolve(*kernels);
        test_normalize(*kernels);
    }
}

}  // namespace affectrt::tests
