#include "threads.hpp"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace affectrt {
namespace {

// Leaked on purpose: at exit its threads sleep, and nothing must be destroyed under them.
class Pool {
  public:
    // Of this process: threads do not survive a fork.
    static Pool& instance() {
        static std::atomic<Pool*> current{nullptr};
        Pool* pool = current.load(std::memory_order_acquire);
        if (pool != nullptr && pool->process_ == getpid()) return *pool;
        Pool* const fresh = new Pool;
        if (current.compare_exchange_strong(pool, fresh, std::memory_order_acq_rel)) return *fresh;
        delete fresh;
        return *current.load(std::memory_order_acquire);
    }

    void run(std::size_t tasks, std::size_t threads, Task task) {
        const std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        std::size_t helpers = 0;
        if (turn.owns_lock()) {
            helpers = start_threads(threads - 1);
            const std::lock_guard<std::mutex> lock(mutex_);
            task_ = &task;
            tasks_ = tasks;
            next_.store(0, std::memory_order_relaxed);
            invited_ = helpers;
            wake_.notify_all();
        }
        if (helpers == 0) {
            for (std::size_t i = 0; i < tasks; ++i) task(i, 0);
            return;
        }
        work(0);
        std::unique_lock<std::mutex> lock(mutex_);
        invited_ = 0;  // whoever has not come by now finds nothing left
        done_.wait(lock, [this] { return working_ == 0; });
    }

  private:
    Pool() : process_(getpid()) {}

    // How many of `wanted` there are. The caller has the turn.
    std::size_t start_threads(std::size_t wanted) {
        try {
            for (; started_ < wanted; ++started_) std::thread([this, id = started_ + 1] { serve(id); }).detach();
        } catch (const std::system_error&) {
            // No thread to be had: those that there are do all of it.
        }
        return started_ < wanted ? started_ : wanted;
    }

    void serve(std::size_t worker) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return invited_ >= worker && next_.load(std::memory_order_relaxed) < tasks_; });
            ++working_;
            lock.unlock();
            work(worker);
            lock.lock();
            if (--working_ == 0) done_.notify_one();
        }
    }

    void work(std::size_t worker) {
        for (std::size_t i = next_++; i < tasks_; i = next_++) (*task_)(i, worker);
    }

    const pid_t process_;
    std::mutex turn_;
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const Task* task_ = nullptr;
    std::size_t tasks_ = 0, invited_ = 0, working_ = 0, started_ = 0;
    std::atomic<std::size_t> next_{0};
};

}  // namespace

void share(std::size_t tasks, std::size_t threads, Task task) {
    if (threads < 2 || tasks < 2) {
        for (std::size_t i = 0; i < tasks; ++i) task(i, 0);
        return;
    }
    Pool::instance().run(tasks, threads < tasks ? threads : tasks, task);
}

}  // namespace affectrt
