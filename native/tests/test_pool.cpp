// The thread pool: every thread runs once a dispatch, barriers order what comes before and after, errors come back to
// the caller and free the others, a forked child is refused. Run under the thread sanitizer too.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "kamado/pool.h"

namespace {

using kamado::Pool;

// Runs a callable on the pool without allocating.
template <class Fn>
void run(Pool& pool, Fn& fn) {
  pool.run([](void* context, int32_t id) { (*static_cast<Fn*>(context))(id); }, &fn);
}

void test_every_thread_once(Pool& pool) {
  std::vector<int> calls(static_cast<size_t>(pool.size()));
  for (int round = 0; round < 200; ++round) {
    auto fn = [&](int32_t id) { ++calls[static_cast<size_t>(id)]; };  // plain ints: run() must order them
    run(pool, fn);
  }
  bool ok = true;
  for (const int c : calls) ok &= c == 200;
  CHECK(ok);
}

void test_barriers(Pool& pool) {
  const auto n = static_cast<size_t>(pool.size());
  std::vector<int> values(n, 0);
  std::vector<int> wrong(n, 0);
  auto fn = [&](int32_t id) {
    for (int phase = 1; phase <= 500; ++phase) {
      values[static_cast<size_t>(id)] = phase;
      pool.barrier();
      for (const int v : values) wrong[static_cast<size_t>(id)] += v != phase;
      pool.barrier();
    }
  };
  run(pool, fn);
  bool ok = true;
  for (const int w : wrong) ok &= w == 0;
  CHECK(ok);
}

void test_chunks(Pool& pool) {
  std::vector<int> taken(1000, 0);
  auto fn = [&](int32_t) {
    int32_t begin, end;
    for (int round = 0; round < 3; ++round) {  // a barrier makes every counter start again
      while (pool.next_chunk(0, 990, 7, &begin, &end)) {
        for (int32_t i = begin; i < end; ++i) ++taken[static_cast<size_t>(i)];
      }
      while (pool.next_chunk(1, 10, 64, &begin, &end)) {  // another slot needs no barrier in between
        for (int32_t i = begin; i < end; ++i) ++taken[static_cast<size_t>(990 + i)];
      }
      pool.barrier();
    }
  };
  run(pool, fn);
  bool ok = true;
  for (const int t : taken) ok &= t == 3;
  CHECK(ok);
  int32_t begin = 0, end = 0;
  int64_t sum = 0;
  auto huge = [&](int32_t id) {
    if (id == 0) {
      pool.reset_counter(2);
      while (pool.next_chunk(2, INT32_MAX, INT32_MAX - 1, &begin, &end)) sum += end - begin;
      for (int i = 0; i < 5; ++i) CHECK(!pool.next_chunk(2, INT32_MAX, INT32_MAX - 1, &begin, &end));  // no wrap
    }
  };
  run(pool, huge);
  CHECK(sum == INT32_MAX);
}

void test_errors(Pool& pool) {
  for (int round = 0; round < 50; ++round) {
    const int32_t guilty = round % pool.size();
    std::vector<int> passed(static_cast<size_t>(pool.size()), 0);
    auto fn = [&](int32_t id) {
      pool.barrier();
      if (id == guilty) throw std::runtime_error("thread " + std::to_string(id));
      pool.barrier();  // would wait for ever without the poison
      passed[static_cast<size_t>(id)] = 1;
    };
    std::string message;
    try {
      run(pool, fn);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    CHECK_MSG(message == "thread " + std::to_string(guilty), message);
    bool ok = true;
    for (const int p : passed) ok &= p == 0;
    CHECK(ok);
  }
  auto all_throw = [](int32_t) { throw std::invalid_argument("all"); };
  bool is_thrown = false;
  try {
    run(pool, all_throw);
  } catch (const std::invalid_argument&) {
    is_thrown = true;
  }
  CHECK(is_thrown);
  bool is_refused = false;
  auto nested = [&](int32_t id) {
    auto inner = [](int32_t) {};
    if (id == 0) run(pool, inner);
  };
  try {
    run(pool, nested);
  } catch (const std::logic_error&) {
    is_refused = true;
  }
  CHECK(is_refused);
  test_barriers(pool);  // as good as new
}

void test_sleepers(Pool& pool) {
  // One thread is late at the barrier and the caller is late with the next dispatch, both by more than any spin.
  int after = 0;
  auto fn = [&](int32_t id) {
    if (id == pool.size() - 1) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pool.barrier();
    if (id == 0) ++after;
  };
  for (int i = 0; i < 3; ++i) {
    run(pool, fn);
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
  CHECK(after == 3);
}

#if defined(__SANITIZE_THREAD__) || defined(KAMADO_IS_EMULATED)  // CMakeLists.txt says why
constexpr bool kCanFork = false;
#else
constexpr bool kCanFork = true;
#endif

void test_fork(Pool& pool) {
  const pid_t child = fork();
  if (child == 0) {
    int code = 1;
    try {
      auto fn = [](int32_t) {};
      run(pool, fn);
    } catch (const std::runtime_error&) {
      code = 0;
    }
    {
      Pool own(2);  // a pool made in the child works
      int calls[2] = {};
      auto fn = [&](int32_t id) { ++calls[id]; };
      run(own, fn);
      if (calls[0] != 1 || calls[1] != 1) code = 2;
    }
    _exit(code);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void test_fork_destructor() {
  auto pool = std::make_unique<Pool>(3);
  const pid_t child = fork();
  if (child == 0) {
    pool.reset();  // must not wait for threads that only the parent has
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void measure(Pool& pool) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 20000;
  const auto nanoseconds = [](Clock::time_point since) {
    return std::chrono::duration<double, std::nano>(Clock::now() - since).count() / kRounds;
  };
  auto barriers = [&](int32_t) {
    for (int i = 0; i < kRounds; ++i) pool.barrier();
  };
  auto start = Clock::now();
  run(pool, barriers);
  const double barrier_ns = nanoseconds(start);
  auto nothing = [](int32_t) {};
  start = Clock::now();
  for (int i = 0; i < kRounds; ++i) run(pool, nothing);
  std::printf("%d threads: barrier %.0f ns, dispatch %.0f ns\n", pool.size(), barrier_ns, nanoseconds(start));
}

}  // namespace

int main(int argc, char** argv) {
  for (const int32_t threads : {1, 2, 3, 7}) {
    for (const int64_t spin_us : {0, 50}) {
      Pool pool(threads, spin_us);
      CHECK(pool.size() == threads);
      test_every_thread_once(pool);
      test_barriers(pool);
      test_chunks(pool);
      test_errors(pool);
      test_sleepers(pool);
    }
  }
  {
    Pool pool(2);
    if (argc > 1 && std::strcmp(argv[1], "--measure") == 0) {
      for (int i = 0; i < 5; ++i) measure(pool);
    }
    if constexpr (kCanFork) {
      test_fork(pool);
      test_fork_destructor();
    } else {
      kamado::test::skip("fork() under the thread sanitizer or an emulator");
    }
  }
  bool is_refused = false;
  try {
    Pool none(0);
  } catch (const std::invalid_argument&) {
    is_refused = true;
  }
  CHECK(is_refused);
  return kamado::test::finish();
}
