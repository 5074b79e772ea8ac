// The executor from C++, where sanitizers see it: one small program of each kind of node and state, compared bit by bit
// over threads and chunkings; and a step that allocates nothing once it has run.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "kamado/executor.h"
#include "kamado/state.h"

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

using kamado::Executor;
using kamado::ExecutorOptions;
using kamado::Layout;
using kamado::ProgramBuilder;

constexpr int32_t kVocab = 67, kHidden = 32, kWidth = 48, kExperts = 6, kSourceTokens = 150;

// A file of small random floats, removed at the end; tensors are taken one after another.
struct Weights {
  std::string path;
  uint64_t offset = 0;

  Weights() {
    char name[] = "/tmp/kamado-test-XXXXXX";
    const int fd = ::mkstemp(name);
    CHECK(fd >= 0);
    ::close(fd);
    path = name;
    std::vector<float> values(200000);
    uint32_t state = 1;
    for (float& value : values) {
      state = state * 1664525u + 1013904223u;
      value = (static_cast<float>(state >> 8) / 8388608.0f - 1.0f) * 0.3f;
    }
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
  }
  ~Weights() { std::remove(path.c_str()); }

  int32_t matrix(ProgramBuilder& builder, int64_t rows, int64_t cols) {
    const uint64_t at = offset;
    offset += static_cast<uint64_t>(rows * cols) * sizeof(float);
    return builder.matrix("m", path, at, static_cast<int32_t>(Layout::F32), rows, cols);
  }
  int32_t vector(ProgramBuilder& builder, int64_t length) {
    const uint64_t at = offset;
    offset += static_cast<uint64_t>(length) * sizeof(float);
    return builder.vector("v", path, at, static_cast<int32_t>(Layout::F32), length, 1.0);
  }
};

kamado::Program make_program(Weights& weights) {
  weights.offset = 0;
  ProgramBuilder b;
  const int32_t x = b.buffer("x", kHidden), h = b.buffer("h", kHidden), q = b.buffer("q", kHidden);
  const int32_t k = b.buffer("k", kHidden / 2), v = b.buffer("v", kHidden / 2), out = b.buffer("out", kHidden);
  const int32_t gate = b.buffer("gate", kWidth), up = b.buffer("up", kWidth), router = b.buffer("router", kExperts);
  const double frequencies[] = {1.0, 0.3, 0.1, 0.02};
  const int32_t rope = b.constant(frequencies, 4);
  const int32_t table = weights.matrix(b, kVocab, kHidden);
  b.append(kamado::EmbedOp{x, table, 1});
  for (int32_t layer = 0; layer < 2; ++layer) {
    const auto kind = layer == 1 ? kamado::StateKind::kWindow : kamado::StateKind::kPages;
    CHECK(b.state({kind, 2, 8, 8, layer == 1 ? 20 : 0}) == layer);
    b.append(kamado::NormOp{h, x, weights.vector(b, kHidden), -1, 1e-5f, kamado::NormKind::kRms, 0});
    b.append(kamado::LinearOp{{q, k, v},
                              h,
                              {weights.matrix(b, kHidden, kHidden), weights.matrix(b, kHidden / 2, kHidden),
                               weights.matrix(b, kHidden / 2, kHidden)},
                              {-1, weights.vector(b, kHidden / 2), -1}});
    b.append(kamado::RopeOp{q, 8, rope, layer == 1, 1});
    b.append(kamado::RopeOp{k, 8, rope, layer == 1, 1});
    b.append(kamado::AttendOp{out, q, k, v, layer, 4, 2, 8, 8, 0.35f, layer == 1 ? 20 : 0, 0, true});
    b.append(kamado::LinearOp{{h}, out, {weights.matrix(b, kHidden, kHidden)}, {}});
    b.append(kamado::AddOp{x, x, h});
    b.append(kamado::NormOp{h, x, weights.vector(b, kHidden), -1, 1e-5f, kamado::NormKind::kRms, 0});
    if (layer == 0) {
      b.append(kamado::LinearOp{
          {gate, up}, h, {weights.matrix(b, kWidth, kHidden), weights.matrix(b, kWidth, kHidden)}, {}});
      b.append(kamado::GateOp{gate, gate, up, kamado::Activation::kSilu});
      b.append(kamado::LinearOp{{h}, gate, {weights.matrix(b, kHidden, kWidth)}, {}});
      b.append(kamado::AddOp{x, x, h});
    } else {
      b.append(kamado::LinearOp{{router}, h, {weights.matrix(b, kExperts, kHidden)}, {}});
      b.append(kamado::RouteOp{router, kExperts, 2, kamado::RouteScore::kSoftmax, true, -1, 1, 1, 1});
      kamado::ExpertsOp experts{out, h, router, {}, {}, {}, kamado::Activation::kSilu};
      for (int32_t i = 0; i < kExperts; ++i) {
        experts.gate.push_back(weights.matrix(b, kWidth, kHidden));
        experts.up.push_back(weights.matrix(b, kWidth, kHidden));
        experts.down.push_back(weights.matrix(b, kHidden, kWidth));
      }
      b.append(experts);
      b.append(kamado::AddOp{x, x, out});
    }
  }
  const kamado::StateSpec record{kamado::StateKind::kRecord, 0, 0, 0, 0, kHidden * int64_t{sizeof(float)}};
  CHECK(b.state(record) == 2 && b.state({kamado::StateKind::kSource, 2, 8, 8, kSourceTokens}) == 3);
  b.append(kamado::AccumulateOp{out, x, 2, 0.75f});
  b.append(kamado::AddOp{x, x, out});
  b.append(kamado::LinearOp{{q}, x, {weights.matrix(b, kHidden, kHidden)}, {}});
  for (const int32_t state : {0, 3}) {  // in the tail: an earlier layer's pages, and the source
    b.append(kamado::AttendOp{out, q, -1, -1, state, 4, 2, 8, 8, 0.35f, 0, 0, true, false});
    b.append(kamado::AddOp{x, x, out});
  }
  b.append(kamado::HeadOp{x, table, -1, 1, 0});
  return b.finish();
}

std::unique_ptr<Executor> make_executor(Weights& weights, int32_t threads, int32_t record_rows = 1) {
  ExecutorOptions options;
  options.record_rows = record_rows;
  options.num_threads = threads;
  options.max_rows = 256;
  options.max_logit_rows = 256;
  options.max_kv_tokens = 1024;
  options.max_sequences = 4;
  return std::make_unique<Executor>(make_program(weights), options, Executor::Progress());
}

int32_t create(Executor& executor) {
  const int32_t sequence = executor.state().create();
  std::vector<float> rows(kSourceTokens * 16);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 37 % 101) * 0.02f - 1;
  executor.set_source(sequence, 3, rows.data(), rows.data() + 16, kSourceTokens - 1);
  return sequence;
}

std::vector<float> step(Executor& executor, int32_t sequence, const std::vector<int32_t>& tokens) {
  const auto count = static_cast<int32_t>(tokens.size());
  std::vector<int32_t> rows(tokens.size());
  for (int32_t i = 0; i < count; ++i) rows[static_cast<size_t>(i)] = i;
  const float* logits =
      executor.step({&sequence, &count, 1, tokens.data(), tokens.size(), rows.data(), rows.size()}, Executor::Poll());
  return {logits, logits + tokens.size() * kVocab};
}

std::vector<int32_t> some_tokens(size_t count) {
  std::vector<int32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<int32_t>(i * 31 % kVocab);
  return tokens;
}

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
