// Token ids as llama.cpp gives them, for record.py. Reads lines "special add hex-bytes", writes a line of ids for each.
//   g++ -std=c++17 -I$LLAMA/include -I$LLAMA/ggml/include reference_ids.cpp \
//       $BUILD/src/libllama.a $BUILD/ggml/src/libggml{,-cpu,-base}.a -fopenmp -o reference_ids

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "llama.h"

int main(int argc, char ** argv) {
    if (argc != 2) {
        return 2;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    llama_model * model = llama_model_load_from_file(argv[1], params);
    if (model == nullptr) {
        return 1;
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    for (std::string line; std::getline(std::cin, line);) {
        const bool special = line[0] == '1';
        const bool add = line[2] == '1';
        std::string text;
        for (size_t i = 4; i + 1 < line.size(); i += 2) {
            text.push_back(static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16)));
        }
        std::vector<llama_token> ids(text.size() * 2 + 16);
        const int count = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), ids.data(),
                                         static_cast<int>(ids.size()), add, special);
        for (int i = 0; i < count; ++i) {
            std::printf(i > 0 ? " %d" : "%d", ids[i]);
        }
        std::puts("");
    }
    llama_model_free(model);
    return 0;
}
