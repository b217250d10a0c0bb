// Finds what the machine can run, packs the weights and shares the rows between threads.
#include "dispatch.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <system_error>
#include <thread>

namespace affectrt {

extern const GatedRnnKernels kBaselineKernels;
#if defined(AFFECTRT_X86)
extern const GatedRnnKernels kAvx2Kernels;
extern const GatedRnnKernels kAvx512Kernels;
#endif

const std::vector<const GatedRnnKernels*>& runnable_kernels() {
    static const std::vector<const GatedRnnKernels*> runnable = [] {
        std::vector<const GatedRnnKernels*> found;
#if defined(AFFECTRT_X86)
        const bool fma = __builtin_cpu_supports("fma");
        if (fma && __builtin_cpu_supports("avx512f")) found.push_back(&kAvx512Kernels);
        if (fma && __builtin_cpu_supports("avx2")) found.push_back(&kAvx2Kernels);
#endif
        found.push_back(&kBaselineKernels);
        return found;
    }();
    return runnable;
}

void gated_rnn(const GatedRnn& problem, const GatedRnnKernels& kernels, std::size_t threads) {
    if (problem.streams == 0 || problem.batch == 0) return;
    const std::size_t units = padded(problem.hidden, kernels.lanes);
    const std::size_t all_units = (problem.gates + 1) * units;

    const std::size_t stream_floats = all_units * (problem.inputs + problem.hidden + 1);
    const std::unique_ptr<float[]> weights(new float[problem.streams * stream_floats]);
    std::vector<PackedStream> packed;
    packed.reserve(problem.streams);
    for (std::size_t s = 0; s < problem.streams; ++s) {
        float* const w_x = weights.get() + s * stream_floats;
        float* const w_h = w_x + all_units * problem.inputs;
        float* const bias = w_h + all_units * problem.hidden;
        kernels.pack(problem, s, w_x, w_h, bias);
        packed.push_back({w_x, w_h, bias});
    }

    // Longest first, so that the rows still running at a step are always the first of their block.
    std::vector<std::size_t> rows(problem.batch);
    std::iota(rows.begin(), rows.end(), std::size_t{0});
    std::stable_sort(rows.begin(), rows.end(), [&](std::size_t a, std::size_t b) {
        return problem.length(a) > problem.length(b);
    });

    const std::size_t blocks = (problem.batch + kRowsTogether - 1) / kRowsTogether;
    const std::size_t tasks = problem.streams * blocks;
    const std::size_t workers = std::max<std::size_t>(1, std::min(threads, tasks));
    const std::size_t scratch = scratch_floats(units, problem.gates, std::min(problem.batch, kRowsTogether));
    const std::unique_ptr<float[]> scratches(new float[workers * scratch]);

    std::atomic<std::size_t> next{0};
    const auto work = [&](std::size_t worker) {
        for (std::size_t task = next++; task < tasks; task = next++) {
            const std::size_t first = task % blocks * kRowsTogether;
            const RowBlock block{task / blocks, rows.data() + first,
                                 std::min(kRowsTogether, problem.batch - first)};
            kernels.run(problem, packed[block.stream], block, scratches.get() + worker * scratch);
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(workers - 1);
    try {
        for (std::size_t worker = 1; worker < workers; ++worker) helpers.emplace_back(work, worker);
    } catch (const std::system_error&) {
        // No thread to be had: the ones that started, and this one, do all of it.
    }
    work(0);
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace affectrt
