// Encoded layers, windows and reuse points of the key-value cache against a naive model: a vector of tokens a sequence,
// random operations, every page that must be there compared.
#include <cstring>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "kamado/state.h"

namespace {

using kamado::kPageTokens;
using kamado::KvCodeBlock;
using kamado::KvLayerShape;
using kamado::KvType;
using kamado::settled_pages;
using kamado::StateCache;
using kamado::test::throws;

using Tokens = std::vector<uint16_t>;

// An encoded layer, one with a window of 200 tokens, an exact one.
constexpr int32_t kWindow = 200;
const std::vector<KvLayerShape> kShapes = {{2, 64, 80, 4, 3, 0}, {1, 3, 2, 0, 0, kWindow}, {1, 2, 4}};

// The first page that a query at `position` reads exactly in a layer.
int64_t first_exact(int32_t layer, int64_t position) {
  if (layer == 0) return std::max<int64_t>(0, position / kPageTokens - 1);
  if (layer == 1) return std::max<int64_t>(0, position - kWindow + 1) / kPageTokens;
  return 0;
}

// A value per token and place; finite as f16.
uint16_t value_of(uint16_t token, int32_t layer, int32_t head, int32_t d) {
  return static_cast<uint16_t>((token * 7u + static_cast<uint32_t>(layer * 5 + head * 3 + d)) & 0x3bff);
}

void write(StateCache& cache, int32_t seq, int64_t position, uint16_t token) {
  const int64_t page = position / kPageTokens, slot = position % kPageTokens;
  for (int32_t layer = 0; layer < 3; ++layer) {
    const KvLayerShape& shape = kShapes[static_cast<size_t>(layer)];
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      auto* k = static_cast<uint16_t*>(cache.k_block(seq, page, layer, head));
      auto* v = static_cast<uint16_t*>(cache.v_block(seq, page, layer, head));
      for (int32_t d = 0; d < shape.k_dim; ++d) k[d * kPageTokens + slot] = value_of(token, layer, head, d);
      for (int32_t d = 0; d < shape.v_dim; ++d) v[slot * shape.v_dim + d] = value_of(token, layer, head, d + 1);
    }
  }
}

bool has_exact(const StateCache& cache, int32_t seq, const Tokens& tokens, int32_t layer, int64_t page, int64_t end) {
  const KvLayerShape& shape = kShapes[static_cast<size_t>(layer)];
  bool ok = true;
  for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
    const auto* k = static_cast<const uint16_t*>(cache.k_block(seq, page, layer, head));
    const auto* v = static_cast<const uint16_t*>(cache.v_block(seq, page, layer, head));
    for (int64_t position = page * kPageTokens; position < std::min(end, (page + 1) * kPageTokens); ++position) {
      const int64_t slot = position % kPageTokens;
      const uint16_t token = tokens[static_cast<size_t>(position)];
      ok &= k[slot] == value_of(token, layer, head, 0) && v[slot * shape.v_dim] == value_of(token, layer, head, 1);
      ok &= k[(shape.k_dim - 1) * kPageTokens + slot] == value_of(token, layer, head, shape.k_dim - 1);
    }
  }
  return ok;
}

// Stands for the codes of a page: the codec's own work is tested elsewhere.
uint64_t mark_of(const Tokens& tokens, int64_t page, int32_t head) {
  uint64_t hash = 0xcbf29ce484222325 + static_cast<uint64_t>(head);
  for (int64_t i = 0; i < (page + 1) * kPageTokens; ++i) hash = (hash ^ tokens[static_cast<size_t>(i)]) * 0x100000001b3;
  return hash;
}

void encode(StateCache& cache, int32_t seq, const Tokens& tokens) {
  for (const int32_t page : cache.encodes(seq)) {
    for (int32_t head = 0; head < 2; ++head) {
      CHECK(has_exact(cache, seq, tokens, 0, page, (page + 1) * kPageTokens));
      const KvCodeBlock codes = cache.codes(seq, page, 0, head);
      CHECK((codes.sinks != nullptr) == (page == 0));
      const uint64_t mark = mark_of(tokens, page, head);
      for (uint8_t* to : {codes.k, codes.v, codes.sinks}) {
        if (to != nullptr) std::memcpy(to, &mark, sizeof(mark));
      }
    }
  }
}

bool has_codes(const StateCache& cache, int32_t seq, const Tokens& tokens, int64_t end) {
  bool ok = true;
  for (int64_t page = 0; page < settled_pages(end); ++page) {
    for (int32_t head = 0; head < 2; ++head) {
      const KvCodeBlock codes = cache.codes(seq, page, 0, head);
      const uint64_t mark = mark_of(tokens, page, head);
      for (const uint8_t* from : {codes.k, codes.v, codes.sinks}) {
        if (from != nullptr) ok &= std::memcmp(from, &mark, sizeof(mark)) == 0;
      }
    }
  }
  return ok;
}

// All that going on at `end` tokens reads.
bool can_go_on(const StateCache& cache, int32_t seq, const Tokens& tokens, int64_t end) {
  bool ok = has_codes(cache, seq, tokens, end);
  for (int32_t layer = 0; layer < 3; ++layer) {
    for (int64_t page = first_exact(layer, end); page * kPageTokens < end; ++page)
      ok &= has_exact(cache, seq, tokens, layer, page, end);
  }
  return ok;
}

void append(StateCache& cache, int32_t seq, Tokens& tokens, int64_t count, std::mt19937& rng) {
  const auto length = static_cast<int64_t>(tokens.size());
  cache.reserve(seq, length + count);
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<uint16_t>(rng()));
    write(cache, seq, length + i, tokens.back());
  }
  encode(cache, seq, tokens);
  cache.commit(seq, length + count);
}

struct Stored {
  std::vector<uint8_t> pages, tail;
};

Stored stored(StateCache& cache, int32_t seq, int64_t point) {
  Stored result;
  result.pages.resize(static_cast<size_t>(settled_pages(point)) * cache.stored_page_bytes());
  result.tail.resize(cache.stored_tail_bytes(point));
  cache.export_pages(seq, 0, settled_pages(point), result.pages.data());
  cache.export_tail(seq, point, result.tail.data());
  return result;
}

// Page by page, as a restore does; nothing else takes the sequence before it is whole.
int32_t imported(StateCache& cache, const Stored& bytes, int64_t point) {
  const int32_t seq = cache.begin_import(point);
  CHECK(throws<std::invalid_argument>([&] { cache.length(seq); }));
  for (int64_t page = 0; page < settled_pages(point); ++page) {
    CHECK(cache.importing(seq).next_page == page && cache.importing(seq).num_tokens == point);
    CHECK(throws<std::invalid_argument>([&] { cache.import_tail(seq, bytes.tail.data()); }));
    cache.import_pages(seq, bytes.pages.data() + static_cast<size_t>(page) * cache.stored_page_bytes(), 1);
  }
  cache.import_tail(seq, bytes.tail.data());
  CHECK(throws<std::invalid_argument>([&] { cache.importing(seq); }));
  return seq;
}

void test_against_model(uint32_t seed) {
  constexpr int64_t kMaxPages = 40;
  constexpr int32_t kMaxSequences = 6;
  std::mt19937 rng(seed);
  // Few points and small steps: exact pages run out, and points are given up.
  StateCache cache(kShapes, KvType::kF16, kMaxPages, kMaxSequences, 300, static_cast<int32_t>(seed % 3));
  std::map<int32_t, Tokens> model;
  const auto pick = [&] {
    auto it = model.begin();
    std::advance(it, rng() % model.size());
    return it->first;
  };
  const auto some_length = [&](int32_t id) {  // one that can be gone back to
    const auto points = cache.reuse_points(id);
    if (!points.empty() && rng() % 4) return points[rng() % points.size()];
    return cache.last_reusable(id, static_cast<int64_t>(rng() % (model[id].size() + 1)));
  };
  for (int step = 0; step < 500; ++step) {
    const uint32_t action = model.empty() ? 0 : rng() % 16;
    const int32_t id = model.empty() ? -1 : pick();
    if (action == 0 || (model.size() == 1 && action == 1)) {
      if (model.size() < kMaxSequences) model.emplace(cache.create(), Tokens{});
    } else if (action <= 6) {
      const auto count = static_cast<int64_t>(rng() % 3 ? 1 + rng() % 40 : 1 + rng() % 300);
      const auto usage = cache.usage();
      try {
        append(cache, id, model[id], count, rng);
      } catch (const std::length_error&) {  // of the pages that stay: nothing has changed
        CHECK(cache.usage().bytes_encoded == usage.bytes_encoded);
        CHECK(cache.length(id) == static_cast<int64_t>(model[id].size()));
        cache.free(id);
        model.erase(id);
      }
    } else if (action == 7) {  // a step that fails
      const auto length = cache.length(id);
      try {
        cache.reserve(id, length + static_cast<int64_t>(rng() % 300));
      } catch (const std::length_error&) {
      }
      cache.truncate(id, length);
    } else if (action <= 9) {
      cache.mark_reuse(id);
      CHECK(model[id].empty() || cache.is_reuse_point(id, cache.length(id)));
    } else if (action <= 11) {
      if (model.size() == kMaxSequences) continue;
      const int64_t keep = some_length(id);
      const auto points = cache.reuse_points(id);
      try {
        const int32_t child = cache.fork(id, keep);
        const Tokens& tokens = model[id];
        model.emplace(child, Tokens(tokens.begin(), tokens.begin() + keep));
        CHECK(keep == 0 || cache.reuse_points(child).back() == keep);
      } catch (const std::length_error&) {
        CHECK(keep % kPageTokens > 0);  // no place for the partial page
      }
    } else if (action <= 13) {
      const int64_t keep = some_length(id);
      cache.truncate(id, keep);
      model[id].resize(static_cast<size_t>(keep));
    } else if (action == 14) {
      if (model.size() == kMaxSequences) continue;
      const int64_t keep = some_length(id);
      const Stored bytes = stored(cache, id, keep);
      try {
        // One that is given up on the way leaves nothing behind.
        const int32_t dropped = cache.begin_import(keep);
        cache.import_pages(dropped, bytes.pages.data(), settled_pages(keep) / 2);
        cache.free(dropped);
        const int32_t copy = imported(cache, bytes, keep);
        const Tokens& tokens = model[id];
        model.emplace(copy, Tokens(tokens.begin(), tokens.begin() + keep));
        const Stored again = stored(cache, copy, keep);
        CHECK(again.pages == bytes.pages && again.tail == bytes.tail);
      } catch (const std::length_error&) {
      }
    } else {
      const auto points = cache.reuse_points(id);
      if (rng() % 2 && !points.empty()) {
        cache.unmark_reuse(id, points[rng() % points.size()]);
      } else {
        cache.free(id);
        model.erase(id);
      }
    }
    bool ok = true;
    for (const auto& [seq, tokens] : model) {
      const auto length = static_cast<int64_t>(tokens.size());
      ok &= cache.length(seq) == length && can_go_on(cache, seq, tokens, length);
      for (const int64_t point : cache.reuse_points(seq)) {
        ok &= cache.last_reusable(seq, point) == point && can_go_on(cache, seq, tokens, point);
      }
      const auto anywhere = static_cast<int64_t>(rng() % static_cast<uint32_t>(length + 1));
      const int64_t last = cache.last_reusable(seq, anywhere);
      ok &= last <= anywhere && can_go_on(cache, seq, tokens, last);
      if (last < anywhere) ok &= throws<std::invalid_argument>([&, s = seq] { (void)cache.fork(s, anywhere); });
    }
    if (!CHECK_MSG(ok, "seed " + std::to_string(seed) + " step " + std::to_string(step))) return;
  }
  for (const auto& [seq, tokens] : model) cache.free(seq);
  const auto usage = cache.usage();
  CHECK(usage.bytes_exact == 0 && usage.bytes_encoded == 0 && usage.pages_shared == 0 && usage.reuse_points == 0);
}

// As many sequences, points and rows as were promised: nothing is ever given up, no step refused.
void test_promise() {
  constexpr int32_t kSequences = 3, kPoints = 6, kRows = 256;
  std::mt19937 rng(9);
  StateCache cache(kShapes, KvType::kF16, 1000, kSequences, kRows, kPoints);
  std::vector<Tokens> tokens(kSequences);
  for (int32_t s = 0; s < kSequences; ++s) CHECK(cache.create() == s);
  for (int round = 0; round < 20; ++round) {
    for (int32_t s = 0; s < kSequences; ++s) {
      append(cache, s, tokens[static_cast<size_t>(s)], s == round % kSequences ? kRows : 1, rng);
      if (round == 5 || round == 11) cache.mark_reuse(s);
    }
  }
  for (int32_t s = 0; s < kSequences; ++s) {
    CHECK(cache.reuse_points(s).size() == 2);
    for (const int64_t point : cache.reuse_points(s)) CHECK(can_go_on(cache, s, tokens[static_cast<size_t>(s)], point));
  }
}

// Two sequences that share an exact page share its codes, in whatever order they get there; not after one is rewritten.
void test_codes_are_shared() {
  std::mt19937 rng(4);
  StateCache cache(kShapes, KvType::kF16, 100, 4, 300, 10);
  Tokens tokens;
  const int32_t parent = cache.create();
  append(cache, parent, tokens, 300, rng);
  cache.mark_reuse(parent);
  const int32_t child = cache.fork(parent, 300);
  Tokens own = tokens;
  append(cache, child, own, 100, rng);
  CHECK(cache.encodes(child).empty());
  append(cache, parent, tokens, 100, rng);
  CHECK(cache.codes(parent, 1, 0, 0).k == cache.codes(child, 1, 0, 0).k);
  CHECK(cache.codes(parent, 0, 0, 1).sinks == cache.codes(child, 0, 0, 1).sinks);
  // Back into page 2, which both have as their own, then into page 1, which they share.
  cache.truncate(parent, 300);
  cache.truncate(child, 256);
  tokens.resize(300);
  own.resize(256);
  cache.reserve(child, 530);
  CHECK((cache.encodes(child) == std::vector<int32_t>{1, 2}));
  cache.truncate(child, 256);
  append(cache, child, own, 300, rng);
  append(cache, parent, tokens, 300, rng);
  CHECK(has_codes(cache, parent, tokens, 600) && has_codes(cache, child, own, 556));
  CHECK(cache.codes(parent, 1, 0, 0).k == cache.codes(child, 1, 0, 0).k);
  CHECK(cache.codes(parent, 2, 0, 0).k != cache.codes(child, 2, 0, 0).k);
}

// A page that was encoded by a child and then rewritten by its only holder is encoded anew.
void test_a_rewritten_page_is_encoded_anew() {
  std::mt19937 rng(5);
  StateCache cache(kShapes, KvType::kF16, 100, 4, 300, 10);
  Tokens tokens;
  const int32_t parent = cache.create();
  append(cache, parent, tokens, 200, rng);
  cache.mark_reuse(parent);
  append(cache, parent, tokens, 60, rng);
  const int32_t child = cache.fork(parent, 260);
  Tokens own = tokens;
  append(cache, child, own, 300, rng);  // encodes page 1 and then gives the exact one up
  for (const int64_t point : cache.reuse_points(child)) cache.unmark_reuse(child, point);
  cache.truncate(parent, 200);
  tokens.resize(200);
  append(cache, parent, tokens, 60, rng);
  append(cache, parent, tokens, 240, rng);
  CHECK(has_codes(cache, parent, tokens, 500) && has_codes(cache, child, own, 560));
  CHECK(cache.codes(parent, 1, 0, 0).k != cache.codes(child, 1, 0, 0).k);
}

void test_refusals() {
  StateCache cache(kShapes, KvType::kF16, 100, 2, 300, 10);
  const int32_t id = cache.create();
  CHECK(throws<std::out_of_range>([&] { (void)cache.codes(id, 0, 0, 0); }));
  CHECK(throws<std::invalid_argument>([&] { cache.mark_reuse(1); }));
  CHECK(throws<std::invalid_argument>([&] { cache.unmark_reuse(id, 0); }));
  cache.mark_reuse(id);  // an empty sequence can always be gone back to
  CHECK(cache.reuse_points(id).empty() && cache.last_reusable(id, 100) == 0);
  const auto make = [](KvLayerShape shape, KvType type) { StateCache({shape}, type, 4, 1); };
  CHECK(throws<std::invalid_argument>([&] { make({1, 64, 64, 5, 4, 0}, KvType::kF16); }));
  CHECK(throws<std::invalid_argument>([&] { make({1, 64, 64, 4, 0, 0}, KvType::kF16); }));
  CHECK(throws<std::invalid_argument>([&] { make({1, 72, 64, 4, 4, 0}, KvType::kF16); }));
  CHECK(throws<std::invalid_argument>([&] { make({1, 64, 64, 4, 4, 9}, KvType::kF16); }));
  CHECK(throws<std::invalid_argument>([&] { make({1, 64, 64, 4, 4, 0}, KvType::kF32); }));
  CHECK(throws<std::invalid_argument>([&] { make({1, 64, 64, 0, 0, -1}, KvType::kF16); }));
}

}  // namespace

int main() {
  for (uint32_t seed = 1; seed <= 12; ++seed) test_against_model(seed);
  test_promise();
  test_codes_are_shared();
  test_a_rewritten_page_is_encoded_anew();
  test_refusals();
  return kamado::test::finish();
}
