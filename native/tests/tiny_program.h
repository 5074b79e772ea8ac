// A small program of each kind of node and state, its weights, and how to run it.
#pragma once
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "kamado/executor.h"
#include "kamado/state.h"

namespace kamado::test {

inline constexpr int32_t kVocab = 67, kHidden = 32, kWidth = 48, kExperts = 6, kSourceTokens = 150;

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

// x += a gated delta rule of two heads of 16 x 72 values, queries and keys behind a convolution: states 4 and 5.
inline void append_scan(ProgramBuilder& b, Weights& weights, int32_t x, int32_t seen, int32_t q, int32_t k) {
  constexpr int32_t kHeads = 2, kKeys = kHidden / kHeads, kValues = 72;
  const int32_t v = b.buffer("values", kHeads * kValues), read = b.buffer("read", kHeads * kValues);
  const int32_t decays = b.buffer("decays", kHeads), betas = b.buffer("betas", kHeads);
  const StateSpec rows{StateKind::kRecord, 0, 0, 0, 0, 3 * kHidden * int64_t{sizeof(float)}};
  const StateSpec matrices{StateKind::kRecord, 0, 0, 0, 0, kHeads * kKeys * kValues * int64_t{sizeof(float)}};
  CHECK(b.state(rows) == 4 && b.state(matrices) == 5);
  b.append(ConvOp{seen, x, weights.matrix(b, kHidden, 4), 4, weights.vector(b, kHidden), Activation::kSilu});
  b.append(LinearOp{{q, k, v, decays, betas},
                    seen,
                    {weights.matrix(b, kHidden, kHidden), weights.matrix(b, kHidden, kHidden),
                     weights.matrix(b, kHeads * kValues, kHidden), weights.matrix(b, kHeads, kHidden),
                     weights.matrix(b, kHeads, kHidden)},
                    {}});
  for (const int32_t rows_of : {q, k}) b.append(NormOp{rows_of, rows_of, -1, -1, 1e-6f, NormKind::kL2, kKeys});
  b.append(DeltaScanOp{read, q, k, v, decays, betas, weights.vector(b, kHeads), weights.vector(b, kHeads), 5, kHeads,
                       kHeads, kKeys, kValues, 0.25f, HeadMap::kGrouped, 1.0f, true});
  b.append(LinearOp{{q}, read, {weights.matrix(b, kHidden, kHeads * kValues)}, {}});
  b.append(AddOp{x, x, q});
}

inline Program make_program(Weights& weights) {
  weights.offset = 0;
  ProgramBuilder b;
  const int32_t x = b.buffer("x", kHidden), h = b.buffer("h", kHidden), q = b.buffer("q", kHidden);
  const int32_t k = b.buffer("k", kHidden / 2), v = b.buffer("v", kHidden / 2), out = b.buffer("out", kHidden);
  const int32_t gate = b.buffer("gate", kWidth), up = b.buffer("up", kWidth), router = b.buffer("router", kExperts);
  const double frequencies[] = {1.0, 0.3, 0.1, 0.02};
  const int32_t rope = b.constant(frequencies, 4);
  const int32_t table = weights.matrix(b, kVocab, kHidden);
  b.append(EmbedOp{x, table, 1});
  for (int32_t layer = 0; layer < 2; ++layer) {
    const auto kind = layer == 1 ? StateKind::kWindow : StateKind::kPages;
    CHECK(b.state({kind, 2, 8, 8, layer == 1 ? 20 : 0}) == layer);
    b.append(NormOp{h, x, weights.vector(b, kHidden), -1, 1e-5f, NormKind::kRms, 0});
    b.append(LinearOp{{q, k, v},
                      h,
                      {weights.matrix(b, kHidden, kHidden), weights.matrix(b, kHidden / 2, kHidden),
                       weights.matrix(b, kHidden / 2, kHidden)},
                      {-1, weights.vector(b, kHidden / 2), -1}});
    b.append(RopeOp{q, 8, rope, layer == 1, 1});
    b.append(RopeOp{k, 8, rope, layer == 1, 1});
    b.append(AttendOp{out, q, k, v, layer, 4, 2, 8, 8, 0.35f, layer == 1 ? 20 : 0, 0, true});
    b.append(LinearOp{{h}, out, {weights.matrix(b, kHidden, kHidden)}, {}});
    b.append(AddOp{x, x, h});
    b.append(NormOp{h, x, weights.vector(b, kHidden), -1, 1e-5f, NormKind::kRms, 0});
    if (layer == 0) {
      b.append(LinearOp{{gate, up}, h, {weights.matrix(b, kWidth, kHidden), weights.matrix(b, kWidth, kHidden)}, {}});
      b.append(GateOp{gate, gate, up, Activation::kSilu});
      b.append(LinearOp{{h}, gate, {weights.matrix(b, kHidden, kWidth)}, {}});
      b.append(AddOp{x, x, h});
    } else {
      b.append(LinearOp{{router}, h, {weights.matrix(b, kExperts, kHidden)}, {}});
      b.append(RouteOp{router, kExperts, 2, RouteScore::kSoftmax, true, -1, 1, 1, 1});
      ExpertsOp experts{out, h, router, {}, {}, {}, Activation::kSilu};
      for (int32_t i = 0; i < kExperts; ++i) {
        experts.gate.push_back(weights.matrix(b, kWidth, kHidden));
        experts.up.push_back(weights.matrix(b, kWidth, kHidden));
        experts.down.push_back(weights.matrix(b, kHidden, kWidth));
      }
      b.append(experts);
      b.append(AddOp{x, x, out});
    }
  }
  const StateSpec record{StateKind::kRecord, 0, 0, 0, 0, kHidden * int64_t{sizeof(float)}};
  CHECK(b.state(record) == 2 && b.state({StateKind::kSource, 2, 8, 8, kSourceTokens}) == 3);
  b.append(AccumulateOp{out, x, 2, 0.75f});
  b.append(AddOp{x, x, out});
  append_scan(b, weights, x, out, q, h);
  b.append(LinearOp{{q}, x, {weights.matrix(b, kHidden, kHidden)}, {}});
  for (const int32_t state : {0, 3}) {  // in the tail: an earlier layer's pages, and the source
    b.append(AttendOp{out, q, -1, -1, state, 4, 2, 8, 8, 0.35f, 0, 0, true, false});
    b.append(AddOp{x, x, out});
  }
  b.append(HeadOp{x, table, -1, 1, 0});
  return b.finish();
}

inline std::unique_ptr<Executor> make_executor(Weights& weights, int32_t threads, int32_t record_rows = 1,
                                               ExecutorOptions options = {}) {
  options.record_rows = record_rows;
  options.num_threads = threads;
  options.max_rows = 256;
  options.max_logit_rows = 256;
  options.max_kv_tokens = 1024;
  options.max_sequences = 4;
  return std::make_unique<Executor>(make_program(weights), options, Executor::Progress());
}

inline int32_t create(Executor& executor) {
  const int32_t sequence = executor.state().create();
  std::vector<float> rows(kSourceTokens * 16);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i * 37 % 101) * 0.02f - 1;
  executor.set_source(sequence, 3, rows.data(), rows.data() + 16, kSourceTokens - 1);
  return sequence;
}

inline std::vector<float> step(Executor& executor, int32_t sequence, const std::vector<int32_t>& tokens) {
  const auto count = static_cast<int32_t>(tokens.size());
  std::vector<int32_t> rows(tokens.size());
  for (int32_t i = 0; i < count; ++i) rows[static_cast<size_t>(i)] = i;
  const float* logits =
      executor.step({&sequence, &count, 1, tokens.data(), tokens.size(), rows.data(), rows.size()}, Executor::Poll());
  return {logits, logits + tokens.size() * kVocab};
}

inline std::vector<int32_t> some_tokens(size_t count) {
  std::vector<int32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<int32_t>(i * 31 % kVocab);
  return tokens;
}

}  // namespace kamado::test
