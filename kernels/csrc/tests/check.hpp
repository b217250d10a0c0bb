// What the tests are written with: cases and comparisons, guarded memory, numbers that are alike everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kernels.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace affectrt::tests {

using Doubles = std::vector<double>;
using Sizes = std::initializer_list<std::size_t>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinite = std::numeric_limits<float>::infinity();

// The largest absolute differences from the same computed in double. Inputs, and so results, are of the order of 1.
constexpr double kProductTolerance = 5e-6;
constexpr double kConvolutionTolerance = 1e-5;
constexpr double kNormalTolerance = 1e-5;
constexpr double kStateTolerance = 5e-6;
constexpr double kAttentionTolerance = 3e-6;
constexpr double kLogSumTolerance = 5e-6;
constexpr double kFusionTolerance = 1e-5;

// What is being tested, for the message of a failure. Cases nest.
class Case {
  public:
    template <typename... Parts>
    explicit Case(const Parts&... parts) {
        std::ostringstream line;
        (void)std::initializer_list<int>{(line << parts << ' ', 0)...};
        begin(line.str());
    }
    ~Case();
    Case(const Case&) = delete;
    Case& operator=(const Case&) = delete;

  private:
    static void begin(std::string line);
};

// Products in a case: larger ones are left out, where an emulator or a sanitizer makes them slow.
extern std::size_t most_products;

// Prints the case and the message. The program ends with the number of failures.
void fail(const std::string& message);
std::size_t failures();
std::size_t comparisons();

void expect(bool holds, const std::string& what);
void expect_equal(std::size_t got, std::size_t expected, const std::string& what);
// NaN and infinities are equal to themselves only.
void expect_close(const float* got, const double* expected, std::size_t count, double tolerance,
                  const std::string& what);
// Bit by bit.
void expect_same(const float* got, const float* expected, std::size_t count, const std::string& what);
// What an input of NaN or infinity may lead to: numbers within ±limit, or NaN.
void expect_defined(const float* got, std::size_t count, float limit, const std::string& what);

// SplitMix64 (Steele, Lea and Flood 2014).
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t bits();
    std::size_t below(std::size_t count) { return static_cast<std::size_t>(bits() % count); }
    float uniform(float low, float high);
    float normal();  // near enough: the sum of four uniform numbers, of variance 1

  private:
    std::uint64_t state_;
};

// An array between two guards: writing to them fails the test, reading them gives NaN, or stops where an address
// sanitizer watches. Its floats start as NaN, and aligned as badly as a caller's may be.
template <typename T>
class Guarded {
  public:
    explicit Guarded(std::size_t size) : size_(size), memory_(size + 2 * kGuard) {
        std::memset(memory_.data(), 0xff, memory_.size() * sizeof(T));
        watch(true);
    }
    Guarded(std::size_t size, const std::function<T()>& next) : Guarded(size) {
        for (std::size_t i = 0; i < size; ++i) data()[i] = next();
    }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    ~Guarded() {
        watch(false);
        const auto* const bytes = reinterpret_cast<const unsigned char*>(memory_.data());
        const std::size_t first = kGuard * sizeof(T), last = first + size_ * sizeof(T);
        for (std::size_t i = 0; i < memory_.size() * sizeof(T); ++i) {
            if ((i >= first && i < last) || bytes[i] == 0xff) continue;
            fail(std::string("wrote ") + (i < first ? "before" : "past the end of") + " an array of " +
                 std::to_string(size_));
            return;
        }
    }

    T* data() { return memory_.data() + kGuard; }
    const T* data() const { return memory_.data() + kGuard; }
    std::size_t size() const { return size_; }
    T& operator[](std::size_t i) { return data()[i]; }
    const T& operator[](std::size_t i) const { return data()[i]; }

  private:
    // A multiple of 8 bytes, as sanitizers want it, and of no vector.
    static constexpr std::size_t kGuard = 34;

    void watch(bool on) {
#if defined(__SANITIZE_ADDRESS__)
        for (T* guard : {memory_.data(), memory_.data() + kGuard + size_}) {
            if (on) __asan_poison_memory_region(guard, kGuard * sizeof(T));
            else __asan_unpoison_memory_region(guard, kGuard * sizeof(T));
        }
#else
        (void)on;
#endif
    }

    std::size_t size_;
    std::vector<T> memory_;
};
using Floats = Guarded<float>;

// `scale` × normal numbers.
Floats normals(std::size_t size, Random& random, float scale = 1.0f);
Doubles widened(const float* values, std::size_t count);
inline Doubles widened(const Floats& values) { return widened(values.data(), values.size()); }
// 1/√depth: what keeps a sum of so many products of the order of 1.
float share_of(std::size_t depth);

// Calls of the allocator since the start, by any thread.
std::size_t allocations();

// While it lives, the calling thread's allocations fail from the one numbered `first` on, counted from 0.
class FailingAllocations {
  public:
    explicit FailingAllocations(std::size_t first);
    ~FailingAllocations();
    FailingAllocations(const FailingAllocations&) = delete;
    FailingAllocations& operator=(const FailingAllocations&) = delete;
};

// The groups, one a file; each goes through the instruction sets that this machine runs.
void test_layers();
void test_gated_rnn();
void test_attention();
void test_ring();
void test_ghrnn_cma();
void test_stream();
void test_memory();
void test_threads();

}  // namespace affectrt::tests
