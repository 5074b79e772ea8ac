// Token ids as llama.cpp gives them, for record.py, which compiles this with the sources of the peer that it needs.
// Reads lines "special add hex-bytes", writes a line of ids for each; before them a line with the ids that end a turn.

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "llama-model-loader.h"
#include "llama-vocab.h"

// The loader names these three, and nothing that a vocabulary needs calls them.
int llama_split_path(char*, size_t, const char*, int, int) {
  return 0;
}
int llama_split_prefix(char*, size_t, const char*, int, int) {
  return 0;
}
ggml_backend_dev_t ggml_backend_dev_by_type(enum ggml_backend_dev_type) {
  return nullptr;
}

int main(int argc, char** argv) {
  if (argc != 2) {
    return 2;
  }
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  std::vector<std::string> splits;
  llama_model_loader loader(nullptr, nullptr, nullptr, argv[1], splits, nullptr, LLAMA_LOAD_MODE_NONE, false, true,
                            false, nullptr, nullptr);
  llama_vocab vocab;
  vocab.load(loader, LLM_KV(loader.get_arch()));
  for (uint32_t id = 0; id < vocab.n_tokens(); ++id) {
    if (vocab.is_eog(static_cast<llama_token>(id))) {
      std::printf("%u ", id);
    }
  }
  std::puts("");
  for (std::string line; std::getline(std::cin, line);) {
    const bool special = line[0] == '1';
    const bool add = line[2] == '1';
    std::string text;
    for (size_t i = 4; i + 1 < line.size(); i += 2) {
      text.push_back(static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16)));
    }
    for (const llama_token id : vocab.tokenize(text, add, special)) {
      std::printf("%d ", id);
    }
    std::puts("");
  }
  return 0;
}
