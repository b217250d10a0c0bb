// Memory that is kept: aligned, poisoned where asked, refused when absurd, and none of it new after the first call.
#include "memory.hpp"

#include <algorithm>
#include <functional>
#include <new>

#include "attention.hpp"
#include "dispatch.hpp"
#include "doubles.hpp"
#include "ghrnn_cma_stream.hpp"

namespace affectrt::tests {
namespace {

bool aligned(const float* memory) { return reinterpret_cast<std::uintptr_t>(memory) % 64 == 0; }

bool refused(const std::function<void()>& call) {
    try {
        call();
    } catch (const std::bad_alloc&) {
        return true;
    }
    return false;
}

void test_buffers() {
    const Case here("memory");
    Buffer buffer;
    for (const std::size_t floats : Sizes{0, 1, 15, 16, 17, 1000}) {
        float* const memory = buffer.at_least(floats);
        std::fill_n(memory, floats, 1.0f);
        expect(aligned(memory) && memory == buffer.data(), "a cache line's boundary");
        expect(buffer.size() >= floats, "room for as many as asked");
        expect(buffer.at_least(floats / 2) == memory, "the same memory for less");
    }
    const std::size_t most = std::numeric_limits<std::size_t>::max();
    for (const std::size_t floats : Sizes{most, most / 4, most / 4 - 15, most / 8})
        expect(refused([&] { buffer.at_least(floats); }), "std::bad_alloc for more floats than memory");
    expect(aligned(buffer.at_least(10)), "memory after a refusal");
    expect(refused([&] {
               const FailingAllocations none(0);
               thread_scratch(1'000'000);
           }), "std::bad_alloc from scratch");

    const float* const scratch = thread_scratch(33);
    expect(aligned(scratch), "scratch on a cache line's boundary");
    expect(std::all_of(scratch, scratch + 33, [](float x) { return x != x; }), "scratch of NaN");
    Pieces pieces(thread_scratch(64));
    float* const first = pieces.take(1);
    float* const second = pieces.take(17);
    expect(aligned(first) && aligned(second) && second == first + 16 && pieces.take(0) == second + 32,
           "pieces on cache lines' boundaries");
}

void expect_no_new(const char* what, const std::function<void()>& call) {
    call();
    const std::size_t before = allocations();
    call();
    const std::size_t fresh = allocations() - before;
    expect_equal(fresh, 0, std::string("allocations in the second call of ") + what);
}

void test_operators(const Kernels& kernels) {
    const Case here("memory", kernels.name);
    Random random(80);
    const std::size_t streams = 2, batch = 20, steps = 30, inputs = 9, hidden = 17;
    const Floats w_x = normals(streams * 2 * hidden * inputs, random), w_h = normals(streams * 2 * hidden * hidden, random),
                 bias = normals(streams * 2 * hidden, random), x = normals(streams * batch * steps * inputs, random);
    Floats y(streams * batch * steps * hidden), h_n(streams * batch * hidden);
    const GatedRnn rnn({streams, inputs, hidden, 1, w_x.data(), w_h.data(), bias.data()}, kernels);
    GatedRnnCall call{};
    call.batch = batch;
    call.steps = steps;
    call.x = x.data();
    call.y = y.data();
    call.h_n = h_n.data();
    for (const std::size_t threads : Sizes{1, 2}) expect_no_new("GatedRnn", [&] { rnn(call, threads); });

    const std::size_t heads = 2, dim = 8, rows = 50, width = heads * dim;
    const Floats joint = normals(batch * rows * width, random);
    Floats out(batch * rows * width), log_sums(batch * heads * rows);
    const Rows all{joint.data(), static_cast<std::ptrdiff_t>(rows * width), static_cast<std::ptrdiff_t>(width)};
    const Pair pair{all, all, all, rows, rows, nullptr, nullptr, nullptr, out.data(), log_sums.data()};
    for (const std::size_t threads : Sizes{1, 2})
        expect_no_new("pairwise_attention",
                      [&] { pairwise_attention(&pair, 1, batch, heads, dim, kernels, threads); });

    const GhrnnCmaSizes sizes{{7, 5, 4}, 8, 2, 8, 16, 3, 7};
    RandomWeights weights(sizes, 81);
    const GhrnnCma model(sizes, weights.source(), kernels);
    const Floats text = normals(7 * 6, random), audio = normals(5 * 40, random), vision = normals(4 * 20, random);
    const std::array<FeatureRows, kModalities> features{FeatureRows{text.data(), 6}, {audio.data(), 40}, {vision.data(), 20}};
    const unsigned subsets[] = {7, 6, 5, 3};
    Floats sentiment(4), logits(4 * 7);
    expect_no_new("GhrnnCma", [&] { model(features, subsets, 4, sentiment.data(), logits.data()); });

    // Once the ring holds a window, ticks allocate nothing.
    GhrnnCmaStream stream(model, text.data(), 1.0);
    double now = 0.0;
    double times[kAnswers][3] = {};
    const auto tick = [&] {
        now += 0.1;
        for (auto& of : times)
            for (std::size_t i = 0; i < 3; ++i) of[i] = now - 0.03 * static_cast<double>(2 - i);
        stream.step(now, text.data(), {TimedRows{audio.data(), times[0], 3}, {vision.data(), times[1], 2}},
                    sentiment.data(), logits.data());
    };
    for (std::size_t i = 0; i < 25; ++i) tick();
    expect_no_new("GhrnnCmaStream::step", [&] {
        for (std::size_t i = 0; i < 25; ++i) tick();
    });
}

}  // namespace

void test_memory() {
    test_buffers();
    for (const Kernels* kernels : runnable_kernels()) test_operators(*kernels);
}

}  // namespace affectrt::tests
