// llama.cpp's logits as float32 and its routers' picks, for benchmarks/gguf_parity.py:
//
//     peer-logits MODEL.gguf TOKENS LOGITS ROUTES THREADS LENGTH
//
// TOKENS holds int32 ids: prompts of LENGTH tokens, each from position 0. LOGITS becomes float32[tokens, vocabulary].
// ROUTES becomes int32: layer, rows, k and then rows * k experts for every router and prompt. Keys and values have 16
// bits, all else is llama.cpp's default. `llama-perplexity --save-all-logits` would round log-probabilities to steps of
// up to 16 / 65535. Logits come from a run without a callback, picks from a second one, whose logits must be the same.
//
// Build against llama.cpp's static libraries, SRC being its sources and BUILD its build folder:
//
//     g++ -O2 -std=c++17 -ISRC/include -ISRC/ggml/include benchmarks/peer_logits.cpp -Wl,--start-group
//       $(find BUILD -name 'lib*.a') -Wl,--end-group -fopenmp -lpthread -ldl -o BUILD/bin/peer-logits

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace {

constexpr char kPicks[] = "ffn_moe_topk-";

using Words = std::vector<int32_t>;

// Called before (ask) and after a node is computed.
bool on_node(ggml_tensor* node, bool ask, void* data) {
  const bool is_wanted = std::strncmp(node->name, kPicks, sizeof kPicks - 1) == 0;
  if (ask || !is_wanted) {
    return is_wanted;
  }
  auto& routes = *static_cast<Words*>(data);
  const int64_t k = node->ne[0];
  const int64_t rows = node->ne[1];
  const int layer = std::atoi(node->name + sizeof kPicks - 1);
  routes.insert(routes.end(), {layer, static_cast<int32_t>(rows), static_cast<int32_t>(k)});
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < k; ++i) {
      const auto* at = static_cast<const char*>(node->data) + row * node->nb[1] + i * node->nb[0];
      int32_t expert = 0;
      std::memcpy(&expert, at, sizeof expert);
      routes.push_back(expert);
    }
  }
  return true;
}

std::vector<float> evaluate(llama_model* model, const Words& tokens, int threads, int length, Words* routes) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = params.n_batch = params.n_ubatch = static_cast<uint32_t>(length);
  params.n_threads = params.n_threads_batch = threads;
  params.type_k = params.type_v = GGML_TYPE_F16;
  if (routes != nullptr) {
    params.cb_eval = on_node;
    params.cb_eval_user_data = routes;
  }
  llama_context* context = llama_init_from_model(model, params);
  if (context == nullptr) {
    std::fprintf(stderr, "no context\n");
    std::exit(1);
  }
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
  std::vector<float> logits;
  llama_batch batch = llama_batch_init(length, 0, 1);
  for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(length)) {
    batch.n_tokens = length;
    for (int i = 0; i < length; ++i) {
      batch.token[i] = tokens[first + static_cast<size_t>(i)];
      batch.pos[i] = i;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = 1;
    }
    llama_memory_clear(llama_get_memory(context), true);
    if (llama_decode(context, batch) != 0) {
      std::fprintf(stderr, "llama_decode failed in the prompt at token %zu\n", first);
      std::exit(1);
    }
    for (int i = 0; i < length; ++i) {
      const float* row = llama_get_logits_ith(context, i);
      logits.insert(logits.end(), row, row + vocabulary);
    }
  }
  llama_batch_free(batch);
  llama_free(context);
  return logits;
}

template <typename T>
void write(const char* path, const std::vector<T>& values) {
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
  if (!out) {
    std::fprintf(stderr, "%s cannot be written\n", path);
    std::exit(1);
  }
}

void log_errors(ggml_log_level level, const char* text, void* /*data*/) {
  if (level >= GGML_LOG_LEVEL_ERROR) {
    std::fputs(text, stderr);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr, "usage: %s MODEL.gguf TOKENS LOGITS ROUTES THREADS LENGTH\n", argv[0]);
    return 2;
  }
  std::ifstream in(argv[2], std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  Words tokens(bytes.size() / sizeof(int32_t));
  std::memcpy(tokens.data(), bytes.data(), tokens.size() * sizeof(int32_t));
  const int threads = std::atoi(argv[5]);
  const int length = std::atoi(argv[6]);
  if (threads < 1 || length < 1 || tokens.empty() || tokens.size() % static_cast<size_t>(length) != 0) {
    std::fprintf(stderr, "THREADS and LENGTH are at least 1, and TOKENS are whole prompts\n");
    return 2;
  }
  llama_log_set(log_errors, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (model == nullptr) {
    return 1;
  }
  const std::vector<float> logits = evaluate(model, tokens, threads, length, nullptr);
  Words routes;
  const std::vector<float> again = evaluate(model, tokens, threads, length, &routes);
  if (logits.size() != again.size() || std::memcmp(logits.data(), again.data(), logits.size() * sizeof(float)) != 0) {
    std::fprintf(stderr, "asking for the picks changed the logits\n");
    return 3;
  }
  write(argv[3], logits);
  write(argv[4], routes);
  llama_model_free(model);
  return 0;
}
