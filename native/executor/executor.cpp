// The executor's calls: each goes to the part that does it (impl.h).
#include "kamado/executor.h"

#include "executor/impl.h"
#include "executor/tile.h"
#include "kamado/refuse.h"

namespace kamado {
namespace {

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

}  // namespace

Executor::Impl::Impl(Program given, const ExecutorOptions& given_options, const Progress& progress)
    : options(checked(given_options)),
      program(prepared(std::move(given), options)),
      kernels(table_for(options.tier)),
      plan(make_plan(program, options.num_threads, options.max_rows, options.max_logit_rows)),
      team(options.num_threads, plan.num_counters),
      sequences(program, options),
      memory(program, plan, options, sequences.codecs(), *kernels.vector),
      model(program, kernels, options, team.pool(), progress),
      runner(model, plan, options, sequences, memory, team) {}

Executor::Executor(Program program, const ExecutorOptions& options, const Progress& progress)
    : impl_(std::make_unique<Impl>(std::move(program), options, progress)) {}

Executor::~Executor() = default;

const char* Executor::tier() const {
  return impl_->kernels.tier;
}
int32_t Executor::num_threads() const {
  return impl_->team.size();
}
int32_t Executor::vocab_size() const {
  return impl_->plan.vocab_size > 0 ? impl_->plan.vocab_size : impl_->plan.num_tokens;
}
int32_t Executor::hidden_width() const {
  return impl_->plan.hidden_width;
}

StateCache& Executor::state() const {
  return impl_->sequences.cache();
}

int64_t Executor::num_pages() const {
  return impl_->sequences.num_pages();
}

int64_t Executor::num_free_pages() const {
  return impl_->sequences.num_free_pages();
}

bool Executor::reserve(int32_t sequence, int64_t num_tokens) {
  return impl_->sequences.reserve(sequence, num_tokens);
}

Executor::SourceShape Executor::source_shape(int32_t state) const {
  const KvLayerShape& shape = impl_->sequences.source_shape(state);
  return {shape.num_kv_heads * shape.k_dim, shape.num_kv_heads * shape.v_dim, shape.source_tokens};
}

void Executor::set_source(int32_t sequence, int32_t state, const float* k, const float* v, int64_t num_tokens) {
  impl_->sequences.set_source(impl_->kernels, sequence, state, k, v, num_tokens);
}

size_t Executor::tail_bytes(int64_t num_tokens) const {
  return impl_->sequences.tail_bytes(num_tokens);
}

size_t Executor::export_pages_bytes(int32_t sequence, int64_t first_page, int64_t last_page) const {
  return impl_->sequences.export_pages_bytes(sequence, first_page, last_page);
}

void Executor::export_pages(int32_t sequence, int64_t first_page, int64_t last_page, uint8_t* out) const {
  state().export_pages(sequence, first_page, last_page, out);
}

size_t Executor::export_tail_bytes(int32_t sequence, int64_t num_tokens) const {
  return impl_->sequences.export_tail_bytes(sequence, num_tokens);
}

void Executor::export_tail(int32_t sequence, int64_t num_tokens, uint8_t* out) {
  state().export_tail(sequence, num_tokens, out);
}

int32_t Executor::begin_import(int64_t num_tokens) {
  return impl_->sequences.begin_import(num_tokens);
}

void Executor::import_pages(int32_t sequence, int64_t first_page, int64_t last_page, const uint8_t* pages,
                            size_t num_bytes) {
  impl_->sequences.import_pages(sequence, first_page, last_page, pages, num_bytes);
}

void Executor::import_tail(int32_t sequence, const uint8_t* tail, size_t num_bytes) {
  impl_->sequences.import_tail(sequence, tail, num_bytes);
}

const float* Executor::step(const Batch& batch, const Poll& poll) {
  return impl_->runner.step(batch, poll);
}

void Executor::score(int32_t sequence, const int32_t* tokens, const int32_t* targets, size_t count, double* out,
                     const Poll& poll) {
  impl_->runner.score(sequence, tokens, targets, count, out, poll);
}

void Executor::tile_kv(int32_t sequence, int64_t num_tokens) {
  kamado::tile_kv(impl_->sequences, *impl_->kernels.kv_codec, impl_->memory.worker(0).scratch, sequence, num_tokens);
}

void Executor::cancel() {
  impl_->team.cancel();
}

ExpertLedger Executor::ledger() const {
  const Impl& impl = *impl_;
  ExpertLedger ledger;
  ledger.is_resident = impl.model.stream() == nullptr;
  if (ledger.is_resident) {
    ledger.layers = impl_->runner.measures().resident_experts;
    return ledger;
  }
  const ExpertStream& stream = *impl.model.stream();
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
  impl_->runner.measures().routing.enable(is_enabled);
}

std::vector<int32_t> Executor::take_routing() {
  return impl_->runner.measures().routing.take();
}

int32_t Executor::routing_columns() const {
  return impl_->runner.measures().routing.columns();
}

void Executor::record_queries(int32_t stride) {
  impl_->runner.measures().queries.start(stride);
}

const RecordedQueries& Executor::recorded_queries(int32_t layer) const {
  return impl_->runner.measures().queries.of_layer(layer);
}

Executor::KvShape Executor::kv_shape(int32_t sequence, int32_t layer, int32_t k_bits, int32_t v_bits) const {
  return kamado::kv_shape(impl_->sequences, sequence, layer, k_bits, v_bits);
}

void Executor::read_kv(int32_t sequence, int32_t layer, int32_t k_bits, int32_t v_bits, float* k, float* v) {
  kamado::read_kv(impl_->sequences, impl_->kernels, impl_->team.pool(), sequence, layer, k_bits, v_bits, k, v);
}

void Executor::drop_file_cache() const {
  kamado::drop_file_cache(impl_->program);
}

// The stream, of an executor that has one.
ExpertStream& Executor::Impl::streamed() const {
  if (model.stream() == nullptr) refuse("the experts are resident");
  return *model.stream();
}

void Executor::shrink_experts(uint64_t bytes) {
  impl_->streamed().shrink(static_cast<size_t>(bytes));
}

void Executor::delay_reads_for_test(int32_t milliseconds) {
  impl_->streamed().delay_reads_for_test(milliseconds);
}

void Executor::swap_slots_for_test(int32_t layer, int32_t a, int32_t b) {
  impl_->streamed().swap_slots_for_test(layer, a, b);
}

std::vector<std::pair<std::string, double>> Executor::stats() const {
  const Impl& impl = *impl_;
  const ExpertStream* stream = impl.model.stream();
  const StepTimes& times = impl_->runner.measures().times;
  const KvUsage usage = state().usage();
  return {
      {"weight_bytes", static_cast<double>(impl.model.weight_bytes())},
      {"expert_bytes", static_cast<double>(stream == nullptr ? 0 : stream->total_bytes())},
      {"kv_bytes", static_cast<double>(state().bytes_used())},
      {"kv_bytes_exact", static_cast<double>(usage.bytes_exact)},
      {"kv_bytes_encoded", static_cast<double>(usage.bytes_encoded)},
      {"kv_pages_shared", static_cast<double>(usage.pages_shared)},
      {"kv_reuse_points", static_cast<double>(usage.reuse_points)},
      {"kv_points_given_up", static_cast<double>(usage.points_given_up)},
      {"records_used", static_cast<double>(usage.records_used)},
      {"records_free", static_cast<double>(state().records_free())},
      {"records_bytes", static_cast<double>(usage.bytes_records)},
      {"scratch_bytes", static_cast<double>(impl.memory.bytes())},
      {"steps", static_cast<double>(times.num_steps())},
      {"rows", static_cast<double>(times.num_rows())},
      {"seconds_total", times.total()},
      {"seconds_linear", times.seconds(Timed::kLinear)},
      {"seconds_attend", times.seconds(Timed::kAttend)},
      {"seconds_encode", times.encode()},
      {"seconds_experts", times.seconds(Timed::kExperts)},
      {"seconds_records", times.seconds(Timed::kRecords)},
      {"seconds_head", times.seconds(Timed::kHead)},
      {"seconds_rows", times.seconds(Timed::kRows)},
  };
}

}  // namespace kamado
