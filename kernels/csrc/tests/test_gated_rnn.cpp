// The recurrence: over shapes, at the edges of its functions, with what is no number, and of no size.
#include <algorithm>
#include <cmath>

#include "dispatch.hpp"
#include "doubles.hpp"

namespace affectrt::tests {
namespace {

struct Shape {
    std::size_t streams, batch, steps, inputs, hidden, gates;
};

// Weights, inputs, lengths and initial states; whatever lies beyond a length is NaN.
struct Problem {
    Problem(const Shape& of, bool ragged, Random& random)
        : shape(of),
          w_x(normals(of.streams * (of.gates + 1) * of.hidden * of.inputs, random, share_of(of.inputs))),
          w_h(normals(of.streams * (of.gates + 1) * of.hidden * of.hidden, random, share_of(of.hidden))),
          bias(normals(of.streams * (of.gates + 1) * of.hidden, random)),
          x(normals(of.streams * of.batch * of.steps * of.inputs, random)),
          h0(of.streams * of.batch * of.hidden, [&] { return random.uniform(-1.0f, 1.0f); }),
          lengths(of.batch) {
        call.batch = of.batch;
        call.steps = of.steps;
        call.x = x.data();
        if (!ragged) return;
        for (std::size_t b = 0; b < of.batch; ++b) {
            const std::size_t length = b == 0 ? of.steps : b == 1 ? 0 : random.below(of.steps + 1);
            lengths[b] = static_cast<std::int64_t>(length);
            for (std::size_t s = 0; s < of.streams; ++s)
                for (std::size_t t = length; t < of.steps; ++t)
                    std::fill_n(x.data() + ((s * of.batch + b) * of.steps + t) * of.inputs, of.inputs, kNan);
        }
        call.lengths = lengths.data();
    }

    GatedRnnWeights weights() const {
        return {shape.streams, shape.inputs, shape.hidden, shape.gates, w_x.data(), w_h.data(), bias.data()};
    }

    Shape shape;
    Floats w_x, w_h, bias, x, h0;
    Guarded<std::int64_t> lengths;
    GatedRnnCall call{};
};

struct Results {
    explicit Results(const Shape& shape)
        : y(shape.streams * shape.batch * shape.steps * shape.hidden),
          h_n(shape.streams * shape.batch * shape.hidden) {}
    Floats y, h_n;
};

void run(const GatedRnn& rnn, GatedRnnCall call, Results& results, std::size_t threads, bool with_y = true) {
    call.y = with_y ? results.y.data() : nullptr;
    call.h_n = results.h_n.data();
    rnn(call, threads);
}

void compare(const Problem& problem, std::size_t threads) {
    const States expected = gated_rnn(problem.weights(), problem.call, widened(problem.x));
    for (const Kernels* kernels : runnable_kernels()) {
        const Shape& of = problem.shape;
        const Case here("gated_rnn", kernels->name, "S", of.streams, "B", of.batch, "T", of.steps, "I", of.inputs, "H",
                        of.hidden, "gates", of.gates, problem.call.reverse ? "reverse" : "forward",
                        problem.call.lengths != nullptr ? "ragged" : "full", "threads", threads);
        const GatedRnn rnn(problem.weights(), *kernels);
        Results results(of), alone(of);
        run(rnn, problem.call, results, threads);
        expect_close(results.y.data(), expected.y.data(), results.y.size(), kStateTolerance, "y");
        expect_close(results.h_n.data(), expected.h_n.data(), results.h_n.size(), kStateTolerance, "h_n");
        run(rnn, problem.call, alone, 1, false);
        expect_same(alone.h_n.data(), results.h_n.data(), alone.h_n.size(), "h_n of one thread, without y");
        if (of.batch != 1 || problem.call.h0 == nullptr) continue;
        Results stepped(of);  // h_n may be h0: how a stream keeps its state
        std::copy_n(problem.h0.data(), problem.h0.size(), stepped.h_n.data());
        GatedRnnCall call = problem.call;
        call.h0 = stepped.h_n.data();
        run(rnn, call, stepped, 1);
        expect_same(stepped.h_n.data(), results.h_n.data(), stepped.h_n.size(), "h_n in the place of h0");
    }
}

void test_shapes() {
    Random random(10);
    std::size_t turn = 0;
    for (const std::size_t steps : Sizes{1, 2, 63, 500})
        for (const std::size_t hidden : Sizes{1, 8, 40, 64, 100, 128, 200})
            for (const std::size_t batch : Sizes{1, 3, 32})
                for (const std::size_t gates : Sizes{1, 2}) {
                    ++turn;
                    const std::size_t inputs = 1 + random.below(90);
                    const std::size_t each = batch * steps * (gates + 1) * hidden * (hidden + inputs);
                    if (each > most_products) continue;
                    const std::size_t streams = std::min(1 + turn % 3, most_products / each);
                    Problem problem({streams, batch, steps, inputs, hidden, gates}, turn % 4 != 0, random);
                    problem.call.reverse = turn % 3 == 1;
                    if (turn % 5 != 0) problem.call.h0 = problem.h0.data();
                    compare(problem, 1 + turn % 3);
                }
    for (const bool ragged : {false, true})  // more rows than a block, more steps than a chunk of them
        compare(Problem({2, 17, 40, 3, 5, 1}, ragged, random), 2);
}

// One unit, no recurrence: sigmoid(x) · tanh(x / 2), over the whole range and where they saturate.
void test_functions() {
    const std::size_t count = 4001;
    Floats x(count), w_x(2, [turn = 0]() mutable { return turn++ == 0 ? 1.0f : 0.5f; });
    const Floats zeros(2, [] { return 0.0f; });
    Doubles expected(count);
    for (std::size_t i = 0; i < count; ++i) {
        x[i] = 0.05f * (static_cast<float>(i) - 2000.0f);
        const auto value = static_cast<double>(x[i]);
        expected[i] = std::tanh(value / 2.0) / (1.0 + std::exp(-value));
    }
    for (const Kernels* kernels : runnable_kernels()) {
        const Case here("sigmoid and tanh", kernels->name);
        Results results({1, count, 1, 1, 1, 1});
        GatedRnnCall call{};
        call.batch = count;
        call.steps = 1;
        call.x = x.data();
        run(GatedRnn({1, 1, 1, 1, w_x.data(), zeros.data(), zeros.data()}, *kernels), call, results, 1);
        expect_close(results.h_n.data(), expected.data(), count, 5e-7, "h_n");
    }
}

// No number, too large a number: what a row answers is NaN or within ±1, from that step on, in that row only.
void test_no_numbers() {
    Random random(11);
    const std::size_t batch = 5, steps = 9, inputs = 4, hidden = 21;
    for (const std::size_t gates : Sizes{1, 2})
        for (const float value : {kNan, kInfinite, -kInfinite, 1e30f, -3e38f}) {
            Problem problem({1, batch, steps, inputs, hidden, gates}, false, random);
            for (const Kernels* kernels : runnable_kernels()) {
                const Case here("gated_rnn", kernels->name, "gates", gates, "with an input of", value);
                const GatedRnn rnn(problem.weights(), *kernels);
                Results before(problem.shape), after(problem.shape);
                run(rnn, problem.call, before, 1);
                float& input = problem.x[(2 * steps + 3) * inputs + 1];
                const float kept = input;
                input = value;
                run(rnn, problem.call, after, 1);
                input = kept;
                const std::size_t row = steps * hidden, changed = 2 * row + 3 * hidden, next = 3 * row;
                expect_same(after.y.data(), before.y.data(), changed, "y until there");
                expect_defined(after.y.data() + changed, next - changed, 1.0f + 1e-6f, "y from there on");
                expect_same(after.y.data() + next, before.y.data() + next, batch * row - next, "y of other rows");
                if (value != value) expect(after.h_n[2 * hidden] != after.h_n[2 * hidden], "NaN in, NaN out");
            }
        }
}

void test_no_size() {
    Random random(12);
    const Shape shapes[] = {{0, 2, 3, 4, 5, 1}, {1, 0, 4, 3, 3, 2}, {2, 3, 0, 3, 3, 1}, {2, 2, 3, 0, 5, 2},
                            {1, 2, 3, 4, 0, 1}, {1, 1, 0, 0, 0, 2}, {1, 20, 0, 2, 7, 1}};
    for (const Shape& shape : shapes)
        for (const bool ragged : {false, true})
            for (const bool reverse : {false, true}) {
                if (ragged && shape.steps == 0) continue;
                Problem problem(shape, ragged, random);
                problem.call.reverse = reverse;
                problem.call.h0 = problem.h0.data();
                compare(problem, 2);
            }
}

}  // namespace

void test_gated_rnn() {
    test_shapes();
    test_functions();
    test_no_numbers();
    test_no_size();
}

}  // namespace affectrt::tests
