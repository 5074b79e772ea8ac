// String tables, byte-pair merging and the selection of the largest logits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "kamado/byte_pairs.h"
#include "kamado/string_table.h"
#include "kamado/top_ids.h"

using namespace kamado;

namespace {

void put(std::vector<uint8_t>& data, uint64_t length, const std::string& text) {
  for (int i = 0; i < 8; ++i) data.push_back(static_cast<uint8_t>(length >> (8 * i)));
  data.insert(data.end(), text.begin(), text.end());
}

StringTable table_of(const std::vector<std::string>& texts) {
  StringTable table;
  for (const std::string& text : texts) table.append(text);
  return table;
}

void test_scan() {
  const std::vector<std::string> texts = {"", "a", "\xC4\xA0the", std::string("\0x", 2), std::string(300, 'z')};
  std::vector<uint8_t> data = {1, 2, 3};
  for (const std::string& text : texts) put(data, text.size(), text);
  StringTable table;
  StringScan scan = scan_strings(data.data(), data.size(), 3, texts.size(), table);
  CHECK(scan.is_complete && scan.begin == data.size() && table.size() == texts.size());
  for (size_t i = 0; i < texts.size(); ++i) CHECK(table[i] == texts[i]);
  // Every shorter file is incomplete and says where; an exact copy of the bytes lets a sanitizer see one read too many.
  for (size_t size = 0; size < data.size(); ++size) {
    const std::vector<uint8_t> part(data.begin(), data.begin() + static_cast<std::ptrdiff_t>(size));
    scan = scan_strings(part.data(), part.size(), 3, texts.size(), table);
    CHECK(!scan.is_complete && (size < 3 || scan.begin + scan.length > size));
  }
  for (const uint64_t lie : {uint64_t{1} << 32, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 10}) {
    std::vector<uint8_t> lying;
    put(lying, 1, "a");
    put(lying, lie, "b");
    scan = scan_strings(lying.data(), lying.size(), 0, 2, table);
    CHECK(!scan.is_complete && scan.begin == 17 && scan.length == lie);
  }
  CHECK(!scan_strings(data.data(), data.size(), 3, ~uint64_t{0}, table).is_complete);
}

void test_merging() {
  const StringTable tokens = table_of({"a", "b", "c", "ab", "bc", "abc", "\xC4\xA0", "secret"});
  const std::vector<uint8_t> is_hidden = {0, 0, 0, 0, 0, 0, 0, 1};
  const auto ids = [&](const BytePairs& pairs, const char* word) {
    std::vector<int32_t> out;
    pairs.encode(word, out);
    return out;
  };
  const BytePairs pairs(tokens, is_hidden, table_of({"b c", "a b", "a bc"}), false);
  CHECK((ids(pairs, "abc") == std::vector<int32_t>{5}));
  CHECK((ids(pairs, "abab") == std::vector<int32_t>{3, 3}));
  CHECK((ids(pairs, "bcbc\xC4\xA0") == std::vector<int32_t>{4, 4, 6}));
  CHECK((ids(pairs, "a?b") == std::vector<int32_t>{3}));  // what is no token says nothing, and joins its neighbours
  CHECK(ids(pairs, "").empty() && pairs.find("secret") == -1 && pairs.find("abc") == 5);
  const BytePairs whole(tokens, is_hidden, table_of({"a b"}), true);
  CHECK((ids(whole, "abc") == std::vector<int32_t>{5}) && (ids(whole, "abca") == std::vector<int32_t>{3, 2, 0}));
  for (const char* wrong : {"ab", "a x", "a c", "secret a", " a", "a "}) {
    bool is_refused = false;
    try {
      BytePairs(tokens, is_hidden, table_of({"a b", wrong}), false);
    } catch (const std::invalid_argument& error) {
      is_refused = std::strstr(error.what(), "entry 1, ") != nullptr;
    }
    CHECK_MSG(is_refused, wrong);
  }
}

void test_top_ids() {
  std::mt19937 random(7);
  for (const size_t size : {1u, 63u, 64u, 65u, 1000u, 5000u}) {
    for (const int levels : {1, 3, 100000}) {
      std::vector<float> values(size);
      for (float& value : values) value = static_cast<float>(random() % static_cast<unsigned>(levels)) - 2.0f;
      if (size > 10) values[5] = -HUGE_VALF;
      std::vector<int64_t> order(size);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
      });
      for (const size_t k : {size_t{1}, size_t{40}, size}) {
        if (k > size) continue;
        std::vector<int64_t> ids(k);
        top_ids(values.data(), size, k, ids.data());
        CHECK(std::equal(ids.begin(), ids.end(), order.begin()));
      }
    }
  }
}

}  // namespace

int main() {
  test_scan();
  test_merging();
  test_top_ids();
  return test::finish();
}
