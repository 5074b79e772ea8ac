// A small SPMD thread pool. One dispatch runs the same function on every thread (the caller is thread 0); inside,
// threads meet at barriers. Waiting spins for a bounded time, then sleeps, so that an idle server burns nothing. Not a
// global: two executors can live in one process. No allocation per dispatch. Survives fork() by refusing use in the
// child.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace kamado {

class Pool {
 public:
  explicit Pool(int32_t num_threads, int64_t spin_us = 50);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int32_t size() const;

  // Runs fn(context, thread_id) on all threads and returns when all are done. The first exception thrown by any thread
  // is rethrown here; the others are released from their barriers (a throwing thread poisons the barrier: barrier()
  // throws PoolAborted on the rest).
  void run(void (*fn)(void* context, int32_t thread_id), void* context);

  // Called by every thread of the current run; bounded spin, then futex.
  void barrier();

  // Work sharing inside a run: each thread takes the next chunk until `total` is exhausted. Counters are reset by the
  // barrier that precedes their use; `slot` < kCounters lets consecutive phases use different ones without a barrier.
  static constexpr int kCounters = 4;
  bool next_chunk(int32_t slot, int32_t total, int32_t chunk, int32_t* begin, int32_t* end);
  void reset_counter(int32_t slot);  // by one thread, before a barrier

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct PoolAborted {};

}  // namespace kamado
