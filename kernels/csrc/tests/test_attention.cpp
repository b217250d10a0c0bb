// Attention of one head as the kernels compute it, and of all directed pairs over a ragged batch.
#include "attention.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "dispatch.hpp"
#include "doubles.hpp"

namespace affectrt::tests {
namespace {

using Windows = Guarded<std::int64_t>;

// Every kind of window: whole, empty, upside down, beyond the keys, of one key.
void fill_windows(std::int64_t* windows, std::size_t queries, std::size_t keys, Random& random) {
    const auto count = static_cast<std::int64_t>(keys);
    for (std::size_t i = 0; i < queries; ++i) {
        std::int64_t low = static_cast<std::int64_t>(random.below(keys + 1));
        std::int64_t high = low + static_cast<std::int64_t>(random.below(keys + 1));
        switch (random.below(8)) {
            case 0: high = low; break;
            case 1: std::swap(low, high); break;
            case 2: low = std::numeric_limits<std::int64_t>::min(); break;
            case 3: high = std::numeric_limits<std::int64_t>::max(); break;
            case 4: low = count, high = count + 5; break;
            case 5: high = low + 1; break;
            default: break;
        }
        windows[2 * i] = low;
        windows[2 * i + 1] = high;
    }
}

bool inside(const std::int64_t* windows, std::size_t query, std::size_t key) {
    const auto at = static_cast<std::int64_t>(key);
    return key == 0 || (windows[2 * query] <= at && at < windows[2 * query + 1]);
}

// Rows of `dim` floats, `stride` apart; between them NaN.
Doubles fill_rows(Floats& to, std::size_t rows, std::size_t dim, std::size_t stride, Random& random) {
    Doubles wide;
    for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t d = 0; d < dim; ++d) {
            to[row * stride + d] = random.normal();
            wide.push_back(static_cast<double>(to[row * stride + d]));
        }
    return wide;
}

void attend_case(const Kernels& kernels, std::size_t queries, std::size_t keys, std::size_t dim, bool windowed,
                 Random& random) {
    const Case here("attend", kernels.name, "queries", queries, "keys", keys, "dim", dim,
                    windowed ? "in windows" : "");
    const auto room = [](std::size_t rows, std::size_t stride, std::size_t width) {
        return (rows - 1) * stride + width;
    };
    const std::size_t q_stride = dim + random.below(4), k_stride = dim + random.below(4),
                      v_stride = dim + random.below(4), out_stride = dim + random.below(4);
    Floats q(room(queries, q_stride, dim)), k(room(keys, k_stride, dim)), v(room(keys, v_stride, dim));
    Floats out(room(queries, out_stride, dim)), log_sum(queries), scratch(attend_scratch(kernels.panel, dim));
    const Doubles wide_q = fill_rows(q, queries, dim, q_stride, random), wide_k = fill_rows(k, keys, dim, k_stride, random),
                  wide_v = fill_rows(v, keys, dim, v_stride, random);
    Windows windows(2 * queries);
    fill_windows(windows.data(), queries, keys, random);

    Attention part{};
    part.q = q.data();
    part.k = k.data();
    part.v = v.data();
    part.q_stride = static_cast<std::ptrdiff_t>(q_stride);
    part.k_stride = static_cast<std::ptrdiff_t>(k_stride);
    part.v_stride = static_cast<std::ptrdiff_t>(v_stride);
    part.out_stride = static_cast<std::ptrdiff_t>(out_stride);
    part.queries = queries;
    part.keys = keys;
    part.dim = dim;
    part.windows = windowed ? windows.data() : nullptr;
    part.out = out.data();
    part.log_sum = log_sum.data();
    kernels.attend(part, scratch.data());

    const Attended expected = attention(wide_q, wide_k, wide_v, dim, [&](std::size_t i, std::size_t j) {
        return !windowed || inside(windows.data(), i, j);
    });
    for (std::size_t i = 0; i < queries; ++i) {
        expect_close(out.data() + i * out_stride, expected.out.data() + i * dim, dim, kAttentionTolerance, "out");
        for (std::size_t gap = dim; i + 1 < queries && gap < out_stride; ++gap)
            expect(out[i * out_stride + gap] != out[i * out_stride + gap], "what lies between rows of out untouched");
    }
    expect_close(log_sum.data(), expected.log_sums.data(), queries, kLogSumTolerance, "log_sum");
}

void test_attend(const Kernels& kernels) {
    Random random(20);
    std::size_t turn = 0;
    for (const std::size_t dim : Sizes{1, 2, 3, 5, 8, 16, 17, 31, 32, 40, 64, 65, 128})
        for (const std::size_t keys : Sizes{1, 2, 3, 5, 63, 64, 65, 127, 128, 129, 200})
            for (std::size_t queries = 1; queries <= kernels.panel; queries += 1 + random.below(4))
                attend_case(kernels, queries, keys, dim, turn++ % 2 == 0, random);
}

// Two keys with scores far apart, which is where exponential and logarithm have their edges.
void test_scores(const Kernels& kernels) {
    const Case here("attend", kernels.name, "of scores from -200 to 200");
    const float k[2] = {0.0f, 1.0f}, v[2] = {0.0f, 1.0f};
    Floats scratch(attend_scratch(kernels.panel, 1));
    for (float score = -200.0f; score <= 200.0f; score += 0.37f) {
        Floats out(1), log_sum(1);
        Attention part{};
        part.q = &score;
        part.k = k;
        part.v = v;
        part.q_stride = part.k_stride = part.v_stride = part.out_stride = 1;
        part.queries = part.dim = 1;
        part.keys = 2;
        part.out = out.data();
        part.log_sum = log_sum.data();
        kernels.attend(part, scratch.data());
        const Doubles q{static_cast<double>(score)}, ends{0.0, 1.0};
        const Attended expected = attention(q, ends, ends, 1, [](std::size_t, std::size_t) { return true; });
        expect_close(out.data(), expected.out.data(), 1, 1e-6 + 1e-7 * std::abs(q[0]), "out");
        expect_close(log_sum.data(), expected.log_sums.data(), 1, 1e-6 + 2e-7 * std::abs(q[0]), "log_sum");
    }
}

constexpr std::size_t kMost = 3;  // modalities

// Three modalities over a ragged batch, all six directed pairs; rows beyond a length are NaN. Queries, keys and values
// of a modality lie side by side, as one joint projection leaves them.
struct Problem {
    Problem(std::size_t batch_size, std::size_t head_count, std::size_t width,
            const std::array<std::size_t, kMost>& steps_of, bool windowed, Random& random)
        : batch(batch_size), heads(head_count), dim(width), steps(steps_of) {
        const std::size_t row = 3 * heads * dim;
        for (std::size_t m = 0; m < kMost; ++m) {
            lengths[m] = std::make_unique<Windows>(batch);
            joint[m] = std::make_unique<Floats>(batch * (1 + steps[m]) * row);
            for (std::size_t b = 0; b < batch; ++b) {
                const std::size_t length = (b + m) % 3 == 0 ? steps[m] : (b + m) % 3 == 1 ? 0 : random.below(steps[m] + 1);
                (*lengths[m])[b] = static_cast<std::int64_t>(length);
                for (std::size_t i = 0; i < (1 + length) * row; ++i)
                    (*joint[m])[b * (1 + steps[m]) * row + i] = random.normal();
            }
        }
        for (std::size_t asking = 0; asking < kMost; ++asking)
            for (std::size_t answering = 0; answering < kMost; ++answering) {
                if (asking == answering) continue;
                const std::size_t queries = 1 + steps[asking], keys = 1 + steps[answering];
                Pair pair{};
                pair.q = rows(asking, 0);
                pair.k = rows(answering, 1);
                pair.v = rows(answering, 2);
                pair.queries = queries;
                pair.keys = keys;
                pair.query_lengths = lengths[asking]->data();
                pair.key_lengths = lengths[answering]->data();
                if (windowed) {
                    windows.push_back(std::make_unique<Windows>(2 * batch * queries));
                    fill_windows(windows.back()->data(), batch * queries, keys, random);
                    pair.windows = windows.back()->data();
                }
                outs.push_back(std::make_unique<Floats>(batch * queries * heads * dim));
                log_sums.push_back(std::make_unique<Floats>(batch * heads * queries));
                pair.out = outs.back()->data();
                pair.log_sums = log_sums.back()->data();
                pairs.push_back(pair);
                of.push_back({asking, answering});
            }
    }

    Rows rows(std::size_t modality, std::size_t part) const {
        const auto row = static_cast<std::ptrdiff_t>(3 * heads * dim);
        return {joint[modality]->data() + part * heads * dim,
                row * static_cast<std::ptrdiff_t>(1 + steps[modality]), row};
    }

    // The valid rows of one head.
    Doubles wide(const Rows& from, std::size_t b, std::size_t head, std::size_t count) const {
        Doubles taken;
        for (std::size_t i = 0; i < count; ++i) {
            const float* const row = from.data + static_cast<std::ptrdiff_t>(b) * from.batch_stride +
                                     static_cast<std::ptrdiff_t>(i) * from.row_stride + head * dim;
            taken.insert(taken.end(), row, row + dim);
        }
        return taken;
    }

    void run(const Kernels& kernels, std::size_t threads) const {
        pairwise_attention(pairs.data(), pairs.size(), batch, heads, dim, kernels, threads);
    }

    std::size_t batch, heads, dim;
    std::array<std::size_t, kMost> steps;
    std::array<std::unique_ptr<Windows>, kMost> lengths;
    std::array<std::unique_ptr<Floats>, kMost> joint;
    std::vector<std::unique_ptr<Windows>> windows;
    std::vector<std::unique_ptr<Floats>> outs, log_sums;
    std::vector<Pair> pairs;
    std::vector<std::array<std::size_t, 2>> of;
};

void compare(const Problem& problem, const Kernels& kernels, std::size_t threads) {
    problem.run(kernels, threads);
    for (std::size_t p = 0; p < problem.pairs.size(); ++p) {
        const Pair& pair = problem.pairs[p];
        for (std::size_t b = 0; b < problem.batch; ++b) {
            const Case here("pair", problem.of[p][0], "asks", problem.of[p][1], "row", b);
            const auto queries = static_cast<std::size_t>(1 + pair.query_lengths[b]),
                       keys = static_cast<std::size_t>(1 + pair.key_lengths[b]);
            for (std::size_t head = 0; head < problem.heads; ++head) {
                Attended expected = attention(
                    problem.wide(pair.q, b, head, queries), problem.wide(pair.k, b, head, keys),
                    problem.wide(pair.v, b, head, keys), problem.dim, [&](std::size_t i, std::size_t j) {
                        return pair.windows == nullptr || inside(pair.windows + 2 * b * pair.queries, i, j);
                    });
                expected.out.resize(pair.queries * problem.dim, 0.0);
                expected.log_sums.resize(pair.queries, HUGE_VAL);
                for (std::size_t i = 0; i < pair.queries; ++i)
                    expect_close(pair.out + ((b * pair.queries + i) * problem.heads + head) * problem.dim,
                                 expected.out.data() + i * problem.dim, problem.dim, kAttentionTolerance, "out");
                if (pair.log_sums != nullptr)
                    expect_close(pair.log_sums + (b * problem.heads + head) * pair.queries, expected.log_sums.data(),
                                 pair.queries, kLogSumTolerance, "log_sums");
            }
        }
    }
}

void test_pairs(const Kernels& kernels) {
    struct Shape {
        std::size_t batch, heads, dim;
        std::array<std::size_t, kMost> steps;
    };
    const Shape shapes[] = {{1, 1, 1, {1, 2, 3}},     {3, 2, 8, {7, 63, 0}},    {2, 4, 10, {20, 130, 33}},
                            {4, 3, 5, {0, 1, 17}},    {1, 4, 32, {50, 150, 90}}, {3, 1, 64, {5, 65, 64}},
                            {2, 5, 3, {0, 0, 0}},     {0, 4, 8, {5, 6, 7}},      {2, 0, 8, {5, 6, 7}}};
    Random random(21);
    for (const Shape& shape : shapes)
        for (const bool windowed : {false, true})
            for (const std::size_t threads : Sizes{1, 3}) {
                const Case here("pairwise_attention", kernels.name, "B", shape.batch, "N", shape.heads, "D", shape.dim,
                                windowed ? "in windows" : "", "threads", threads);
                Problem problem(shape.batch, shape.heads, shape.dim, shape.steps, windowed, random);
                if (threads == 3)
                    for (Pair& pair : problem.pairs) pair.log_sums = nullptr;
                compare(problem, kernels, threads);
            }
    pairwise_attention(nullptr, 0, 3, 4, 8, kernels, 2);
}

// No number, too large a number: NaN, or a mean of the values. A query's stays with it, a key's with its modality.
void test_no_numbers(const Kernels& kernels) {
    for (const float value : {kNan, kInfinite, -kInfinite, 1e30f, 3e38f}) {
        const Case here("attention", kernels.name, "with an input of", value);
        Random first(22), second(22);
        const std::array<std::size_t, kMost> steps{9, 70, 5};
        const Problem before(1, 1, 7, steps, false, first), after(1, 1, 7, steps, false, second);
        before.run(kernels, 1);
        const std::size_t row = 3 * 7, step = 4, modality = 0;
        (*after.joint[modality])[step * row + 2] = value;      // of a query
        (*after.joint[modality])[step * row + 7 + 3] = value;  // of a key
        after.run(kernels, 1);
        for (std::size_t p = 0; p < before.pairs.size(); ++p) {
            const Case pair("pair", before.of[p][0], "asks", before.of[p][1]);
            const Floats& were = *before.outs[p];
            const Floats& are = *after.outs[p];
            expect_defined(are.data(), are.size(), 10.0f, "out");
            if (before.of[p][1] == modality) {
                const auto valid = static_cast<std::size_t>(1 + after.pairs[p].query_lengths[0]) * 7;
                const Doubles nans(valid, static_cast<double>(kNan));
                if (value != value) expect_close(are.data(), nans.data(), valid, 0.0, "out of a key of NaN");
                continue;
            }
            const std::size_t at = before.of[p][0] == modality ? step * 7 : are.size();
            const std::size_t next = std::min(at + 7, are.size());
            for (std::size_t i = at; i < next && value != value; ++i) expect(are[i] != are[i], "NaN in, NaN out");
            expect_same(are.data(), were.data(), at, "out of queries before");
            expect_same(are.data() + next, were.data() + next, are.size() - next, "out of queries behind");
        }
    }
}

}  // namespace

void test_attention() {
    for (const Kernels* kernels : runnable_kernels()) {
        test_attend(*kernels);
        test_scores(*kernels);
        test_pairs(*kernels);
        test_no_numbers(*kernels);
    }
}

}  // namespace affectrt::tests
