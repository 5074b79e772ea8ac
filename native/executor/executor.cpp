#include "kamado/executor.h"

#include <algorithm>
#include <cstring>

#include "executor/impl.h"
#include "kamado/refuse.h"

namespace kamado {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPollEvery = std::chrono::milliseconds(50);

ExecutorOptions checked(const ExecutorOptions& options) {
  const auto check = [](const char* name, int64_t value, int64_t most) {
    if (value < 1 || value > most) {
      refuse(name, " must be from 1 to ", most, ", got ", value);
    }
  };
  check("num_threads", options.num_threads, 1024);
  check("max_rows", options.max_rows, 1 << 16);
  check("max_logit_rows", options.max_logit_rows, 1 << 16);
  check("max_kv_tokens", options.max_kv_tokens, int64_t{1} << 30);
  check("max_sequences", options.max_sequences, 1 << 16);
  check("num_readers", options.num_readers, 256);
  check("record_rows", options.record_rows, 1 << 10);
  if (options.kv_reuse_points < 0 || options.kv_reuse_points > 1 << 16) {
    refuse("kv_reuse_points must be from 0 to ", 1 << 16, ", got ", options.kv_reuse_points);
  }
  if (options.max_records < 0 || options.max_records > 1 << 24) {
    refuse("max_records must be from 0 to ", 1 << 24, ", got ", options.max_records);
  }
  return options;
}

Program prepared(Program program, const ExecutorOptions& options) {
  if (options.expert_bytes && options.look_ahead != LookAhead::kOff) add_look_ahead(program);
  return program;
}

const KernelTable& table_for(const std::optional<std::string>& tier) {
  if (!tier) return best_table();
  const KernelTable* table = table_by_name(tier->c_str());
  if (table == nullptr) refuse("tier ", *tier, " is not one that this build and this CPU have");
  return *table;
}

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

Executor::Impl::Impl(Program given, const ExecutorOptions& given_options, const Progress& progress)
    : program(prepared(std::move(given), given_options)),
      options(checked(given_options)),
      kernels(table_for(options.tier)),
      pool(options.num_threads),
      plan(make_plan(program, options.num_threads, options.max_rows, options.max_logit_rows)) {
  add_states();
  allocate();
  const int64_t pages = (options.max_kv_tokens + kPageTokens - 1) / kPageTokens + num_spare_pages();
  kv = std::make_unique<StateCache>(kv_shapes, options.kv_f16 ? KvType::kF16 : KvType::kF32, pages,
                                    options.max_sequences, options.max_rows, options.kv_reuse_points, records);
  for (const Op& op : program.ops) {
    if (const auto* route_op = std::get_if<RouteOp>(&op)) max_top_k = std::max(max_top_k, route_op->top_k);
    if (std::holds_alternative<ExpertsOp>(op)) resident_ledger.emplace_back();
  }
  // First, so that a budget that is too small is told before anything is read.
  if (options.expert_bytes) {
    stream = std::make_unique<ExpertStream>(program, *kernels.linear,
                                            ExpertStream::Options{static_cast<size_t>(*options.expert_bytes),
                                                                  options.num_readers,
                                                                  options.direct_io,
                                                                  options.verify_slots,
                                                                  {}});
  }
  if (stream != nullptr && !program.is_ahead.empty()) ahead = AheadControl(options.look_ahead);
  weights = load_weights(program, *kernels.linear, pool,
                         {stream != nullptr, stream != nullptr || options.drop_file_cache}, progress);
}

void Executor::Impl::add_states() {
  const auto is_of = [](bool source) {
    return [source](const StateSpec& state) {
      return state.kind != StateKind::kRecord && (state.kind == StateKind::kSource) == source;
    };
  };
  num_kv_layers = static_cast<int32_t>(std::count_if(program.states.begin(), program.states.end(), is_of(false)));
  const auto num_sources = std::count_if(program.states.begin(), program.states.end(), is_of(true));
  kv_shapes.resize(static_cast<size_t>(num_kv_layers + num_sources));
  codecs.resize(kv_shapes.size());
  for (const StateSpec& state : program.states) {
    if (state.kind == StateKind::kRecord) {
      records.bytes.push_back(static_cast<size_t>(state.num_bytes));
      continue;
    }
    KvLayerShape& shape = kv_shapes[static_cast<size_t>(state.index)];
    shape = {state.num_kv_heads, state.head_dim, state.v_dim};
    if (state.kind == StateKind::kSource) shape.source_tokens = state.tokens;
    if (state.kind == StateKind::kWindow && options.kv_bits) shape.window = state.tokens;
  }
  records.num_rows = options.record_rows;
  const int64_t least = 2 * int64_t{options.record_rows} * options.max_sequences;
  records.max_records = options.max_records > 0 ? options.max_records : least + options.kv_reuse_points;
  if (!options.kv_bits) return;
  if (options.kv_bits->size() != static_cast<size_t>(num_kv_layers)) {
    refuse("kv_bits has ", options.kv_bits->size(), " layers, the program has ", num_kv_layers);
  }
  for (const Op& op : program.ops) {
    if (const auto* attend = std::get_if<AttendOp>(&op)) encode_layer(*attend);
  }
}

// Notes how many bits the keys and values have that an operation reads, if it can read codes.
void Executor::Impl::encode_layer(const AttendOp& attend) {
  const auto layer = static_cast<size_t>(program.states[static_cast<size_t>(attend.state)].index);
  if (layer >= options.kv_bits->size()) return;  // a source
  const auto [k_bits, v_bits] = (*options.kv_bits)[layer];
  if (k_bits == 0 && v_bits == 0) return;
  const std::string which = joined("kv_bits of layer ", layer, ": ");
  if (!attend.causal) refuse(which, "a layer that is not causal is not encoded");
  if (attend.window > 0) refuse(which, "a layer with a window is not encoded");
  if (!options.kv_f16) refuse(which, "only an f16 cache is encoded");
  kv_shapes[layer].k_bits = k_bits;
  kv_shapes[layer].v_bits = v_bits;
  codecs[layer] = {attend.head_dim, attend.v_dim, k_bits, v_bits};
  require_valid_codec(codecs[layer], which);
  has_codes = true;
}

void Executor::Impl::check_batch(const Batch& given, bool is_scoring) const {
  int64_t total = 0;
  for (size_t i = 0; i < given.num_sequences; ++i) {
    const int32_t sequence = given.sequences[i];
    const int64_t cached = kv->length(sequence);
    if (given.counts[i] < 1) {
      refuse("sequence ", sequence, " has a count of ", given.counts[i]);
    }
    total += given.counts[i];
    if (cached + given.counts[i] > plan.num_positions) {
      refuse("sequence ", sequence, " would have ", cached + given.counts[i], " tokens, the model has ",
             plan.num_positions, " positions");
    }
    if (!plan.is_causal && cached > 0) {
      refuse("sequence ", sequence, " has tokens already, and this model reads a text in one step");
    }
    if (cached + given.counts[i] > options.max_kv_tokens) {
      refuse("sequence ", sequence, " would have ", cached + given.counts[i], " tokens, the cache holds ",
             options.max_kv_tokens);
    }
    for (size_t layer = static_cast<size_t>(num_kv_layers); layer < kv_shapes.size(); ++layer) {
      if (kv->source_tokens(sequence, static_cast<int32_t>(layer)) > 0) continue;
      refuse("a source of sequence ", sequence, " is not set");
    }
    for (size_t j = 0; j < i; ++j) {
      if (given.sequences[j] == sequence) refuse("sequence ", sequence, " is listed twice");
    }
  }
  if (static_cast<uint64_t>(total) != given.num_tokens) {
    refuse("the counts sum to ", total, " and there are ", given.num_tokens, " tokens");
  }
  if (total < 1 || total > options.max_rows) {
    refuse("a step takes 1 to ", options.max_rows, " rows, got ", total);
  }
  for (size_t i = 0; i < given.num_tokens; ++i) {
    if (given.tokens[i] < 0 || given.tokens[i] >= plan.num_tokens) {
      refuse("token ", given.tokens[i], " is outside the vocabulary of ", plan.num_tokens);
    }
  }
  if (plan.vocab_size == 0 && given.num_logit_rows > 0 && !given.wants_hidden) {
    refuse("logits are wanted and the model has no head");
  }
  if (!is_scoring && given.num_logit_rows > static_cast<size_t>(options.max_logit_rows)) {
    refuse("logits of ", given.num_logit_rows, " rows are wanted, at most ", options.max_logit_rows, " fit");
  }
  for (size_t i = 0; i < given.num_logit_rows; ++i) {
    if (given.logit_rows[i] < 0 || given.logit_rows[i] >= total) {
      refuse("logits of row ", given.logit_rows[i], " are wanted, the step has ", total);
    }
  }
}

const float* Executor::Impl::run_step(const Batch& given, const Poll& given_poll) {
  check_batch(given, score_targets != nullptr);
  size_t reserved = 0;
  try {
    for (; reserved < given.num_sequences; ++reserved) {
      const int32_t sequence = given.sequences[reserved];
      kv->reserve(sequence, kv->length(sequence) + given.counts[reserved]);
    }
    run(given, given_poll);
  } catch (...) {
    for (size_t i = 0; i < reserved; ++i) kv->undo(given.sequences[i]);
    throw;
  }
  for (size_t i = 0; i < given.num_sequences; ++i) {
    kv->commit(given.sequences[i], kv->length(given.sequences[i]) + given.counts[i]);
  }
  num_steps += 1;
  num_rows += static_cast<int64_t>(given.num_tokens);
  return reinterpret_cast<const float*>(shared.data() + (given.wants_hidden ? plan.hidden.offset : plan.logits.offset));
}

void Executor::Impl::run(const Batch& given, const Poll& given_poll) {
  int32_t row = 0;
  for (size_t i = 0; i < given.num_sequences; ++i) {
    const auto start = static_cast<int32_t>(kv->length(given.sequences[i]));
    for (int32_t j = 0; j < given.counts[i]; ++j) positions[static_cast<size_t>(row++)] = start + j;
  }
  std::fill_n(is_wanted.begin(), row, uint8_t{0});
  for (size_t i = 0; i < given.num_logit_rows; ++i) is_wanted[static_cast<size_t>(given.logit_rows[i])] = 1;
  if (plan.has_tail_units) note_sequences(given);
  for (size_t i = 0; i < units.size(); ++i) {
    if (!plan.unit_kinds[i].is_tail) make_units(given, plan.unit_kinds[i], units[i]);
  }
  if (query_stride > 0) reserve_queries(row);
  for (int32_t i = 0; i < plan.num_counters; ++i) counters[static_cast<size_t>(i)].reset();
  step_epoch += static_cast<uint64_t>(plan.num_counters) + 1;
  looks_ahead = row == 1 && ahead.is_on();
  batch = &given;
  poll = &given_poll;
  const Clock::time_point begin = last_poll = last_time = Clock::now();
  timed = kTimeRows;
  for (Worker& worker : workers) worker.damage = nullptr;
  try {
    pool.run([](void* context, int32_t thread) { static_cast<Impl*>(context)->run_thread(thread); }, this);
  } catch (...) {
    if (stream != nullptr) stream->abandon();
    is_cancelled.store(false, std::memory_order_relaxed);
    throw;
  }
  refuse_damage();
  const Clock::time_point end = Clock::now();
  seconds[timed] += seconds_between(last_time, end);
  seconds_total += seconds_between(begin, end);
  if (row == 1) ahead.add(seconds_between(begin, end));
}

void Executor::Impl::refuse_damage() const {
  for (const Worker& worker : workers) {
    if (worker.damage == nullptr) continue;
    throw NotFinite(std::string(worker.damage) +
                    " came out not finite: the model file is probably damaged (compare its checksum), or its weights "
                    "overflow float32");
  }
}

void Executor::Impl::run_thread(int32_t thread) {
  const auto num_tokens = static_cast<int32_t>(batch->num_tokens);
  const bool is_one = num_tokens == 1;
  if (plan.has_main) run_nodes(plan.main[is_one], {num_tokens, is_one, identity.data()}, thread);
  const auto num_wanted = static_cast<int32_t>(batch->num_logit_rows);
  for (int32_t begin = 0; begin < num_wanted; begin += options.max_logit_rows) {
    const int32_t rows = std::min(options.max_logit_rows, num_wanted - begin);
    const Segment segment{rows, rows == 1, batch->logit_rows + begin};
    pool.barrier();
    if (begin > 0 || plan.has_tail_units) {
      if (thread == 0) begin_segment(segment, begin == 0);
      pool.barrier();
    }
    run_nodes(plan.tail[is_one][segment.is_one], segment, thread);
    if (score_targets != nullptr) reduce_scores(segment, thread);
  }
}

// What one thread does before each segment of the tail.
void Executor::Impl::begin_segment(const Segment& segment, bool is_first) {
  if (!is_first) {
    for (int32_t i = plan.tail_counters_begin; i < plan.num_counters; ++i) counters[static_cast<size_t>(i)].reset();
    step_epoch += static_cast<uint64_t>(plan.num_counters) + 1;
  }
  for (size_t i = 0; i < units.size(); ++i) {
    if (plan.unit_kinds[i].is_tail) make_tail_units(segment, plan.unit_kinds[i], units[i]);
  }
}

void Executor::Impl::run_nodes(const std::vector<Node>& nodes, const Segment& segment, int32_t thread) {
  Worker& worker = workers[static_cast<size_t>(thread)];
  const auto share = [&](int32_t t) {
    return static_cast<int32_t>(int64_t{segment.num_rows} * t / options.num_threads);
  };
  const int32_t row_begin = segment.is_one ? 0 : share(thread);
  const int32_t row_end = segment.is_one ? 1 : share(thread + 1);
  for (const Node& node : nodes) {
    if (node.has_barrier) pool.barrier();
    check_cancel(thread);
    if (thread == 0) {
      const Clock::time_point now = Clock::now();
      seconds[timed] += seconds_between(last_time, now);
      last_time = now;
      timed = node.kind == NodeKind::kRow       ? kTimeRows
              : node.kind == NodeKind::kAttend  ? kTimeAttend
              : node.kind == NodeKind::kRecord  ? kTimeRows
              : node.kind == NodeKind::kExperts ? kTimeExperts
              : node.linear.is_head             ? kTimeHead
                                                : kTimeLinear;
    }
    switch (node.kind) {
      case NodeKind::kRow:
        // All operations on one row, then the next: a row stays in cache.
        for (int32_t row = row_begin; row < row_end; ++row) {
          for (const RowOp& op : node.rows) {
            if (!op.is_ahead || looks_ahead) run_row(op, row, segment, worker);
          }
        }
        break;
      case NodeKind::kLinear:
        if (node.linear.is_head && batch->wants_hidden) break;
        if (!node.linear.is_ahead || looks_ahead) run_linear(node, segment, thread);
        break;
      case NodeKind::kAttend:
        run_attend(node, thread);
        break;
      case NodeKind::kExperts:
        run_experts(node, segment, thread);
        break;
      case NodeKind::kRecord:
        run_record(node.record, thread);
        break;
    }
  }
}

void Executor::Impl::reduce_scores(const Segment& segment, int32_t thread) {
  pool.barrier();
  for (int32_t i = thread; i < segment.num_rows; i += options.num_threads) {
    const auto* logits = reinterpret_cast<const float*>(shared.data() + plan.logits.offset) +
                         static_cast<size_t>(i) * static_cast<size_t>(plan.vocab_size);
    const int32_t row = segment.source[i];
    const double total = kernels.vector->log_sum_exp(logits, plan.vocab_size);
    score_out[row] = static_cast<double>(logits[score_targets[row]]) - total;
  }
}

void Executor::Impl::check_cancel(int32_t thread) {
  if (is_cancelled.load(std::memory_order_relaxed)) throw Cancelled();
  if (thread != 0 || !*poll) return;
  const Clock::time_point now = Clock::now();
  if (now - last_poll < kPollEvery) return;
  last_poll = now;
  if ((*poll)()) throw Cancelled();
}

Executor::Executor(Program program, const ExecutorOptions& options, const Progress& progress)
    : impl_(std::make_unique<Impl>(std::move(program), options, progress)) {}

Executor::~Executor() = default;

const char* Executor::tier() const {
  return impl_->kernels.tier;
}
int32_t Executor::num_threads() const {
  return impl_->options.num_threads;
}
int32_t Executor::vocab_size() const {
  return impl_->plan.vocab_size > 0 ? impl_->plan.vocab_size : impl_->plan.num_tokens;
}
int32_t Executor::hidden_width() const {
  return impl_->plan.hidden_width;
}

StateCache& Executor::state() const {
  return *impl_->kv;
}

int64_t Executor::num_pages() const {
  return (impl_->options.max_kv_tokens + kPageTokens - 1) / kPageTokens;
}

int64_t Executor::num_free_pages() const {
  return std::max<int64_t>(0, impl_->kv->pages_free() - impl_->num_spare_pages());
}

bool Executor::reserve(int32_t sequence, int64_t num_tokens) {
  return impl_->kv->hold(sequence, num_tokens, impl_->num_spare_pages());
}

Executor::SourceShape Executor::source_shape(int32_t state) const {
  const KvLayerShape& shape = impl_->kv_shapes[static_cast<size_t>(impl_->source_layer(state))];
  return {shape.num_kv_heads * shape.k_dim, shape.num_kv_heads * shape.v_dim, shape.source_tokens};
}

void Executor::set_source(int32_t sequence, int32_t state, const float* k, const float* v, int64_t num_tokens) {
  impl_->set_source(sequence, state, k, v, num_tokens);
}

size_t Executor::tail_bytes(int64_t num_tokens) const {
  if (num_tokens < 0 || num_tokens > impl_->options.max_kv_tokens) {
    refuse("the cache holds ", impl_->options.max_kv_tokens, " tokens, got ", num_tokens);
  }
  return impl_->kv->stored_tail_bytes(num_tokens);
}

size_t Executor::export_pages_bytes(int32_t sequence, int64_t first_page, int64_t last_page) const {
  const int64_t settled = settled_pages(impl_->kv->length(sequence));
  if (first_page < 0 || first_page > last_page || last_page > settled) {
    refuse("cannot export pages ", first_page, " to ", last_page, " of a sequence with ", settled, " settled pages");
  }
  return static_cast<size_t>(last_page - first_page) * impl_->kv->stored_page_bytes();
}

void Executor::export_pages(int32_t sequence, int64_t first_page, int64_t last_page, uint8_t* out) const {
  impl_->kv->export_pages(sequence, first_page, last_page, out);
}

size_t Executor::export_tail_bytes(int32_t sequence, int64_t num_tokens) const {
  const int64_t length = impl_->kv->length(sequence);
  if (num_tokens < 0 || num_tokens > length) {
    refuse("cannot export at ", num_tokens, " tokens of a sequence of ", length);
  }
  return impl_->kv->stored_tail_bytes(num_tokens);
}

void Executor::export_tail(int32_t sequence, int64_t num_tokens, uint8_t* out) {
  impl_->kv->export_tail(sequence, num_tokens, out);
}

int32_t Executor::begin_import(int64_t num_tokens) {
  (void)tail_bytes(num_tokens);  // refuses a number that the cache does not hold
  return impl_->kv->begin_import(num_tokens);
}

void Executor::import_pages(int32_t sequence, int64_t first_page, int64_t last_page, const uint8_t* pages,
                            size_t num_bytes) {
  const KvImport now = impl_->kv->importing(sequence);
  const int64_t settled = settled_pages(now.num_tokens);
  if (first_page != now.next_page || last_page < first_page || last_page > settled) {
    refuse("cannot import pages ", first_page, " to ", last_page, ": ", now.next_page, " of ", settled, " are there");
  }
  const size_t wanted = static_cast<size_t>(last_page - first_page) * impl_->kv->stored_page_bytes();
  if (num_bytes != wanted) {
    refuse(num_bytes, " bytes for ", last_page - first_page, " pages, which take ", wanted);
  }
  impl_->kv->import_pages(sequence, pages, last_page - first_page);
}

void Executor::import_tail(int32_t sequence, const uint8_t* tail, size_t num_bytes) {
  const size_t wanted = tail_bytes(impl_->kv->importing(sequence).num_tokens);
  if (num_bytes != wanted) {
    refuse("a tail of ", num_bytes, " bytes, which takes ", wanted);
  }
  impl_->kv->import_tail(sequence, tail);
}

const float* Executor::step(const Batch& batch, const Poll& poll) {
  return impl_->run_step(batch, poll);
}

void Executor::score(int32_t sequence, const int32_t* tokens, const int32_t* targets, size_t count, double* out,
                     const Poll& poll) {
  Impl& impl = *impl_;
  for (size_t i = 0; i < count; ++i) {
    if (targets[i] < -1 || targets[i] >= impl.plan.vocab_size) {
      refuse("target ", targets[i], " is outside the vocabulary of ", impl.plan.vocab_size);
    }
  }
  const int64_t start = impl.kv->length(sequence);
  std::fill_n(out, count, 0.0);
  // What is undone when a later step fails.
  const ReuseHere here(*impl.kv, sequence);
  try {
    const auto max_rows = static_cast<size_t>(impl.options.max_rows);
    for (size_t begin = 0; begin < count; begin += max_rows) {
      const auto rows = static_cast<int32_t>(std::min(max_rows, count - begin));
      impl.score_targets = targets + begin;
      impl.score_out = out + begin;
      impl.score_rows.clear();
      for (int32_t i = 0; i < rows; ++i) {
        if (targets[begin + static_cast<size_t>(i)] >= 0) impl.score_rows.push_back(i);
      }
      const Batch batch{&sequence,
                        &rows,
                        1,
                        tokens + begin,
                        static_cast<size_t>(rows),
                        impl.score_rows.data(),
                        impl.score_rows.size()};
      impl.run_step(batch, poll);
    }
  } catch (...) {
    impl.score_targets = nullptr;
    impl.kv->truncate(sequence, start);
    throw;
  }
  impl.score_targets = nullptr;
}

void Executor::tile_kv(int32_t sequence, int64_t num_tokens) {
  impl_->tile_kv(sequence, num_tokens);
}

void Executor::cancel() {
  impl_->is_cancelled.store(true, std::memory_order_relaxed);
}

ExpertLedger Executor::ledger() const {
  const Impl& impl = *impl_;
  ExpertLedger ledger;
  ledger.is_resident = impl.stream == nullptr;
  if (ledger.is_resident) {
    ledger.layers = impl.resident_ledger;
    return ledger;
  }
  const ExpertStream& stream = *impl.stream;
  ledger.layers = stream.ledger();
  ledger.num_slots = stream.num_slots();
  ledger.slot_bytes = stream.slot_bytes();
  ledger.total_bytes = stream.total_bytes();
  ledger.least_bytes = stream.least_bytes();
  ledger.record_bytes = stream.record_bytes();
  ledger.is_direct = stream.readers().is_direct();
  ledger.num_readers = stream.readers().num_threads();
  ledger.busy_seconds = stream.readers().busy_seconds();
  return ledger;
}

void Executor::record_routing(bool is_enabled) {
  impl_->records_routing = is_enabled;
}

std::vector<int32_t> Executor::take_routing() {
  return std::exchange(impl_->routing, {});
}

int32_t Executor::routing_columns() const {
  return 3 + impl_->max_top_k;
}

void Executor::record_queries(int32_t stride) {
  if (stride < 0) refuse("the stride of recorded queries must be at least 0, got ", stride);
  impl_->record_queries(stride);
}

const RecordedQueries& Executor::recorded_queries(int32_t layer) const {
  if (layer < 0 || static_cast<size_t>(layer) >= impl_->recorded.size())
    refuse("no queries of layer ", layer, " are recorded");
  return impl_->recorded[static_cast<size_t>(layer)];
}

Executor::KvShape Executor::kv_shape(int32_t sequence, int32_t layer, int32_t k_bits, int32_t v_bits) const {
  const int64_t length = impl_->kv->length(sequence);
  impl_->check_readable(layer, k_bits, v_bits);
  const KvLayerShape& shape = impl_->kv_shapes[static_cast<size_t>(layer)];
  return {shape.num_kv_heads, shape.k_dim, shape.v_dim, length};
}

void Executor::read_kv(int32_t sequence, int32_t layer, int32_t k_bits, int32_t v_bits, float* k, float* v) {
  impl_->read_kv(sequence, layer, k_bits, v_bits, k, v);
}

void Executor::drop_file_cache() const {
  kamado::drop_file_cache(impl_->program);
}

void Executor::shrink_experts(uint64_t bytes) {
  if (impl_->stream == nullptr) refuse("the experts are resident");
  impl_->stream->shrink(static_cast<size_t>(bytes));
}

void Executor::delay_reads_for_test(int32_t milliseconds) {
  if (impl_->stream == nullptr) refuse("the experts are resident");
  impl_->stream->delay_reads_for_test(milliseconds);
}

void Executor::swap_slots_for_test(int32_t layer, int32_t a, int32_t b) {
  if (impl_->stream == nullptr) refuse("the experts are resident");
  impl_->stream->swap_slots_for_test(layer, a, b);
}

std::vector<std::pair<std::string, double>> Executor::stats() const {
  const Impl& impl = *impl_;
  const KvUsage usage = impl.kv->usage();
  return {
      {"weight_bytes", static_cast<double>(impl.weights.bytes)},
      {"expert_bytes", static_cast<double>(impl.stream == nullptr ? 0 : impl.stream->total_bytes())},
      {"kv_bytes", static_cast<double>(impl.kv->bytes_used())},
      {"kv_bytes_exact", static_cast<double>(usage.bytes_exact)},
      {"kv_bytes_encoded", static_cast<double>(usage.bytes_encoded)},
      {"kv_pages_shared", static_cast<double>(usage.pages_shared)},
      {"kv_reuse_points", static_cast<double>(usage.reuse_points)},
      {"records_bytes", static_cast<double>(usage.bytes_records)},
      {"scratch_bytes", static_cast<double>(impl.scratch_bytes)},
      {"steps", static_cast<double>(impl.num_steps)},
      {"rows", static_cast<double>(impl.num_rows)},
      {"seconds_total", impl.seconds_total},
      {"seconds_linear", impl.seconds[kTimeLinear]},
      {"seconds_attend", impl.seconds[kTimeAttend]},
      {"seconds_encode", impl.seconds_encode},
      {"seconds_experts", impl.seconds[kTimeExperts]},
      {"seconds_head", impl.seconds[kTimeHead]},
      {"seconds_rows", impl.seconds[kTimeRows]},
  };
}

}  // namespace kamado
