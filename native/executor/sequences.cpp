#include "executor/sequences.h"

#include <algorithm>

#include "kamado/refuse.h"

namespace kamado {

Sequences::Sequences(const Program& program, const ExecutorOptions& options)
    : program_(program),
      max_tokens_(options.max_kv_tokens),
      num_pages_((options.max_kv_tokens + kPageTokens - 1) / kPageTokens),
      max_sequences_(options.max_sequences) {
  add_states(options);
  cache_ = std::make_unique<StateCache>(shapes_, options.kv_f16 ? KvType::kF16 : KvType::kF32,
                                        num_pages_ + num_spare_pages(), options.max_sequences, options.max_rows,
                                        options.kv_reuse_points, records_);
}

void Sequences::add_states(const ExecutorOptions& options) {
  const auto is_of = [](bool source) {
    return [source](const StateSpec& state) {
      return state.kind != StateKind::kRecord && (state.kind == StateKind::kSource) == source;
    };
  };
  const std::vector<StateSpec>& states = program_.states;
  num_layers_ = static_cast<int32_t>(std::count_if(states.begin(), states.end(), is_of(false)));
  const auto num_sources = std::count_if(states.begin(), states.end(), is_of(true));
  shapes_.resize(static_cast<size_t>(num_layers_ + num_sources));
  codecs_.resize(shapes_.size());
  for (const StateSpec& state : states) {
    if (state.kind == StateKind::kRecord) {
      records_.bytes.push_back(static_cast<size_t>(state.num_bytes));
      continue;
    }
    KvLayerShape& shape = shapes_[static_cast<size_t>(state.index)];
    shape = {state.num_kv_heads, state.head_dim, state.v_dim};
    if (state.kind == StateKind::kSource) shape.source_tokens = state.tokens;
    if (state.kind == StateKind::kWindow && options.kv_bits) shape.window = state.tokens;
  }
  records_.num_rows = options.record_rows;
  const int64_t least = 2 * int64_t{options.record_rows} * options.max_sequences;
  records_.max_records = options.max_records > 0 ? options.max_records : least + options.kv_reuse_points;
  if (!options.kv_bits) return;
  if (options.kv_bits->size() != static_cast<size_t>(num_layers_)) {
    refuse("kv_bits has ", options.kv_bits->size(), " layers, the program has ", num_layers_);
  }
  for (const Op& op : program_.ops) {
    if (const auto* attend = std::get_if<AttendOp>(&op)) encode_layer(*attend, options);
  }
}

// Notes how many bits the keys and values have that an operation reads, if it can read codes.
void Sequences::encode_layer(const AttendOp& attend, const ExecutorOptions& options) {
  const auto layer = static_cast<size_t>(program_.states[static_cast<size_t>(attend.state)].index);
  if (layer >= options.kv_bits->size()) return;  // a source
  const auto [k_bits, v_bits] = (*options.kv_bits)[layer];
  if (k_bits == 0 && v_bits == 0) return;
  const std::string which = joined("kv_bits of layer ", layer, ": ");
  if (!attend.causal) refuse(which, "a layer that is not causal is not encoded");
  if (attend.window > 0) refuse(which, "a layer with a window is not encoded");
  if (!options.kv_f16) refuse(which, "only an f16 cache is encoded");
  shapes_[layer].k_bits = k_bits;
  shapes_[layer].v_bits = v_bits;
  codecs_[layer] = {attend.head_dim, attend.v_dim, k_bits, v_bits};
  require_valid_codec(codecs_[layer], which);
  has_codes_ = true;
}

int64_t Sequences::num_free_pages() const {
  return std::max<int64_t>(0, cache_->pages_free() - num_spare_pages());
}

bool Sequences::reserve(int32_t sequence, int64_t num_tokens) {
  return cache_->hold(sequence, num_tokens, num_spare_pages());
}

// --- sources ---

void Sequences::require_sources(int32_t sequence) const {
  for (size_t layer = static_cast<size_t>(num_layers_); layer < shapes_.size(); ++layer) {
    if (cache_->source_tokens(sequence, static_cast<int32_t>(layer)) > 0) continue;
    refuse("a source of sequence ", sequence, " is not set");
  }
}

// The KV layer of a source.
int32_t Sequences::source_layer(int32_t state) const {
  const bool is_there = state >= 0 && static_cast<size_t>(state) < program_.states.size();
  if (!is_there || program_.states[static_cast<size_t>(state)].kind != StateKind::kSource) {
    refuse("state ", state, " is no source");
  }
  return program_.states[static_cast<size_t>(state)].index;
}

const KvLayerShape& Sequences::source_shape(int32_t state) const {
  return shapes_[static_cast<size_t>(source_layer(state))];
}

void Sequences::set_source(const KernelTable& kernels, int32_t sequence, int32_t state, const float* k, const float* v,
                           int64_t num_tokens) {
  const int32_t layer = source_layer(state);
  const KvLayerShape& shape = shapes_[static_cast<size_t>(layer)];
  const int32_t k_width = shape.num_kv_heads * shape.k_dim, v_width = shape.num_kv_heads * shape.v_dim;
  for (int64_t token = 0; token < std::min<int64_t>(num_tokens, shape.source_tokens); ++token) {
    if (kernels.vector->is_finite(k + token * k_width, k_width) &&
        kernels.vector->is_finite(v + token * v_width, v_width))
      continue;
    refuse("the source's keys and values are not all finite");
  }
  cache_->set_source(sequence, layer, num_tokens);
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      kernels.attention->store(cache_->type(), cache_->k_block(sequence, token / kPageTokens, layer, head),
                               cache_->v_block(sequence, token / kPageTokens, layer, head), shape.k_dim, shape.v_dim,
                               static_cast<int32_t>(token % kPageTokens), k + token * k_width + head * shape.k_dim,
                               v + token * v_width + head * shape.v_dim);
    }
  }
}

// --- storage ---

size_t Sequences::tail_bytes(int64_t num_tokens) const {
  if (num_tokens < 0 || num_tokens > max_tokens_) {
    refuse("the cache holds ", max_tokens_, " tokens, got ", num_tokens);
  }
  return cache_->stored_tail_bytes(num_tokens);
}

size_t Sequences::export_pages_bytes(int32_t sequence, int64_t first_page, int64_t last_page) const {
  const int64_t settled = settled_pages(cache_->length(sequence));
  if (first_page < 0 || first_page > last_page || last_page > settled) {
    refuse("cannot export pages ", first_page, " to ", last_page, " of a sequence with ", settled, " settled pages");
  }
  return static_cast<size_t>(last_page - first_page) * cache_->stored_page_bytes();
}

size_t Sequences::export_tail_bytes(int32_t sequence, int64_t num_tokens) const {
  const int64_t length = cache_->length(sequence);
  if (num_tokens < 0 || num_tokens > length) {
    refuse("cannot export at ", num_tokens, " tokens of a sequence of ", length);
  }
  return cache_->stored_tail_bytes(num_tokens);
}

int32_t Sequences::begin_import(int64_t num_tokens) {
  (void)tail_bytes(num_tokens);  // refuses a number that the cache does not hold
  return cache_->begin_import(num_tokens);
}

void Sequences::import_pages(int32_t sequence, int64_t first_page, int64_t last_page, const uint8_t* pages,
                             size_t num_bytes) {
  const KvImport now = cache_->importing(sequence);
  const int64_t settled = settled_pages(now.num_tokens);
  if (first_page != now.next_page || last_page < first_page || last_page > settled) {
    refuse("cannot import pages ", first_page, " to ", last_page, ": ", now.next_page, " of ", settled, " are there");
  }
  const size_t wanted = static_cast<size_t>(last_page - first_page) * cache_->stored_page_bytes();
  if (num_bytes != wanted) {
    refuse(num_bytes, " bytes for ", last_page - first_page, " pages, which take ", wanted);
  }
  cache_->import_pages(sequence, pages, last_page - first_page);
}

void Sequences::import_tail(int32_t sequence, const uint8_t* tail, size_t num_bytes) {
  const size_t wanted = tail_bytes(cache_->importing(sequence).num_tokens);
  if (num_bytes != wanted) {
    refuse("a tail of ", num_bytes, " bytes, which takes ", wanted);
  }
  cache_->import_tail(sequence, tail);
}

}  // namespace kamado
