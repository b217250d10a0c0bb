#include "memory.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>

namespace affectrt {
namespace {

constexpr std::size_t kAlignment = 64;
std::atomic<bool> poisoned{false};

}  // namespace

float* Buffer::at_least(std::size_t floats) {
    if (floats > size_ || memory_ == nullptr) {
        constexpr std::size_t kMost = std::numeric_limits<std::size_t>::max() / sizeof(float) - kAlignment;
        if (floats > kMost) throw std::bad_alloc();
        const std::size_t bytes = (std::max<std::size_t>(floats, 1) * sizeof(float) + kAlignment - 1) / kAlignment;
        memory_.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes * kAlignment)));
        size_ = memory_ == nullptr ? 0 : floats;
        if (memory_ == nullptr) throw std::bad_alloc();
    }
    return memory_.get();
}

float* thread_scratch(std::size_t floats) {
    thread_local Buffer buffer;
    float* const scratch = buffer.at_least(floats);
    if (scratch_is_poisoned()) std::fill_n(scratch, floats, std::numeric_limits<float>::quiet_NaN());
    return scratch;
}

void poison_scratch(bool enabled) { poisoned.store(enabled, std::memory_order_relaxed); }
bool scratch_is_poisoned() { return poisoned.load(std::memory_order_relaxed); }

}  // namespace affectrt
