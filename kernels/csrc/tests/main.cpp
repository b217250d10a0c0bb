// Checks the C++ kernels against plain loops in double precision, on every instruction set that this machine runs.
// The argument is most_products.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "check.hpp"
#include "dispatch.hpp"
#include "memory.hpp"

namespace {

struct Group {
    const char* name;
    void (*run)();
};

constexpr Group kGroups[] = {
    {"layers", affectrt::tests::test_layers},       {"gated_rnn", affectrt::tests::test_gated_rnn},
    {"attention", affectrt::tests::test_attention}, {"ring", affectrt::tests::test_ring},
    {"ghrnn_cma", affectrt::tests::test_ghrnn_cma}, {"stream", affectrt::tests::test_stream},
    {"memory", affectrt::tests::test_memory},       {"threads", affectrt::tests::test_threads},
};

}  // namespace

int main(int count, char** arguments) {
    using namespace affectrt;
    if (count > 1) tests::most_products = std::strtoull(arguments[1], nullptr, 10);
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    std::printf("instruction sets:");
    for (const Kernels* kernels : runnable_kernels()) std::printf(" %s", kernels->name);
    std::printf("\n");
    poison_scratch(true);
    for (const Group& group : kGroups) {
        const auto start = std::chrono::steady_clock::now();
        const std::size_t failed = tests::failures(), compared = tests::comparisons();
        group.run();
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        std::printf("%-10s %s  %9zu comparisons  %5.1f s\n", group.name, tests::failures() == failed ? "ok    " : "FAILED",
                    tests::comparisons() - compared, seconds.count());
    }
    return tests::failures() == 0 ? 0 : 1;
}
