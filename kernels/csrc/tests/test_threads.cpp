// Sharing work: every task once, whoever else shares at the same time, and in a process that was forked meanwhile.
#include "threads.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "attention.hpp"
#include "dispatch.hpp"
#include "doubles.hpp"

namespace affectrt::tests {
namespace {

constexpr std::chrono::seconds kPatience{10};
constexpr unsigned kForkSeconds = 60;  // after which a child that hangs is ended

// Shares `tasks`; false where one did not run exactly once, or two ran with one worker's scratch at the same time.
bool shared_well(std::size_t tasks, std::size_t threads) {
    std::vector<std::atomic<int>> runs(tasks), busy(threads);
    std::atomic<bool> well{true};
    share(tasks, threads, [&](std::size_t task, std::size_t worker) {
        if (worker >= threads || busy[worker].exchange(1) != 0) well = false;
        else {
            ++runs[task];
            busy[worker] = 0;
        }
    });
    for (const std::atomic<int>& run : runs)
        if (run != 1) well = false;
    return well;
}

void test_share() {
    for (std::size_t round = 0; round < 300; ++round)
        for (const std::size_t threads : Sizes{1, 2, 3, 4})
            for (const std::size_t tasks : Sizes{0, 1, 2, 3, 7, 100}) {
                const Case here("share", tasks, "tasks between", threads, "threads");
                expect(shared_well(tasks, threads), "every task once, and one at a time for each worker");
            }
}

void test_callers() {
    const Case here("share", "from four threads at once");
    std::atomic<std::size_t> wrong{0};
    std::vector<std::thread> callers;
    for (std::size_t caller = 0; caller < 4; ++caller)
        callers.emplace_back([&, caller] {
            for (std::size_t round = 0; round < 1000; ++round)
                if (!shared_well(round % 9, 1 + (round + caller) % 4)) ++wrong;
        });
    for (std::thread& caller : callers) caller.join();
    expect_equal(wrong, 0, "rounds that went wrong");
}

// Whether so many threads work at the same time: tasks that wait for each other would never end on fewer.
bool threads_meet(std::size_t threads) {
    std::atomic<std::size_t> arrived{0}, late{0};
    share(threads, threads, [&](std::size_t, std::size_t) {
        ++arrived;
        const auto end = std::chrono::steady_clock::now() + kPatience;
        while (arrived < threads && std::chrono::steady_clock::now() < end) std::this_thread::yield();
        if (arrived < threads) ++late;
    });
    return late == 0;
}

// The operators' results, whoever computes them.
class Operators {
  public:
    explicit Operators(const Kernels& kernels)
        : kernels_(kernels),
          random_(90),
          w_x_(normals(kStreamsUsed * 2 * kHidden * kInputs, random_, 0.3f)),
          w_h_(normals(kStreamsUsed * 2 * kHidden * kHidden, random_, 0.3f)),
          bias_(normals(kStreamsUsed * 2 * kHidden, random_)),
          x_(normals(kStreamsUsed * kBatch * kSteps * kInputs, random_)),
          rnn_({kStreamsUsed, kInputs, kHidden, 1, w_x_.data(), w_h_.data(), bias_.data()}, kernels) {}

    struct Results {
        Results() : h_n(kStreamsUsed * kBatch * kHidden), out(kBatch * kSteps * kInputs) {}
        Floats h_n, out;
    };

    void run(std::size_t threads, Results& to) const {
        GatedRnnCall call{};
        call.batch = kBatch;
        call.steps = kSteps;
        call.x = x_.data();
        call.h_n = to.h_n.data();
        rnn_(call, threads);
        const Rows rows{x_.data(), static_cast<std::ptrdiff_t>(kSteps * kInputs), kInputs};
        const Pair pair{rows, rows, rows, kSteps, kSteps, nullptr, nullptr, nullptr, to.out.data(), nullptr};
        pairwise_attention(&pair, 1, kBatch, kHeads, kInputs / kHeads, kernels_, threads);
    }

    bool same(std::size_t threads, const Results& expected) const {
        Results got;
        run(threads, got);
        return std::memcmp(got.h_n.data(), expected.h_n.data(), got.h_n.size() * sizeof(float)) == 0 &&
               std::memcmp(got.out.data(), expected.out.data(), got.out.size() * sizeof(float)) == 0;
    }

  private:
    static constexpr std::size_t kStreamsUsed = 2, kBatch = 34, kSteps = 12, kInputs = 6, kHidden = 11, kHeads = 2;
    const Kernels& kernels_;
    Random random_;
    Floats w_x_, w_h_, bias_, x_;
    GatedRnn rnn_;
};

void test_results(const Operators& operators, const Operators::Results& expected) {
    std::atomic<std::size_t> wrong{0};
    std::vector<std::thread> callers;
    for (std::size_t caller = 0; caller < 4; ++caller)
        callers.emplace_back([&, caller] {
            for (std::size_t round = 0; round < 40; ++round)
                if (!operators.same(1 + (round + caller) % 4, expected)) ++wrong;
        });
    for (std::thread& caller : callers) caller.join();
    expect_equal(wrong, 0, "results of four threads at once that differ");
}

bool child_succeeds(const std::function<bool()>& work) {
    const pid_t child = fork();
    if (child == 0) {
        alarm(kForkSeconds);
        _exit(work() ? 0 : 1);
    }
    int status = -1;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// Threads don't survive a fork, and one of the parent's may hold the turn at that moment.
void test_fork(const Operators& operators, const Operators::Results& expected) {
    expect(child_succeeds([&] { return threads_meet(3) && operators.same(3, expected); }),
           "a forked process to have threads of its own and to compute the same");
    std::atomic<bool> stop{false}, started{false};
    std::thread busy([&] {
        while (!stop) share(64, 2, [&](std::size_t, std::size_t) {
            for (int i = 0; i < 1000; ++i) started = true;
        });
    });
    while (!started) std::this_thread::yield();
    for (std::size_t round = 0; round < 20; ++round)
        expect(child_succeeds([&] {
                   return operators.same(2, expected) && child_succeeds([&] { return operators.same(2, expected); });
               }), "a process forked while another thread shares work, and its own child, to compute the same");
    stop = true;
    busy.join();
    expect(operators.same(4, expected), "the same from the parent afterwards");
}

}  // namespace

void test_threads() {
    test_share();
    test_callers();
    for (const std::size_t threads : Sizes{2, 3, 4, 2}) {
        const Case here("share", "between", threads, "threads");
        expect(threads_meet(threads), "as many at the same time");
    }
    for (const Kernels* kernels : runnable_kernels()) {
        const Case here("operators", kernels->name);
        const Operators operators(*kernels);
        Operators::Results expected;
        operators.run(1, expected);
        test_results(operators, expected);
        test_fork(operators, expected);
    }
}

}  // namespace affectrt::tests
