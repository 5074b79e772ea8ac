#include "executor/runner.h"

#include <algorithm>
#include <numeric>

#include "kamado/refuse.h"

namespace kamado {
namespace {

Timed timed(const Node& node) {
  switch (node.kind) {
    case NodeKind::kLinear:
      return node.linear.is_head ? Timed::kHead : Timed::kLinear;
    case NodeKind::kAttend:
      return Timed::kAttend;
    case NodeKind::kExperts:
      return Timed::kExperts;
    case NodeKind::kRecord:
      return Timed::kRecords;
    case NodeKind::kRow:
      break;
  }
  return Timed::kRows;
}

}  // namespace

StepRunner::StepRunner(const LoadedModel& model, const Plan& plan, const ExecutorOptions& options, Sequences& sequences,
                       StepMemory& memory, Team& team)
    : plan_(plan),
      math_(*model.kernels().vector),
      max_rows_(options.max_rows),
      max_logit_rows_(options.max_logit_rows),
      max_tokens_(options.max_kv_tokens),
      sequences_(sequences),
      cache_(sequences.cache()),
      memory_(memory),
      team_(team),
      measures_(model.program(), sequences, step_),
      identity_(memory.max_rows()),
      rows_(model, memory, step_, plan.hidden),
      linear_(model, memory, team),
      attend_(model, plan, sequences, memory, team, step_, measures_),
      experts_(model, memory, team, step_, measures_),
      records_(model, sequences.cache(), memory, team, step_) {
  if (model.stream() != nullptr && !model.program().is_ahead.empty()) ahead_ = AheadControl(options.look_ahead);
  step_.positions.resize(memory.max_rows());
  step_.is_wanted.resize(memory.max_rows());
  score_rows_.reserve(memory.max_rows());
  std::iota(identity_.begin(), identity_.end(), 0);
}

void StepRunner::check_batch(const Executor::Batch& given) const {
  int64_t total = 0;
  for (size_t i = 0; i < given.num_sequences; ++i) {
    const int32_t sequence = given.sequences[i];
    const int64_t cached = cache_.length(sequence);
    if (given.counts[i] < 1) {
      refuse("sequence ", sequence, " has a count of ", given.counts[i]);
    }
    total += given.counts[i];
    if (cached + given.counts[i] > plan_.num_positions) {
      refuse("sequence ", sequence, " would have ", cached + given.counts[i], " tokens, the model has ",
             plan_.num_positions, " positions");
    }
    if (!plan_.is_causal && cached > 0) {
      refuse("sequence ", sequence, " has tokens already, and this model reads a text in one step");
    }
    if (cached + given.counts[i] > max_tokens_) {
      refuse("sequence ", sequence, " would have ", cached + given.counts[i], " tokens, the cache holds ", max_tokens_);
    }
    sequences_.require_sources(sequence);
    for (size_t j = 0; j < i; ++j) {
      if (given.sequences[j] == sequence) refuse("sequence ", sequence, " is listed twice");
    }
  }
  if (static_cast<uint64_t>(total) != given.num_tokens) {
    refuse("the counts sum to ", total, " and there are ", given.num_tokens, " tokens");
  }
  if (total < 1 || total > max_rows_) {
    refuse("a step takes 1 to ", max_rows_, " rows, got ", total);
  }
  for (size_t i = 0; i < given.num_tokens; ++i) {
    if (given.tokens[i] < 0 || given.tokens[i] >= plan_.num_tokens) {
      refuse("token ", given.tokens[i], " is outside the vocabulary of ", plan_.num_tokens);
    }
  }
  if (plan_.vocab_size == 0 && given.num_logit_rows > 0 && !given.wants_hidden) {
    refuse("logits are wanted and the model has no head");
  }
  if (scoring_.targets == nullptr && given.num_logit_rows > static_cast<size_t>(max_logit_rows_)) {
    refuse("logits of ", given.num_logit_rows, " rows are wanted, at most ", max_logit_rows_, " fit");
  }
  for (size_t i = 0; i < given.num_logit_rows; ++i) {
    if (given.logit_rows[i] < 0 || given.logit_rows[i] >= total) {
      refuse("logits of row ", given.logit_rows[i], " are wanted, the step has ", total);
    }
  }
}

const float* StepRunner::step(const Executor::Batch& given, const Executor::Poll& poll) {
  check_batch(given);
  size_t reserved = 0;
  try {
    for (; reserved < given.num_sequences; ++reserved) {
      const int32_t sequence = given.sequences[reserved];
      cache_.reserve(sequence, cache_.length(sequence) + given.counts[reserved]);
    }
    run(given, poll);
  } catch (...) {
    for (size_t i = 0; i < reserved; ++i) cache_.undo(given.sequences[i]);
    throw;
  }
  for (size_t i = 0; i < given.num_sequences; ++i) {
    cache_.commit(given.sequences[i], cache_.length(given.sequences[i]) + given.counts[i]);
  }
  return memory_.shared_floats(given.wants_hidden ? plan_.hidden.offset : plan_.logits.offset);
}

void StepRunner::run(const Executor::Batch& given, const Executor::Poll& poll) {
  int32_t row = 0;
  for (size_t i = 0; i < given.num_sequences; ++i) {
    const auto start = static_cast<int32_t>(cache_.length(given.sequences[i]));
    for (int32_t j = 0; j < given.counts[i]; ++j) step_.positions[static_cast<size_t>(row++)] = start + j;
  }
  std::fill_n(step_.is_wanted.begin(), row, uint8_t{0});
  for (size_t i = 0; i < given.num_logit_rows; ++i) step_.is_wanted[static_cast<size_t>(given.logit_rows[i])] = 1;
  step_.batch = &given;
  step_.number = measures_.times.num_steps();
  step_.looks_ahead = row == 1 && ahead_.is_on();
  attend_.begin_step();
  if (measures_.queries.is_on()) measures_.queries.begin_step();
  team_.reset_counters(0);
  memory_.forget_damage();
  measures_.times.begin();
  try {
    team_.run([](void* context, int32_t thread) { static_cast<StepRunner*>(context)->run_thread(thread); }, this, poll);
  } catch (...) {
    experts_.abandon();
    throw;
  }
  memory_.refuse_damage();
  const double seconds = measures_.times.end(row);
  if (row == 1) ahead_.add(seconds);
}

void StepRunner::run_thread(int32_t thread) {
  const auto num_tokens = static_cast<int32_t>(step_.batch->num_tokens);
  const bool is_one = num_tokens == 1;
  if (plan_.has_main) run_nodes(plan_.main[is_one], {num_tokens, is_one, identity_.data()}, thread);
  const auto num_wanted = static_cast<int32_t>(step_.batch->num_logit_rows);
  for (int32_t begin = 0; begin < num_wanted; begin += max_logit_rows_) {
    const int32_t rows = std::min(max_logit_rows_, num_wanted - begin);
    const Segment segment{rows, rows == 1, step_.batch->logit_rows + begin};
    team_.barrier();
    if (begin > 0 || plan_.has_tail_units) {
      if (thread == 0) begin_segment(segment, begin == 0);
      team_.barrier();
    }
    run_nodes(plan_.tail[is_one][segment.is_one], segment, thread);
    if (scoring_.targets != nullptr) reduce_scores(segment, thread);
  }
}

// What one thread does before each segment of the tail.
void StepRunner::begin_segment(const Segment& segment, bool is_first) {
  if (!is_first) team_.reset_counters(plan_.tail_counters_begin);
  attend_.begin_segment(segment, is_first);
}

void StepRunner::run_nodes(const std::vector<Node>& nodes, const Segment& segment, int32_t thread) {
  Worker& worker = memory_.worker(thread);
  const auto share = [&](int32_t t) { return static_cast<int32_t>(int64_t{segment.num_rows} * t / team_.size()); };
  const int32_t row_begin = segment.is_one ? 0 : share(thread);
  const int32_t row_end = segment.is_one ? 1 : share(thread + 1);
  for (const Node& node : nodes) {
    if (node.has_barrier) team_.barrier();
    team_.check_cancel(thread);
    if (thread == 0) measures_.times.enter(timed(node));
    switch (node.kind) {
      case NodeKind::kRow:
        // All operations on one row, then the next: a row stays in cache.
        for (int32_t row = row_begin; row < row_end; ++row) {
          for (const RowOp& op : node.rows) {
            if (!op.is_ahead || step_.looks_ahead) rows_.run(op, row, segment, worker);
          }
        }
        break;
      case NodeKind::kLinear:
        if (node.linear.is_head && step_.batch->wants_hidden) break;
        if (!node.linear.is_ahead || step_.looks_ahead) linear_.run(node, segment, thread);
        break;
      case NodeKind::kAttend:
        attend_.run(node, thread);
        break;
      case NodeKind::kExperts:
        experts_.run(node, segment, thread);
        break;
      case NodeKind::kRecord:
        records_.run(node.record, thread);
        break;
    }
  }
}

void StepRunner::reduce_scores(const Segment& segment, int32_t thread) {
  team_.barrier();
  for (int32_t i = thread; i < segment.num_rows; i += team_.size()) {
    const float* logits =
        memory_.shared_floats(plan_.logits.offset) + static_cast<size_t>(i) * static_cast<size_t>(plan_.vocab_size);
    const int32_t row = segment.source[i];
    const double total = math_.log_sum_exp(logits, plan_.vocab_size);
    scoring_.out[row] = static_cast<double>(logits[scoring_.targets[row]]) - total;
  }
}

void StepRunner::score(int32_t sequence, const int32_t* tokens, const int32_t* targets, size_t count, double* out,
                       const Executor::Poll& poll) {
  for (size_t i = 0; i < count; ++i) {
    if (targets[i] < -1 || targets[i] >= plan_.vocab_size) {
      refuse("target ", targets[i], " is outside the vocabulary of ", plan_.vocab_size);
    }
  }
  const int64_t start = cache_.length(sequence);
  std::fill_n(out, count, 0.0);
  // What is undone when a later step fails.
  const ReuseHere here(cache_, sequence);
  try {
    const auto max_rows = static_cast<size_t>(max_rows_);
    for (size_t begin = 0; begin < count; begin += max_rows) {
      const auto rows = static_cast<int32_t>(std::min(max_rows, count - begin));
      scoring_ = {targets + begin, out + begin};
      score_rows_.clear();
      for (int32_t i = 0; i < rows; ++i) {
        if (targets[begin + static_cast<size_t>(i)] >= 0) score_rows_.push_back(i);
      }
      const Executor::Batch batch{
          &sequence, &rows, 1, tokens + begin, static_cast<size_t>(rows), score_rows_.data(), score_rows_.size()};
      step(batch, poll);
    }
  } catch (...) {
    scoring_ = {};
    cache_.truncate(sequence, start);
    throw;
  }
  scoring_ = {};
}

}  // namespace kamado
