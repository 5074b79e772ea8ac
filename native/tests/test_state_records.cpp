// Records and sources against a naive model: a vector of tokens a sequence, random operations; a record is a digest of
// all tokens before, so one that was exchanged, shared or dropped wrongly shows.
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
using kamado::KvLayerShape;
using kamado::KvType;
using kamado::RecordShape;
using kamado::settled_pages;
using kamado::StateCache;
using kamado::test::throws;

using Tokens = std::vector<uint16_t>;
using Bytes = std::vector<uint8_t>;

constexpr int32_t kWindow = 200;
// Pages that stay, a window, a source.
const std::vector<KvLayerShape> kShapes = {{1, 3, 2}, {1, 2, 2, 0, 0, kWindow}, {2, 4, 3, 0, 0, 0, 300}};
constexpr int32_t kSource = 2;
const std::vector<size_t> kRecordBytes = {12, 260};

// What record `which` holds after the first `count` tokens.
float digest(const Tokens& tokens, size_t count, int32_t which, size_t index) {
  uint32_t hash = 7u + static_cast<uint32_t>(which);
  for (size_t i = 0; i < count; ++i) hash = hash * 31u + tokens[i];
  return count == 0 ? 0.0f : static_cast<float>((hash + index * 17u) % 65521u);
}

void write_next(StateCache& cache, int32_t seq, const Tokens& tokens) {
  for (int32_t back = 0; back < cache.num_next_records(seq); ++back) {
    for (int32_t which = 0; which < 2; ++which) {
      auto* out = reinterpret_cast<float*>(cache.next_record(seq, which, back));
      for (size_t i = 0; i < kRecordBytes[static_cast<size_t>(which)] / 4; ++i)
        out[i] = digest(tokens, tokens.size() - static_cast<size_t>(back), which, i);
    }
  }
}

bool has_record(const StateCache& cache, int32_t seq, const Tokens& tokens) {
  bool ok = true;
  for (int32_t which = 0; which < 2; ++which) {
    const auto* values = reinterpret_cast<const float*>(cache.record(seq, which));
    for (size_t i = 0; i < kRecordBytes[static_cast<size_t>(which)] / 4; ++i)
      ok &= values[i] == digest(tokens, tokens.size(), which, i);
  }
  return ok;
}

void append(StateCache& cache, int32_t seq, Tokens& tokens, int64_t count, std::mt19937& rng) {
  Tokens after = tokens;
  for (int64_t i = 0; i < count; ++i) after.push_back(static_cast<uint16_t>(rng()));
  const auto length = static_cast<int64_t>(after.size());
  cache.reserve(seq, length);
  CHECK(has_record(cache, seq, tokens));  // a step reads one and writes another
  write_next(cache, seq, after);
  CHECK(has_record(cache, seq, tokens));
  cache.commit(seq, length);
  tokens = after;
}

Bytes tail_of(StateCache& cache, int32_t seq, int64_t point) {
  Bytes result(cache.stored_tail_bytes(point));
  cache.export_tail(seq, point, result.data());
  return result;
}

Bytes pages_of(StateCache& cache, int32_t seq, int64_t point) {
  Bytes result(static_cast<size_t>(settled_pages(point)) * cache.stored_page_bytes());
  cache.export_pages(seq, 0, settled_pages(point), result.data());
  return result;
}

void set_source(StateCache& cache, int32_t seq, int64_t num_tokens, uint16_t tag) {
  cache.set_source(seq, kSource, num_tokens);
  for (int64_t position = 0; position < num_tokens; ++position) {
    for (int32_t head = 0; head < 2; ++head) {
      auto* v = static_cast<uint16_t*>(cache.v_block(seq, position / kPageTokens, kSource, head));
      v[position % kPageTokens * 3] = static_cast<uint16_t>(tag + position + head);
    }
  }
}

bool has_source(const StateCache& cache, int32_t seq, int64_t num_tokens, uint16_t tag) {
  bool ok = cache.source_tokens(seq, kSource) == num_tokens;
  for (int64_t position = 0; ok && position < num_tokens; ++position) {
    for (int32_t head = 0; head < 2; ++head) {
      const auto* v = static_cast<const uint16_t*>(cache.v_block(seq, position / kPageTokens, kSource, head));
      ok &= v[position % kPageTokens * 3] == static_cast<uint16_t>(tag + position + head);
    }
  }
  return ok;
}

struct Model {
  Tokens tokens;
  int64_t source_tokens = 0;
  uint16_t tag = 0;
};

void test_against_model(uint32_t seed, int32_t num_rows) {
  constexpr int32_t kMaxSequences = 5;
  std::mt19937 rng(seed);
  // Few records: points are given up all the time, by records and by pages.
  const RecordShape shape{kRecordBytes, 2 * num_rows * kMaxSequences + static_cast<int64_t>(seed % 4), num_rows};
  StateCache cache(kShapes, KvType::kF16, 100, kMaxSequences, 300, 3, shape);
  const int64_t all_records = cache.records_free();
  std::map<int32_t, Model> model;
  for (int step = 0; step < 400; ++step) {
    const uint32_t action = model.empty() ? 0 : rng() % 14;
    auto it = model.begin();
    if (!model.empty()) std::advance(it, rng() % model.size());
    const int32_t id = model.empty() ? -1 : it->first;
    const auto some_length = [&] {
      const auto points = cache.reuse_points(id);
      if (!points.empty() && rng() % 4) return points[rng() % points.size()];
      return cache.last_reusable(id, static_cast<int64_t>(rng() % (it->second.tokens.size() + 1)));
    };
    if (action == 0) {
      if (model.size() < kMaxSequences) {
        const int32_t made = cache.create();
        Model& m = model[made];
        if (rng() % 2) {
          m.source_tokens = 1 + static_cast<int64_t>(rng() % 300);
          m.tag = static_cast<uint16_t>(rng() % 1000);
          set_source(cache, made, m.source_tokens, m.tag);
        }
      }
    } else if (action <= 5) {
      append(cache, id, it->second.tokens, 1 + static_cast<int64_t>(rng() % (rng() % 3 ? 4 : 200)), rng);
    } else if (action == 6) {  // a step that fails after it wrote
      Tokens wrong(it->second.tokens.size() + 5);
      cache.reserve(id, static_cast<int64_t>(wrong.size()));
      write_next(cache, id, wrong);
      cache.undo(id);
    } else if (action <= 8) {
      cache.mark_reuse(id);
    } else if (action <= 9) {
      if (model.size() == kMaxSequences) continue;
      const int64_t keep = some_length(), free = cache.records_free();
      const int32_t child = cache.fork(id, keep);
      CHECK(cache.records_free() >= free);  // nothing is copied
      Model copy = it->second;
      copy.tokens.resize(static_cast<size_t>(keep));
      model.emplace(child, copy);
    } else if (action <= 11) {
      const int64_t keep = some_length();
      cache.truncate(id, keep);
      it->second.tokens.resize(static_cast<size_t>(keep));
    } else if (action == 12) {
      if (model.size() == kMaxSequences) continue;
      const int64_t keep = some_length();
      const Bytes pages = pages_of(cache, id, keep), tail = tail_of(cache, id, keep);
      const int32_t copy = cache.begin_import(keep);
      cache.import_pages(copy, pages.data(), settled_pages(keep));
      cache.import_tail(copy, tail.data());
      CHECK(pages_of(cache, copy, keep) == pages && tail_of(cache, copy, keep) == tail);
      Model same = it->second;
      same.tokens.resize(static_cast<size_t>(keep));
      model.emplace(copy, same);
    } else {
      cache.free(id);
      model.erase(id);
    }
    bool ok = true;
    for (const auto& [seq, m] : model) {
      const auto length = static_cast<int64_t>(m.tokens.size());
      ok &= cache.length(seq) == length && has_record(cache, seq, m.tokens);
      ok &= has_source(cache, seq, m.source_tokens, m.tag) && cache.last_reusable(seq, length) == length;
      for (const int64_t point : cache.reuse_points(seq)) ok &= cache.last_reusable(seq, point) == point;
      const auto anywhere = static_cast<int64_t>(rng() % static_cast<uint32_t>(length + 1));
      const int64_t last = cache.last_reusable(seq, anywhere);
      ok &= last <= anywhere;
      if (last < anywhere) ok &= throws<std::invalid_argument>([&, s = seq] { cache.truncate(s, anywhere); });
    }
    if (!CHECK_MSG(ok, "seed " + std::to_string(seed) + " step " + std::to_string(step))) return;
  }
  for (const auto& [seq, m] : model) cache.free(seq);
  CHECK(cache.records_free() == all_records && cache.usage().bytes_records == 0);
}

// As many sequences as were promised can always step, and what they marked is given up, the longest unused first.
void test_marks_are_given_up() {
  std::mt19937 rng(3);
  StateCache cache({{1, 2, 2}}, KvType::kF16, 40, 2, 300, 0, {kRecordBytes, 6, 1});
  CHECK(!cache.can_reuse_anywhere() && cache.records_free() == 6);
  std::vector<Tokens> tokens(2);
  CHECK(cache.create() == 0 && cache.create() == 1);
  for (const int64_t point : {3, 6, 9}) {
    append(cache, 0, tokens[0], 3, rng);
    cache.mark_reuse(0);
    CHECK(cache.reuse_points(0).back() == point);
  }
  CHECK(cache.records_free() == 3);
  cache.mark_reuse(1);  // an empty one keeps nothing
  append(cache, 1, tokens[1], 4, rng);
  append(cache, 0, tokens[0], 4, rng);
  CHECK(cache.records_free() == 1);
  cache.mark_reuse(0);
  append(cache, 0, tokens[0], 4, rng);
  CHECK((cache.reuse_points(0) == std::vector<int64_t>{3, 6, 9, 13}) && cache.records_free() == 0);
  CHECK(tail_of(cache, 0, 3).size() > 0);  // used: the next oldest goes
  cache.mark_reuse(1);
  append(cache, 1, tokens[1], 1, rng);  // the slot for a mark of the executor's own
  CHECK(cache.reuse_points(0).size() == 4);
  append(cache, 1, tokens[1], 1, rng);
  CHECK((cache.reuse_points(0) == std::vector<int64_t>{3, 9, 13}));
  // What a sequence goes on from is kept, whoever else forgets it.
  cache.free(1);
  CHECK(cache.fork(0, 9) == 1);
  tokens[1].assign(tokens[0].begin(), tokens[0].begin() + 9);
  for (const int64_t point : {3, 9, 13}) cache.unmark_reuse(0, point);
  CHECK(has_record(cache, 1, tokens[1]) && cache.reuse_points(1) == (std::vector<int64_t>{3, 9}));
  CHECK(cache.last_reusable(0, 13) == 0 && cache.last_reusable(1, 8) == 3);
}

void test_several_rows_are_handed_back() {
  std::mt19937 rng(4);
  StateCache cache({}, KvType::kF16, 10, 1, 300, 0, {kRecordBytes, 4, 2});
  Tokens tokens;
  const int32_t id = cache.create();
  append(cache, id, tokens, 1, rng);
  CHECK(cache.last_reusable(id, 1) == 1);
  append(cache, id, tokens, 1, rng);
  CHECK(cache.last_reusable(id, 1) == 1);  // of the step before: still one of the last two rows
  append(cache, id, tokens, 5, rng);
  CHECK(cache.last_reusable(id, 5) == 0 && cache.last_reusable(id, 6) == 6);
  // A step of which only the first rows are taken.
  Tokens after = tokens;
  for (int i = 0; i < 4; ++i) after.push_back(static_cast<uint16_t>(rng()));
  cache.reserve(id, 11);
  CHECK(cache.num_next_records(id) == 2);
  write_next(cache, id, after);
  CHECK(throws<std::invalid_argument>([&] { cache.commit(id, 9); }));
  cache.commit(id, 10);
  after.resize(10);
  CHECK(has_record(cache, id, after));
  // And one that is gone back by a row afterwards.
  append(cache, id, after, 3, rng);
  cache.truncate(id, 12);
  after.resize(12);
  CHECK(has_record(cache, id, after) && cache.last_reusable(id, 11) == 0);
  CHECK(throws<std::out_of_range>([&] { (void)cache.next_record(id, 0, 0); }));
  cache.reserve(id, 13);
  CHECK(cache.num_next_records(id) == 1 && throws<std::out_of_range>([&] { (void)cache.next_record(id, 0, 1); }));
  CHECK(throws<std::out_of_range>([&] { (void)cache.next_record(id, 2, 0); }));
}

void test_sources() {
  StateCache cache(kShapes, KvType::kF16, 10, 3);
  CHECK(cache.can_reuse_anywhere() == false);  // for the window
  const int32_t id = cache.create();
  CHECK(cache.source_tokens(id, kSource) == 0);
  CHECK(throws<std::out_of_range>([&] { (void)cache.k_block(id, 0, kSource, 0); }));
  CHECK(throws<std::out_of_range>([&] { cache.set_source(id, 0, 4); }));
  CHECK(throws<std::out_of_range>([&] { cache.set_source(id, 9, 4); }));
  CHECK(throws<std::invalid_argument>([&] { cache.set_source(id, kSource, 0); }));
  CHECK(throws<std::invalid_argument>([&] { cache.set_source(id, kSource, 301); }));
  set_source(cache, id, 129, 5);
  CHECK(cache.usage().bytes_records > 0);
  CHECK(throws<std::invalid_argument>([&] { cache.set_source(id, kSource, 4); }));
  CHECK(throws<std::out_of_range>([&] { (void)cache.k_block(id, 2, kSource, 0); }));
  CHECK(throws<std::out_of_range>([&] { (void)cache.k_block(id, 0, kSource, 2); }));
  const int32_t child = cache.fork(id, 0);
  CHECK(cache.k_block(child, 0, kSource, 1) == cache.k_block(id, 0, kSource, 1));
  cache.free(id);
  CHECK(has_source(cache, child, 129, 5));
  // Damaged bytes: a number of tokens that cannot be, and values that are none.
  Bytes tail = tail_of(cache, child, 0);
  const auto with_count = [&](int64_t count) {
    std::memcpy(tail.data(), &count, sizeof(count));
    const int32_t seq = cache.begin_import(0);
    cache.import_tail(seq, tail.data());
    const int64_t got = cache.source_tokens(seq, kSource);
    cache.free(seq);
    return got;
  };
  CHECK(with_count(129) == 129 && with_count(301) == 0 && with_count(-1) == 0 && with_count(INT64_MAX) == 0);
  cache.reserve(child, 1);
  cache.commit(child, 1);
  const int32_t late = cache.create();
  cache.reserve(late, 1);
  cache.commit(late, 1);
  CHECK(throws<std::invalid_argument>([&] { cache.set_source(late, kSource, 1); }));
  CHECK(throws<std::invalid_argument>([] { StateCache({{1, 2, 2, 0, 0, 5, 5}}, KvType::kF16, 4, 1); }));
  CHECK(throws<std::invalid_argument>([] { StateCache({{1, 64, 64, 4, 4, 0, 5}}, KvType::kF16, 4, 1); }));
  CHECK(throws<std::invalid_argument>([] { StateCache({}, KvType::kF16, 4, 2, 1, 0, {{8}, 3}); }));
  CHECK(throws<std::invalid_argument>([] { StateCache({}, KvType::kF16, 4, 1, 1, 0, {{6}, 8}); }));
}

void test_fingerprints() {
  const auto print = [](std::vector<KvLayerShape> shapes, const RecordShape& records) {
    return StateCache(std::move(shapes), KvType::kF16, 4, 1, 1, 0, records).fingerprint();
  };
  const std::string plain = print({{1, 2, 2}}, {});
  CHECK(plain != print({{1, 2, 2}}, {{8}, 2}) && print({{1, 2, 2}}, {{8}, 2}) == print({{1, 2, 2}}, {{8}, 9}));
  CHECK(print({{1, 2, 2}}, {{8}, 2}) != print({{1, 2, 2}}, {{800}, 2}));
  CHECK(plain != print({{1, 2, 2, 0, 0, 0, 9}}, {}));
}

}  // namespace

int main() {
  for (uint32_t seed = 1; seed <= 12; ++seed) test_against_model(seed, 1 + static_cast<int32_t>(seed % 3 == 0));
  test_marks_are_given_up();
  test_several_rows_are_handed_back();
  test_sources();
  test_fingerprints();
  return kamado::test::finish();
}
