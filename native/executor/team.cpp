#include "executor/team.h"

#include <algorithm>

namespace kamado {
namespace {

constexpr auto kPollEvery = std::chrono::milliseconds(50);

}  // namespace

Team::Team(int32_t num_threads, int32_t num_counters)
    : pool_(num_threads),
      num_counters_(num_counters),
      counters_(std::make_unique<Counter[]>(static_cast<size_t>(std::max(num_counters, 1)))) {}

void Team::reset_counters(int32_t first) {
  for (int32_t i = first; i < num_counters_; ++i) counter(i).reset();
}

void Team::run(void (*run)(void* context, int32_t thread), void* context, const Executor::Poll& poll) {
  poll_ = &poll;
  last_poll_ = std::chrono::steady_clock::now();
  try {
    pool_.run(run, context);
  } catch (...) {
    is_cancelled_.store(false, std::memory_order_relaxed);
    throw;
  }
}

void Team::check_cancel(int32_t thread) {
  if (is_cancelled_.load(std::memory_order_relaxed)) throw Cancelled();
  if (thread != 0 || !*poll_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_poll_ < kPollEvery) return;
  last_poll_ = now;
  if ((*poll_)()) throw Cancelled();
}

}  // namespace kamado
