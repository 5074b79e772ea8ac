// Byte-pair merging with ranks: the model half of a byte-level BPE tokenizer. Words come in already cut.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kamado/string_table.h"

namespace kamado {

// Immutable once made; safe to share between threads. Building one for 152 000 tokens takes about 30 ms.
class BytePairs {
 public:
  // Token i has the text tokens[i]; those with is_hidden[i] != 0 are no result of anything. A merge is two tokens with
  // one space between; its place is its rank. With `whole_words` a word that is a token as a whole becomes that token,
  // merges or not. Throws std::invalid_argument, naming the entry, for a merge that is no pair or whose parts or
  // result are no tokens.
  BytePairs(const StringTable& tokens, const std::vector<uint8_t>& is_hidden, const StringTable& merges,
            bool whole_words);

  // Appends the ids of one word (UTF-8). Characters that are no token say nothing.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

  // Id of a token by its text, -1 when there is none.
  int32_t find(std::string_view text) const;

 private:
  struct Merge {
    uint64_t pair;  // left id << 32 | right id
    uint32_t rank;
    int32_t id;  // what the two become; -1: an empty slot
  };

  uint64_t hash(std::string_view text) const;
  uint64_t hash(uint64_t pair) const;
  const Merge* find_merge(int32_t left, int32_t right) const;

  StringTable tokens_;
  std::vector<int32_t> slots_;  // ids by hash of their text, -1 empty; open addressing, a power of two
  std::vector<uint32_t> slot_hashes_;
  std::vector<Merge> merges_;  // likewise, by hash of the pair
  uint64_t seed_;
  bool whole_words_;
};

}  // namespace kamado
