// Counts what is allocated, and makes it fail: the linker sends the allocator's functions here (--wrap).
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <new>

#include "check.hpp"

namespace {

std::atomic<std::size_t> calls{0};
constexpr std::size_t kNever = std::numeric_limits<std::size_t>::max();
thread_local std::size_t left = kNever;  // until allocations fail

bool granted() {
    ++calls;
    if (left == kNever) return true;
    if (left == 0) return false;
    --left;
    return true;
}

}  // namespace

extern "C" {

void* __real_malloc(std::size_t size);
void* __real_calloc(std::size_t count, std::size_t size);
void* __real_realloc(void* memory, std::size_t size);
void* __real_aligned_alloc(std::size_t alignment, std::size_t size);
int __real_posix_memalign(void** memory, std::size_t alignment, std::size_t size);

void* __wrap_malloc(std::size_t size);
void* __wrap_calloc(std::size_t count, std::size_t size);
void* __wrap_realloc(void* memory, std::size_t size);
void* __wrap_aligned_alloc(std::size_t alignment, std::size_t size);
int __wrap_posix_memalign(void** memory, std::size_t alignment, std::size_t size);

void* __wrap_malloc(std::size_t size) { return granted() ? __real_malloc(size) : nullptr; }
void* __wrap_calloc(std::size_t count, std::size_t size) { return granted() ? __real_calloc(count, size) : nullptr; }
void* __wrap_realloc(void* memory, std::size_t size) { return granted() ? __real_realloc(memory, size) : nullptr; }
void* __wrap_aligned_alloc(std::size_t alignment, std::size_t size) {
    return granted() ? __real_aligned_alloc(alignment, size) : nullptr;
}
int __wrap_posix_memalign(void** memory, std::size_t alignment, std::size_t size) {
    return granted() ? __real_posix_memalign(memory, alignment, size) : ENOMEM;
}

}  // extern "C"

// The standard library's own would reach the allocator past the linker.
void* operator new(std::size_t size) {
    if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace affectrt::tests {

std::size_t allocations() { return calls; }

FailingAllocations::FailingAllocations(std::size_t first) { left = first; }
FailingAllocations::~FailingAllocations() { left = kNever; }

}  // namespace affectrt::tests
