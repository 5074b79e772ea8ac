// The key-value cache against a naive model: a vector of tokens a sequence, random operations, every block compared.
#include <cstring>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "kamado/state.h"
#include "os/os_memory.h"

namespace {

using kamado::kPageTokens;
using kamado::KvLayerShape;
using kamado::KvType;
using kamado::StateCache;
using kamado::test::throws;

const std::vector<KvLayerShape> kShapes = {{2, 3, 5}, {1, 4, 2}};

// Writes `tag` as the token at `position`, everywhere a token has a place, in the layout of attention.h.
void write(StateCache& cache, int32_t seq, int64_t position, uint16_t tag) {
  const int64_t page = position / kPageTokens, slot = position % kPageTokens;
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (int32_t head = 0; head < kShapes[static_cast<size_t>(layer)].num_kv_heads; ++head) {
      auto* k = static_cast<uint16_t*>(cache.k_block(seq, page, layer, head));
      auto* v = static_cast<uint16_t*>(cache.v_block(seq, page, layer, head));
      const auto own = static_cast<uint16_t>(tag + 7 * layer + 3 * head);
      const auto& shape = kShapes[static_cast<size_t>(layer)];
      for (int64_t d = 0; d < shape.k_dim; ++d) k[d * kPageTokens + slot] = static_cast<uint16_t>(own + d);
      for (int64_t d = 0; d < shape.v_dim; ++d) v[slot * shape.v_dim + d] = static_cast<uint16_t>(own - d);
    }
  }
}

bool holds(const StateCache& cache, int32_t seq, int64_t position, uint16_t tag) {
  const int64_t page = position / kPageTokens, slot = position % kPageTokens;
  bool ok = true;
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (int32_t head = 0; head < kShapes[static_cast<size_t>(layer)].num_kv_heads; ++head) {
      const auto* k = static_cast<const uint16_t*>(cache.k_block(seq, page, layer, head));
      const auto* v = static_cast<const uint16_t*>(cache.v_block(seq, page, layer, head));
      const auto own = static_cast<uint16_t>(tag + 7 * layer + 3 * head);
      const auto& shape = kShapes[static_cast<size_t>(layer)];
      for (int64_t d = 0; d < shape.k_dim; ++d) ok &= k[d * kPageTokens + slot] == static_cast<uint16_t>(own + d);
      for (int64_t d = 0; d < shape.v_dim; ++d) ok &= v[slot * shape.v_dim + d] == static_cast<uint16_t>(own - d);
    }
  }
  return ok;
}

void append(StateCache& cache, int32_t seq, std::vector<uint16_t>& tokens, int64_t count, std::mt19937& rng) {
  const auto length = static_cast<int64_t>(tokens.size());
  cache.reserve(seq, length + count);
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<uint16_t>(rng()));
    write(cache, seq, length + i, tokens.back());
  }
  cache.commit(seq, length + count);
}

void test_against_model(uint32_t seed) {
  constexpr int64_t kMaxPages = 12;
  constexpr int32_t kMaxSequences = 5;
  std::mt19937 rng(seed);
  StateCache cache(kShapes, KvType::kF16, kMaxPages, kMaxSequences);
  std::map<int32_t, std::vector<uint16_t>> model;
  const auto pick = [&] {
    auto it = model.begin();
    std::advance(it, rng() % model.size());
    return it->first;
  };
  for (int step = 0; step < 400; ++step) {
    const uint32_t action = rng() % 10;
    if (model.empty() || action == 0) {
      if (model.size() == kMaxSequences) {
        CHECK(throws<std::length_error>([&] { cache.create(); }));
      } else {
        const int32_t id = cache.create();
        CHECK(model.emplace(id, std::vector<uint16_t>{}).second);
        CHECK(cache.length(id) == 0);
      }
    } else if (action <= 5) {
      const int32_t id = pick();
      const int64_t count = rng() % 3 ? static_cast<int64_t>(rng() % 5) : static_cast<int64_t>(rng() % 300);
      const int64_t free_before = cache.pages_free();
      try {
        append(cache, id, model[id], count, rng);
      } catch (const std::length_error&) {
        CHECK(cache.pages_free() == free_before);  // all or nothing
      }
    } else if (action == 6) {
      const int32_t parent = pick();
      const auto keep = static_cast<int64_t>(rng() % (model[parent].size() + 1));
      try {
        const int32_t child = cache.fork(parent, keep);
        const auto& tokens = model[parent];
        CHECK(model.emplace(child, std::vector<uint16_t>(tokens.begin(), tokens.begin() + keep)).second);
      } catch (const std::length_error&) {
        CHECK(model.size() == kMaxSequences || cache.pages_free() == 0);
      }
    } else if (action <= 8) {
      const int32_t id = pick();
      const size_t keep = rng() % (model[id].size() + 1);
      cache.truncate(id, static_cast<int64_t>(keep));
      model[id].resize(keep);
    } else {
      const int32_t id = pick();
      cache.free(id);
      model.erase(id);
      CHECK(throws<std::invalid_argument>([&] { (void)cache.length(id); }));
    }
    bool ok = cache.pages_used() + cache.pages_free() == kMaxPages;
    int64_t most = 0;
    for (const auto& [id, tokens] : model) {
      ok &= cache.length(id) == static_cast<int64_t>(tokens.size());
      most += (static_cast<int64_t>(tokens.size()) + kPageTokens - 1) / kPageTokens;
      for (size_t i = 0; i < tokens.size(); ++i) ok &= holds(cache, id, static_cast<int64_t>(i), tokens[i]);
    }
    ok &= cache.pages_used() <= most;  // shared pages count once
    if (!CHECK_MSG(ok, "seed " + std::to_string(seed) + " step " + std::to_string(step))) return;
  }
  while (!model.empty()) {
    cache.free(model.begin()->first);
    model.erase(model.begin());
  }
  CHECK(cache.pages_used() == 0 && cache.bytes_used() == 0);
}

void test_sharing() {
  std::mt19937 rng(1);
  StateCache cache(kShapes, KvType::kF16, 4, 3);
  std::vector<uint16_t> tokens;
  const int32_t parent = cache.create();
  append(cache, parent, tokens, 300, rng);  // three pages, the third one partial
  CHECK(cache.pages_used() == 3);
  const int32_t child = cache.fork(parent, 256);
  CHECK(cache.pages_used() == 3);
  CHECK(cache.k_block(child, 1, 0, 0) == cache.k_block(parent, 1, 0, 0));
  cache.truncate(child, 200);
  CHECK(cache.pages_used() == 3);
  // The child's second page is the parent's too: it is copied before the child writes to it.
  cache.reserve(child, 201);
  CHECK(cache.pages_used() == 4);
  CHECK(cache.k_block(child, 1, 0, 0) != cache.k_block(parent, 1, 0, 0));
  write(cache, child, 200, 12345);
  cache.commit(child, 201);
  CHECK(holds(cache, parent, 200, tokens[200]) && holds(cache, child, 199, tokens[199]) &&
        holds(cache, child, 200, 12345));
  // Full: the partial page of a fork has no place, and nothing has changed after the refusal.
  CHECK(throws<std::length_error>([&] { (void)cache.fork(parent, 300); }));
  CHECK(throws<std::length_error>([&] { cache.reserve(parent, 400); }));
  CHECK(cache.pages_used() == 4 && cache.length(parent) == 300);
  CHECK(cache.fork(parent, 0) >= 0);
}

// Pages that are taken before a step comes, kept through failed steps, and counted once however many share them.
void test_page_book() {
  std::mt19937 rng(2);
  const std::vector<KvLayerShape> encoded = {{1, 64, 64, 4, 4, 0}, {1, 8, 8, 0, 0, 100}};
  for (const auto& shapes : {kShapes, encoded, {}}) {  // pages that stay; codes and a window; nothing at all
    StateCache cache(shapes, KvType::kF16, 6, 3);
    const int32_t a = cache.create();
    CHECK(cache.hold(a, 300) && cache.pages_free() == 3);
    CHECK(cache.hold(a, 200) && cache.pages_free() == 3);  // has them
    CHECK(!cache.hold(a, 7 * kPageTokens) && !cache.hold(a, INT64_MAX) && !cache.hold(a, 6 * kPageTokens, 1));
    CHECK(cache.pages_free() == 3);
    cache.reserve(a, 260);
    cache.undo(a);
    CHECK(cache.pages_free() == 3 && cache.length(a) == 0);
    cache.reserve(a, 260);
    cache.commit(a, 260);
    CHECK(cache.pages_free() == 3);
    CHECK(cache.hold(a, 500) && cache.pages_free() == 2);
    cache.give_back(a);
    CHECK(cache.pages_free() == 3 && cache.length(a) == 260);
    const int32_t b = cache.fork(a, 260);  // two shared pages, an own one
    CHECK(cache.pages_free() == 2 && cache.count_pages({a}) == 3 && cache.count_pages({a, b}) == 4);
    CHECK(cache.shared_pages(b, 0) == 2 && cache.shared_pages(b, 1) == 1 && cache.shared_pages(b, 2) == 0);
    CHECK(cache.shared_pages(a, -5) == 2 && cache.shared_pages(a, INT64_MAX) == 0);
    cache.truncate(b, 256);
    CHECK(cache.pages_free() == 3);
    CHECK(cache.hold(b, 256) && cache.pages_free() == 3);  // nothing will be written to the shared pages
    cache.free(a);
    CHECK(cache.count_pages({b}) == 2 && cache.shared_pages(b, 0) == 0);
    const int32_t c = cache.fork(b, 0);
    CHECK(cache.hold(c, 4 * kPageTokens) && cache.pages_free() == 0 && !cache.hold(b, 257));
    CHECK(throws<std::invalid_argument>([&] { cache.hold(2, 1); }));
    CHECK(throws<std::invalid_argument>([&] { (void)cache.count_pages({b, 2}); }));
    CHECK(throws<std::invalid_argument>([&] { cache.hold(b, -1); }));
    cache.truncate(c, 0);
    CHECK(cache.pages_free() == 4);
  }
  // The copy of a shared page that will be written is taken at once.
  StateCache cache(kShapes, KvType::kF16, 3, 2);
  std::vector<uint16_t> tokens;
  const int32_t parent = cache.create();
  append(cache, parent, tokens, 256, rng);
  const int32_t child = cache.fork(parent, 256);
  cache.truncate(child, 200);
  CHECK(cache.hold(child, 256) && cache.pages_free() == 0 && cache.shared_pages(child, 0) == 1);
  CHECK(!cache.hold(parent, 257));
  for (int64_t i = 0; i < 200; ++i) CHECK(holds(cache, child, i, tokens[static_cast<size_t>(i)]));
}

void test_refusals() {
  StateCache cache(kShapes, KvType::kF32, 2, 1);
  const int32_t id = cache.create();
  CHECK(throws<std::length_error>([&] { cache.create(); }));
  CHECK(throws<std::invalid_argument>([&] { cache.free(1); }));
  CHECK(throws<std::invalid_argument>([&] { (void)cache.length(-1); }));
  CHECK(throws<std::out_of_range>([&] { (void)cache.k_block(id, 0, 0, 0); }));
  CHECK(throws<std::invalid_argument>([&] { cache.commit(id, 1); }));
  CHECK(throws<std::invalid_argument>([&] { cache.truncate(id, 1); }));
  CHECK(throws<std::invalid_argument>([&] { (void)cache.fork(id, 1); }));
  CHECK(throws<std::length_error>([&] { cache.reserve(id, 257); }));
  CHECK(throws<std::length_error>([&] { cache.reserve(id, INT64_MAX); }));
  cache.reserve(id, 256);
  CHECK(cache.pages_free() == 0);
  cache.truncate(id, 0);  // gives back what was reserved and not committed
  CHECK(cache.pages_free() == 2);
  CHECK(throws<std::invalid_argument>([&] { StateCache(kShapes, KvType::kF16, 0, 1); }));
  CHECK(throws<std::invalid_argument>([&] { StateCache({{1, 0, 4}}, KvType::kF16, 1, 1); }));
  CHECK(
      throws<std::length_error>([&] { StateCache({{INT32_MAX, INT32_MAX, INT32_MAX}}, KvType::kF32, INT32_MAX, 1); }));
  StateCache none({}, KvType::kF16, 4, 1);  // a model without attention
  none.reserve(none.create(), 100);
  CHECK(none.page_bytes() == 0);
}

// Memory follows the tokens: a cache for a million of them costs nothing until they come, and little after they went.
void test_memory() {
  for (const int32_t layers : {2, 40}) {  // pages of 0.5 MiB (small system pages) and 10 MiB (huge ones)
    StateCache cache(std::vector<KvLayerShape>(static_cast<size_t>(layers), {4, 128, 128}), KvType::kF16, 8192, 1);
    const size_t page_bytes = cache.page_bytes();
    CHECK(page_bytes == static_cast<size_t>(layers) * 4 * 2 * 128 * 128 * 2);
    const int32_t id = cache.create();
    cache.reserve(id, 64 * kPageTokens);
    auto* base = static_cast<uint8_t*>(cache.k_block(id, 0, 0, 0));
    const size_t span = 64 * page_bytes;
    CHECK(kamado::os::resident_bytes(base, span) == 0);
    std::memset(base, 1, page_bytes);
    const size_t one = kamado::os::resident_bytes(base, span);
    CHECK_MSG(one >= page_bytes && one <= page_bytes + (size_t{2} << 20), std::to_string(one));
    if (layers == 2) {
      std::memset(base, 1, span);
      CHECK(kamado::os::resident_bytes(base, span) == span);
    } else {
      for (int64_t p = 0; p < 10; ++p) std::memset(cache.k_block(id, p, 0, 0), 1, page_bytes);
    }
    cache.free(id);
    const size_t kept = kamado::os::resident_bytes(base, span);
    CHECK_MSG(kept <= (size_t{66} << 20), std::to_string(kept));
  }
}

}  // namespace

int main() {
  for (uint32_t seed = 1; seed <= 8; ++seed) test_against_model(seed);
  test_sharing();
  test_page_book();
  test_refusals();
  test_memory();
  return kamado::test::finish();
}
