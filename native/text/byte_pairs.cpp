#include "kamado/byte_pairs.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <queue>
#include <random>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "kamado/refuse.h"

namespace kamado {
namespace {

// Open addressing at most half full: a miss ends after two probes on average.
size_t table_size(size_t count) {
  size_t size = 16;
  while (size < 2 * count) size *= 2;
  return size;
}

uint64_t mix(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

constexpr uint64_t kOdd0 = 0x9E3779B97F4A7C15, kOdd1 = 0xD6E8FEB86659FD93;

size_t char_bytes(char first) {
  const auto byte = static_cast<unsigned char>(first);
  return byte < 0xC0 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

// A part of a word: a token and its neighbours. `is_alive` ends when it is merged into the one before.
struct Symbol {
  int32_t id, before, after;
  bool is_alive;
};

struct Candidate {
  uint32_t rank;
  int32_t position, id;
  bool operator>(const Candidate& other) const {
    return std::tie(rank, position) > std::tie(other.rank, other.position);
  }
};

[[noreturn]] void fail(size_t entry, std::string_view merge, const char* what) {
  std::string shown(merge.substr(0, 60));
  for (char& c : shown) {
    if (c < 0x20 || c > 0x7E) c = '?';  // the bytes may be no UTF-8, and an error is one line
  }
  refuse("has entry ", entry, ", '", shown, "', ", what);
}

}  // namespace

BytePairs::BytePairs(const StringTable& tokens, const std::vector<uint8_t>& is_hidden, const StringTable& merges,
                     bool whole_words)
    : tokens_(tokens), whole_words_(whole_words) {
  if (is_hidden.size() != tokens.size() || tokens.size() > INT32_MAX || merges.size() > INT32_MAX) {
    refuse("sizes of the vocabulary do not match");
  }
  // A seed that a file's author cannot know: no file can be made whose tokens all fall into one slot.
  std::random_device random;
  seed_ = (static_cast<uint64_t>(random()) << 32 | random()) | 1;
  slots_.assign(table_size(tokens.size()), -1);
  slot_hashes_.assign(slots_.size(), 0);
  const size_t mask = slots_.size() - 1;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (is_hidden[i]) continue;
    const uint64_t code = hash(tokens[i]);
    size_t slot = code & mask;
    while (slots_[slot] >= 0) slot = (slot + 1) & mask;
    slots_[slot] = static_cast<int32_t>(i);
    slot_hashes_[slot] = static_cast<uint32_t>(code >> 32);
  }
  merges_.assign(table_size(merges.size()), Merge{0, 0, -1});
  const size_t merge_mask = merges_.size() - 1;
  std::string joined;
  for (size_t i = 0; i < merges.size(); ++i) {
    const std::string_view text = merges[i];
    const size_t space = text.find(' ');
    if (space == std::string_view::npos) fail(i, text, "which is no pair");
    const std::string_view left = text.substr(0, space), right = text.substr(space + 1);
    joined.assign(left).append(right);
    const int32_t left_id = find(left), right_id = find(right), id = find(joined);
    if (left_id < 0 || right_id < 0) fail(i, text, "of which a part is out of vocabulary");
    if (id < 0) fail(i, text, "which joined is out of vocabulary");
    const uint64_t pair = static_cast<uint64_t>(left_id) << 32 | static_cast<uint32_t>(right_id);
    size_t slot = hash(pair) & merge_mask;
    while (merges_[slot].id >= 0 && merges_[slot].pair != pair) slot = (slot + 1) & merge_mask;
    merges_[slot] = {pair, static_cast<uint32_t>(i), id};  // of equal ones the last counts
  }
}

uint64_t BytePairs::hash(std::string_view text) const {
  uint64_t code = seed_ ^ text.size() * kOdd0;
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, 8);
    code = mix(code ^ word, seed_ ^ kOdd1);
  }
  uint64_t rest = 0;
  std::memcpy(&rest, text.data() + i, text.size() - i);
  return mix(code ^ rest, seed_ ^ kOdd0);
}

uint64_t BytePairs::hash(uint64_t pair) const {
  return mix(pair ^ seed_, seed_ ^ kOdd1);
}

int32_t BytePairs::find(std::string_view text) const {
  const uint64_t code = hash(text);
  const auto upper = static_cast<uint32_t>(code >> 32);
  const size_t mask = slots_.size() - 1;
  for (size_t slot = code & mask; slots_[slot] >= 0; slot = (slot + 1) & mask) {
    if (slot_hashes_[slot] == upper && tokens_[static_cast<size_t>(slots_[slot])] == text) return slots_[slot];
  }
  return -1;
}

const BytePairs::Merge* BytePairs::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  const size_t mask = merges_.size() - 1;
  for (size_t slot = hash(pair) & mask; merges_[slot].id >= 0; slot = (slot + 1) & mask) {
    if (merges_[slot].pair == pair) return &merges_[slot];
  }
  return nullptr;
}

void BytePairs::encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (whole_words_) {
    if (const int32_t id = find(word); id >= 0) return ids.push_back(id);
  }
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  for (size_t i = 0; i < word.size();) {
    const size_t length = std::min(char_bytes(word[i]), word.size() - i);
    const int32_t id = find(word.substr(i, length));
    if (id >= 0) {
      const auto place = static_cast<int32_t>(symbols.size());
      symbols.push_back({id, place - 1, place + 1, true});
    }
    i += length;
  }
  const auto count = static_cast<int32_t>(symbols.size());
  if (count == 0) return;
  symbols.back().after = -1;
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  std::priority_queue queue(std::greater<Candidate>(), std::move(storage));
  const auto consider = [&](int32_t position) {
    const Symbol& symbol = symbols[static_cast<size_t>(position)];
    if (symbol.after < 0) return;
    const Merge* merge = find_merge(symbol.id, symbols[static_cast<size_t>(symbol.after)].id);
    if (merge != nullptr) queue.push({merge->rank, position, merge->id});
  };
  for (int32_t i = 0; i + 1 < count; ++i) consider(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& symbol = symbols[static_cast<size_t>(top.position)];
    if (!symbol.is_alive || symbol.after < 0) continue;
    Symbol& next = symbols[static_cast<size_t>(symbol.after)];
    const Merge* merge = find_merge(symbol.id, next.id);
    if (merge == nullptr || merge->id != top.id) continue;  // one of the two has changed since
    symbol.id = top.id;
    symbol.after = next.after;
    next.is_alive = false;
    if (symbol.after >= 0) symbols[static_cast<size_t>(symbol.after)].before = top.position;
    if (symbol.before >= 0) consider(symbol.before);
    consider(top.position);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].after) {
    ids.push_back(symbols[static_cast<size_t>(i)].id);
  }
}

}  // namespace kamado
