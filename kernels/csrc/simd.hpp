// One vector type and the few functions the kernels need on it, as wide as the instruction set this file is
// compiled for. GCC and Clang vector extensions: one source for SSE2, AVX2, AVX-512 and NEON.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace affectrt {
namespace {  // every translation unit has its own copy: they differ in instruction set

#if defined(__AVX512F__)
constexpr std::size_t kWidest = 16;
#elif defined(__AVX2__)
constexpr std::size_t kWidest = 8;
#else
constexpr std::size_t kWidest = 4;
#endif

// Attention's lanes are queries, a few dozen: vectors of 16 would leave more of them idle than they save where they
// run at half the rate of vectors of 8, as they do on most processors of the edge.
constexpr std::size_t kAttendLanes = kWidest < 8 ? kWidest : 8;

#if defined(AFFECTRT_ATTEND_ONLY)
constexpr std::size_t kLanes = kAttendLanes;
#else
constexpr std::size_t kLanes = kWidest;
#endif

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef std::uint32_t Bits __attribute__((vector_size(kLanes * sizeof(float))));

inline Lanes load(const float* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline void store(float* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

// x − 0 is x whatever its sign, so nothing is computed; x + 0 would be.
inline Lanes broadcast(float x) { return x - Lanes{}; }

constexpr float kInfinity = __builtin_inff();
constexpr float kLog2E = 1.44269504f;

// Of a number and NaN, the second.
inline Lanes max(Lanes a, Lanes b) { return a > b ? a : b; }
inline Lanes min(Lanes a, Lanes b) { return a < b ? a : b; }

inline float sum_of(Lanes lanes) {
    typedef float Four __attribute__((vector_size(4 * sizeof(float))));
    Four parts[kLanes / 4];
    std::memcpy(parts, &lanes, sizeof parts);
    for (std::size_t i = 1; i < kLanes / 4; ++i) parts[0] += parts[i];
    return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

// Adding 1.5·2^23 rounds to the nearest integer and leaves it in the low bits of the pattern.
constexpr float kShifter = 12582912.0f;

// x · 2^n, where `shifted` is n + kShifter and the result is a normal number.
inline Lanes scale_by_power(Lanes x, Lanes shifted) {
    Bits pattern;
    Bits exponent;
    std::memcpy(&pattern, &x, sizeof pattern);
    std::memcpy(&exponent, &shifted, sizeof exponent);
    pattern += exponent << 23;
    std::memcpy(&x, &pattern, sizeof x);
    return x;
}

// 2^x to 1e-7 for x <= 126; below −126 a number too small to count. NaN stays NaN. Step by step for all of `x`: one
// chain of dependent steps after another would fill the processor's queues with waiting ones.
template <std::size_t Count>
inline void exp2(Lanes (&x)[Count]) {
    constexpr float kTerms[] = {9.6755419e-3f, 5.5507135e-2f, 2.4022120e-1f, 6.9314694e-1f, 1.0f};
    Lanes shifted[Count];
    Lanes p[Count];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < Count; ++i) x[i] = max(broadcast(-126.0f), x[i]);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < Count; ++i) shifted[i] = x[i] + kShifter;
#pragma GCC unroll 8
    for (std::size_t i = 0; i < Count; ++i) x[i] = x[i] - (shifted[i] - kShifter);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < Count; ++i) p[i] = broadcast(1.3276463e-3f);  // least relative error on |r| <= 1/2
#pragma GCC unroll 8
    for (const float term : kTerms) {
#pragma GCC unroll 8
        for (std::size_t i = 0; i < Count; ++i) p[i] = p[i] * x[i] + term;
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < Count; ++i) x[i] = scale_by_power(p[i], shifted[i]);
}

inline Lanes exp2(Lanes x) {
    Lanes one[1] = {x};
    exp2(one);
    return one[0];
}

// log2 x to 2e-7 for normal x > 0. NaN stays NaN.
inline Lanes log2(Lanes x) {
    Bits pattern;
    std::memcpy(&pattern, &x, sizeof pattern);
    const Bits offset = pattern - 0x3f3504f3u;  // from √½ on, so that the mantissa lies around 1
    const Bits exponent = (offset >> 23) + ((offset >> 31) * 0xfffffe00u);  // arithmetic shift
    const Bits mantissa_bits = pattern - (exponent << 23);
    Lanes mantissa;
    std::memcpy(&mantissa, &mantissa_bits, sizeof mantissa);
    const Bits shifted_bits = exponent + 0x4b400000u;  // the pattern of kShifter: its low bits count
    Lanes whole;
    std::memcpy(&whole, &shifted_bits, sizeof whole);
    const Lanes t = (mantissa - 1.0f) / (mantissa + 1.0f);
    const Lanes t2 = t * t;
    Lanes series = broadcast(0.320598898f);  // 2/ln 2 · (1, 1/3, 1/5, 1/7, 1/9)
    series = series * t2 + 0.412198583f;
    series = series * t2 + 0.577078016f;
    series = series * t2 + 0.961796694f;
    series = series * t2 + 2.88539008f;
    const Lanes result = (whole - kShifter) + series * t;
    return x == x ? result : x;
}

inline Lanes sigmoid(Lanes x) { return 1.0f / (1.0f + exp2(min(broadcast(126.0f), x * -kLog2E))); }

// Absolute error below 2e-7, which is what the recurrence needs; not relatively exact near 0.
inline Lanes tanh(Lanes x) { return 1.0f - 2.0f / (1.0f + exp2(min(broadcast(126.0f), x * (2.0f * kLog2E)))); }

}  // namespace
}  // namespace affectrt
