// Aligned memory that is kept between calls: after the first call of its kind, an operator allocates nothing.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace affectrt {

// Floats on a cache line's boundary: a vector load across two lines costs twice.
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(std::size_t floats) { at_least(floats); }

    // At least so many floats; what was there before is lost when it has to grow. Throws std::bad_alloc.
    float* at_least(std::size_t floats);

    float* data() const { return memory_.get(); }
    std::size_t size() const { return size_; }

  private:
    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };
    std::unique_ptr<float[], Free> memory_;
    std::size_t size_ = 0;
};

// Hands out pieces of a block, each on a cache line's boundary.
class Pieces {
  public:
    explicit Pieces(float* from) : next_(from) {}
    float* take(std::size_t floats) {
        float* const piece = next_;
        next_ += rounded(floats);
        return piece;
    }
    static constexpr std::size_t rounded(std::size_t floats) { return (floats + 15) / 16 * 16; }

  private:
    float* next_;
};

// Scratch of the calling thread, valid until its next call. Throws std::bad_alloc.
float* thread_scratch(std::size_t floats);

// For tests: fill all scratch with NaN before it is used, so that whatever is read unwritten shows.
void poison_scratch(bool enabled);
bool scratch_is_poisoned();

}  // namespace affectrt
