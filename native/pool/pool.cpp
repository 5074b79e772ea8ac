// The SPMD pool of pool.h. Every wait is the same: spin on one word for a bounded time, then sleep in the kernel until
// the word changes (std::atomic::wait, a futex on Linux). A spinner that outlives its bound gives its core away, so a
// thread that lost its core to another process is not held up further by those that wait for it.
#include "kamado/pool.h"

#include <chrono>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#ifdef __linux__
#include <pthread.h>
#endif
#ifndef _WIN32
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "kamado/refuse.h"

namespace kamado {
namespace {

constexpr size_t kCacheLine = 64;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t process_id() {
#ifdef _WIN32
  return 0;
#else
  return getpid();
#endif
}

// A word that threads wait on; alone in its cache line.
struct alignas(kCacheLine) Word {
  std::atomic<uint32_t> value{0};

  // Returns the first value seen that differs from `old` (acquire).
  uint32_t wait_while(uint32_t old, std::chrono::nanoseconds spin) {
    uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    // A clock read costs about 25 ns, a pause up to 50 ns: 16 pauses between two reads.
    const auto deadline = std::chrono::steady_clock::now() + spin;
    do {
      for (int i = 0; i < 16; ++i) {
        relax();
        now = value.load(std::memory_order_acquire);
        if (now != old) return now;
      }
    } while (std::chrono::steady_clock::now() < deadline);
    while ((now = value.load(std::memory_order_acquire)) == old) value.wait(old, std::memory_order_acquire);
    return now;
  }
};

constexpr uint32_t kPoisoned = 1;  // low bit of the barrier's word; generations count in steps of 2

}  // namespace

struct Pool::Impl {
  // Written by the caller of run() before `epoch` moves; read by workers after it did.
  void (*fn)(void*, int32_t) = nullptr;
  void* context = nullptr;
  bool stop = false;

  Word epoch;       // +1 a dispatch
  Word unfinished;  // workers that have not finished the current dispatch
  Word generation;  // +2 a barrier passed, | kPoisoned once a thread of this dispatch has thrown
  alignas(kCacheLine) std::atomic<int32_t> arrived{0};
  struct alignas(kCacheLine) {
    std::atomic<int64_t> next[kCounters] = {};  // int64: threads run past `total` by a chunk each
  } counters;

  alignas(kCacheLine) std::atomic<bool> busy{false};
  std::atomic<bool> failed{false};
  std::exception_ptr first_error;  // written by the thread that set `failed`, read after all have finished

  int32_t num_threads;
  std::chrono::nanoseconds spin;
  int64_t pid = process_id();
  std::vector<std::thread> workers;

  Impl(int32_t threads, int64_t spin_us) : num_threads(threads), spin(std::chrono::microseconds(spin_us)) {}

  void call(int32_t id) noexcept {
    try {
      fn(context, id);
    } catch (...) {
      // PoolAborted of a released thread comes second by construction: the poison follows the first error.
      if (!failed.exchange(true, std::memory_order_acq_rel)) first_error = std::current_exception();
      generation.value.fetch_or(kPoisoned, std::memory_order_acq_rel);
      generation.value.notify_all();
    }
  }

  void work(int32_t id) {
    uint32_t seen = 0;
    for (;;) {
      seen = epoch.wait_while(seen, spin);
      if (stop) return;
      call(id);
      if (unfinished.value.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished.value.notify_one();
    }
  }

  void reset_counters() {
    for (auto& next : counters.next) {
      if (next.load(std::memory_order_relaxed) != 0) next.store(0, std::memory_order_relaxed);
    }
  }

  void release_workers() {
    epoch.value.fetch_add(1, std::memory_order_acq_rel);
    epoch.value.notify_all();
  }

  void shut_down() {
    stop = true;
    release_workers();
    for (auto& worker : workers) worker.join();
    workers.clear();
  }
};

Pool::Pool(int32_t num_threads, int64_t spin_us) {
  if (num_threads < 1) refuse("a pool needs at least one thread, got ", num_threads);
  if (spin_us < 0) refuse("spin_us must not be negative, got ", spin_us);
  impl_ = std::make_unique<Impl>(num_threads, spin_us);
  impl_->workers.reserve(static_cast<size_t>(num_threads - 1));
  try {
    for (int32_t id = 1; id < num_threads; ++id) {
      impl_->workers.emplace_back([impl = impl_.get(), id] { impl->work(id); });
#ifdef __linux__
      pthread_setname_np(impl_->workers.back().native_handle(), ("kamado-" + std::to_string(id % 100000)).c_str());
#endif
    }
  } catch (...) {
    impl_->shut_down();
    throw;
  }
}

Pool::~Pool() {
  if (impl_->pid != process_id()) {
    (void)impl_.release();  // after fork() the workers do not exist here: nothing to join, nothing safe to touch
    return;
  }
  impl_->shut_down();
}

int32_t Pool::size() const {
  return impl_->num_threads;
}

void Pool::run(void (*fn)(void* context, int32_t thread_id), void* context) {
  Impl& p = *impl_;
  if (p.pid != process_id()) {
    refuse<std::runtime_error>("this thread pool belongs to the parent process; load the model again after fork()");
  }
  if (p.busy.exchange(true, std::memory_order_acquire)) throw std::logic_error("the thread pool is already running");
  p.fn = fn;
  p.context = context;
  p.first_error = nullptr;
  p.failed.store(false, std::memory_order_relaxed);
  p.arrived.store(0, std::memory_order_relaxed);
  p.generation.value.store(p.generation.value.load(std::memory_order_relaxed) & ~kPoisoned, std::memory_order_relaxed);
  p.reset_counters();
  if (p.num_threads > 1) {
    p.unfinished.value.store(static_cast<uint32_t>(p.num_threads - 1), std::memory_order_relaxed);
    p.release_workers();
  }
  p.call(0);
  for (uint32_t left; (left = p.unfinished.value.load(std::memory_order_acquire)) != 0;)
    p.unfinished.wait_while(left, p.spin);
  const std::exception_ptr error = p.first_error;
  p.first_error = nullptr;
  p.busy.store(false, std::memory_order_release);
  if (error) std::rethrow_exception(error);
}

void Pool::barrier() {
  Impl& p = *impl_;
  const uint32_t generation = p.generation.value.load(std::memory_order_acquire);
  if (generation & kPoisoned) throw PoolAborted{};
  if (p.arrived.fetch_add(1, std::memory_order_acq_rel) == p.num_threads - 1) {
    p.reset_counters();
    p.arrived.store(0, std::memory_order_relaxed);
    const uint32_t before = p.generation.value.fetch_add(2, std::memory_order_acq_rel);
    p.generation.value.notify_all();
    if (before & kPoisoned) throw PoolAborted{};
    return;
  }
  const uint32_t now = p.generation.wait_while(generation, p.spin);
  // Passed and poisoned afterwards counts as passed: the next barrier throws.
  if ((now & ~kPoisoned) == generation) throw PoolAborted{};
}

bool Pool::next_chunk(int32_t slot, int32_t total, int32_t chunk, int32_t* begin, int32_t* end) {
  const int64_t first = impl_->counters.next[slot].fetch_add(chunk, std::memory_order_relaxed);
  if (first >= total) return false;
  *begin = static_cast<int32_t>(first);
  *end = static_cast<int32_t>(first + chunk < total ? first + chunk : total);
  return true;
}

void Pool::reset_counter(int32_t slot) {
  impl_->counters.next[slot].store(0, std::memory_order_relaxed);
}

}  // namespace kamado
