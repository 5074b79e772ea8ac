// The executor from C++, where sanitizers see it: one small program of each kind of node and state, compared bit by bit
// over threads and chunkings; and a step that allocates nothing once it has run.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "check.h"
#include "tiny_program.h"

namespace {
std::atomic<int64_t> allocations{0};
}

// Counts every allocation of the process.
[[gnu::noinline]] void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* pointer = std::malloc(size > 0 ? size : 1)) return pointer;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t size, const std::nothrow_t&) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size > 0 ? size : 1);
}
[[gnu::noinline]] void* operator new[](size_t size) {
  return operator new(size);
}
[[gnu::noinline]] void operator delete(void* pointer) noexcept {
  std::free(pointer);
}
[[gnu::noinline]] void operator delete[](void* pointer) noexcept {
  std::free(pointer);
}
[[gnu::noinline]] void operator delete(void* pointer, size_t) noexcept {
  std::free(pointer);
}
[[gnu::noinline]] void operator delete[](void* pointer, size_t) noexcept {
  std::free(pointer);
}

namespace {

using namespace kamado::test;
using kamado::Executor;

bool same(const float* a, const float* b, size_t rows) {
  return std::memcmp(a, b, rows * kVocab * sizeof(float)) == 0;
}

void test_threads_and_chunks(Weights& weights) {
  const std::vector<int32_t> tokens = some_tokens(200);
  auto reference = make_executor(weights, 1);
  const std::vector<float> expected = step(*reference, create(*reference), tokens);
  for (const int32_t threads : {1, 2, 4}) {
    auto executor = make_executor(weights, threads);
    const int32_t sequence = create(*executor);
    size_t begin = 0;
    for (const size_t count : {1u, 1u, 50u, 76u, 2u, 1u, 1u, 60u, 8u}) {
      const std::vector<int32_t> part(tokens.begin() + static_cast<int64_t>(begin),
                                      tokens.begin() + static_cast<int64_t>(begin + count));
      const std::vector<float> logits = step(*executor, sequence, part);
      CHECK(same(logits.data(), expected.data() + begin * kVocab, count));
      begin += count;
    }
  }
}

void test_no_allocation(Weights& weights) {
  auto executor = make_executor(weights, 2);
  const int32_t first = create(*executor), second = create(*executor);
  const int32_t sequences[] = {first, second}, one[] = {0}, two[] = {0, 30};
  const std::vector<int32_t> tokens = some_tokens(120);
  const Executor::Poll poll;
  const auto serve = [&] {
    const int32_t mixed[] = {30, 1};
    executor->step({sequences, mixed, 2, tokens.data(), 31, two, 2}, poll);
    const int32_t single[] = {1};
    executor->step({sequences, single, 1, tokens.data(), 1, one, 1}, poll);
  };
  serve();
  executor->tile_kv(first, 150);  // the page that the next steps need
  executor->tile_kv(second, 100);
  serve();
  const int64_t before = allocations.load();
  serve();
  serve();
  const bool is_quiet = allocations.load() == before;
  CHECK(is_quiet);
}

void test_cancel(Weights& weights) {
  auto executor = make_executor(weights, 2);
  const int32_t sequence = create(*executor);
  const std::vector<int32_t> tokens = some_tokens(200);
  const std::vector<float> expected = step(*executor, sequence, tokens);
  for (int i = 0; i < 20; ++i) {
    executor->state().truncate(sequence, 0);
    std::thread canceller([&executor] { executor->cancel(); });
    bool is_cancelled = false;
    try {
      step(*executor, sequence, tokens);
    } catch (const kamado::Cancelled&) {
      is_cancelled = true;
    }
    canceller.join();
    CHECK(executor->state().length(sequence) == (is_cancelled ? 0 : 200));
    try {  // a request that came after the step is due now
      executor->state().truncate(sequence, 0);
      step(*executor, sequence, tokens);
    } catch (const kamado::Cancelled&) {
      CHECK(!is_cancelled);
    }
  }
  executor->state().truncate(sequence, 0);
  CHECK(same(step(*executor, sequence, tokens).data(), expected.data(), 200));
}

// A step of which the last row is taken back, as often as it is handed back.
void test_rows_are_taken_back(Weights& weights) {
  auto executor = make_executor(weights, 2, 2);
  const std::vector<int32_t> tokens = some_tokens(100);
  const std::vector<float> expected = step(*executor, create(*executor), tokens);
  const int32_t sequence = create(*executor);
  for (size_t begin = 0; begin + 2 <= tokens.size(); ++begin) {
    const std::vector<float> logits = step(*executor, sequence, {tokens[begin], 5});
    CHECK(same(logits.data(), expected.data() + begin * kVocab, 1));
    executor->state().truncate(sequence, static_cast<int64_t>(begin) + 1);
  }
}

}  // namespace

int main() {
  Weights weights;
  test_threads_and_chunks(weights);
  test_no_allocation(weights);
  test_cancel(weights);
  test_rows_are_taken_back(weights);
  return kamado::test::finish();
}
