// The threads of an executor: how they share work items out, meet, and are stopped.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "kamado/executor.h"
#include "kamado/pool.h"

namespace kamado {

// Work items that are taken one by one. Alone in its cache line.
struct alignas(64) Counter {
  std::atomic<int32_t> value{0};
  int32_t take() { return value.fetch_add(1, std::memory_order_relaxed); }
  void reset() { value.store(0, std::memory_order_relaxed); }
};

class Team {
 public:
  Team(int32_t num_threads, int32_t num_counters);

  int32_t size() const { return pool_.size(); }
  Pool& pool() { return pool_; }  // for work outside of steps
  void barrier() { pool_.barrier(); }
  Counter& counter(int32_t index) { return counters_[static_cast<size_t>(index)]; }
  void reset_counters(int32_t first);  // and all after it, while nobody takes

  // One step: run(context, thread) on every thread. Throws Cancelled when `cancel` was called or `poll` says so, which
  // threads learn from check_cancel.
  void run(void (*run)(void* context, int32_t thread), void* context, const Executor::Poll& poll);
  void check_cancel(int32_t thread);
  void cancel() { is_cancelled_.store(true, std::memory_order_relaxed); }  // from any thread

 private:
  Pool pool_;
  int32_t num_counters_;
  std::unique_ptr<Counter[]> counters_;
  const Executor::Poll* poll_ = nullptr;
  std::chrono::steady_clock::time_point last_poll_;
  std::atomic<bool> is_cancelled_{false};
};

}  // namespace kamado
