// One vector type and the few functions the kernels need on it, as wide as the instruction set this file is
// compiled for. GCC and Clang vector extensions: one source for SSE2, AVX2, AVX-512 and NEON.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace affectrt {
namespace {  // every translation unit has its own copy: they differ in instruction set

#if defined(__AVX512F__)
constexpr std::size_t kLanes = 16;
#elif defined(__AVX2__)
constexpr std::size_t kLanes = 8;
#else
constexpr std::size_t kLanes = 4;
#endif

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef std::uint32_t Bits __attribute__((vector_size(kLanes * sizeof(float))));

inline Lanes load(const float* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline void store(float* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

// e^x to about 2 ulp for |x| <= 87; beyond, the value at ±87. NaN stays NaN.
inline Lanes exp_clamped(Lanes x) {
    const Lanes zero{};
    x = x < zero - 87.0f ? zero - 87.0f : x;
    x = x > zero + 87.0f ? zero + 87.0f : x;
    // Adding 1.5·2^23 rounds to the nearest integer n and leaves n in the low bits of the pattern.
    const float shifter = 12582912.0f;
    const Lanes shifted = x * 1.44269504f + shifter;
    const Lanes n = shifted - shifter;
    const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    Lanes p = zero + 1.9875691500e-4f;  // Cephes expf: minimax on |r| <= ln(2)/2
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    Bits pattern;
    Bits exponent;
    std::memcpy(&pattern, &p, sizeof pattern);
    std::memcpy(&exponent, &shifted, sizeof exponent);
    pattern += exponent << 23;  // p · 2^n
    std::memcpy(&p, &pattern, sizeof p);
    return p;
}

inline Lanes sigmoid(Lanes x) { return 1.0f / (1.0f + exp_clamped(-x)); }

// Absolute error below 2e-7, which is what the recurrence needs; not relatively exact near 0.
inline Lanes tanh(Lanes x) { return 1.0f - 2.0f / (1.0f + exp_clamped(x + x)); }

}  // namespace
}  // namespace affectrt
