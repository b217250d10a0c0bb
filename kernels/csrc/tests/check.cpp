#include "check.hpp"

#include <atomic>
#include <cmath>
#include <cstdio>

#if defined(__SANITIZE_ADDRESS__)
// What is too large is refused with a null, as without the sanitizer.
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
#endif

namespace affectrt::tests {
namespace {

constexpr std::size_t kMostPrinted = 25;

// A case belongs to the thread that began it.
thread_local std::vector<std::string> cases;
std::atomic<std::size_t> failed{0}, compared{0};

std::string number(double value) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%.9g", value);
    return digits;
}

bool close(double got, double expected, double tolerance) {
    if (std::isnan(expected)) return std::isnan(got);
    if (std::isinf(expected)) return got == expected;
    return std::abs(got - expected) <= tolerance;
}

}  // namespace

void Case::begin(std::string line) { cases.push_back(std::move(line)); }
Case::~Case() { cases.pop_back(); }

void fail(const std::string& message) {
    const std::size_t before = failed++;
    if (before > kMostPrinted) return;
    if (before == kMostPrinted) {
        std::printf("FAILED: and more\n");
        return;
    }
    std::string where;
    for (const std::string& line : cases) where += line;
    std::printf("FAILED: %s: %s\n", where.c_str(), message.c_str());
}

std::size_t most_products = 60'000'000;

std::size_t failures() { return failed; }
std::size_t comparisons() { return compared; }

void expect(bool holds, const std::string& what) {
    ++compared;
    if (!holds) fail("expected " + what);
}

void expect_equal(std::size_t got, std::size_t expected, const std::string& what) {
    ++compared;
    if (got != expected) fail(what + ": expected " + std::to_string(expected) + ", got " + std::to_string(got));
}

void expect_close(const float* got, const double* expected, std::size_t count, double tolerance,
                  const std::string& what) {
    compared += count;
    for (std::size_t i = 0; i < count; ++i) {
        const auto value = static_cast<double>(got[i]);
        if (close(value, expected[i], tolerance)) continue;
        return fail(what + "[" + std::to_string(i) + "]: expected " + number(expected[i]) + " ± " +
                    number(tolerance) + ", got " + number(value));
    }
}

void expect_same(const float* got, const float* expected, std::size_t count, const std::string& what) {
    compared += count;
    for (std::size_t i = 0; i < count; ++i) {
        if (std::memcmp(got + i, expected + i, sizeof(float)) == 0) continue;
        return fail(what + "[" + std::to_string(i) + "]: expected exactly " +
                    number(static_cast<double>(expected[i])) + ", got " + number(static_cast<double>(got[i])));
    }
}

void expect_defined(const float* got, std::size_t count, float limit, const std::string& what) {
    compared += count;
    for (std::size_t i = 0; i < count; ++i) {
        if (std::isnan(got[i]) || std::abs(got[i]) <= limit) continue;
        return fail(what + "[" + std::to_string(i) + "]: expected NaN or a number within ±" +
                    number(static_cast<double>(limit)) + ", got " + number(static_cast<double>(got[i])));
    }
}

std::uint64_t Random::bits() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

float Random::uniform(float low, float high) {
    return low + (high - low) * static_cast<float>(bits() >> 40) * 0x1p-24f;
}

float Random::normal() {
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) sum += uniform(-0.5f, 0.5f);
    return sum * 1.73205081f;
}

Floats normals(std::size_t size, Random& random, float scale) {
    return Floats(size, [&] { return scale * random.normal(); });
}

Doubles widened(const float* values, std::size_t count) { return Doubles(values, values + count); }

float share_of(std::size_t depth) { return depth == 0 ? 1.0f : 1.0f / std::sqrt(static_cast<float>(depth)); }

}  // namespace affectrt::tests
