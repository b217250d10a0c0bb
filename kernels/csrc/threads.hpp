// Shares independent tasks between threads that are kept for the next call.
#pragma once

#include <cstddef>

namespace affectrt {

// A reference to a callable (task, worker): nothing is copied or allocated. The worker, below `threads`, is for
// scratch of its own.
class Task {
  public:
    template <typename Callable>
    Task(const Callable& callable)  // NOLINT: implicit on purpose
        : callable_(&callable), call_([](const void* object, std::size_t task, std::size_t worker) {
              (*static_cast<const Callable*>(object))(task, worker);
          }) {}
    void operator()(std::size_t task, std::size_t worker) const { call_(callable_, task, worker); }

  private:
    const void* callable_;
    void (*call_)(const void*, std::size_t, std::size_t);
};

// Runs tasks 0..tasks−1 on the calling thread and up to `threads` − 1 others; returns when all are done. Tasks must
// not throw. Callers take turns: a second one that arrives meanwhile runs its tasks alone.
void share(std::size_t tasks, std::size_t threads, Task task);

}  // namespace affectrt
