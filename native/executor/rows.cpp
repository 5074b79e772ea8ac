#include "executor/rows.h"

#include <cmath>
#include <cstring>

namespace kamado {

// The table's row for a row of the step, as the file has it.
void RowWork::read_row(const EmbedOp& embed, int32_t source, uint8_t* out) const {
  const MatrixSpec& table = model_.program().matrices[static_cast<size_t>(embed.table)];
  const int32_t index = embed.index == EmbedIndex::kToken      ? step_.batch->tokens[static_cast<size_t>(source)]
                        : embed.index == EmbedIndex::kPosition ? step_.positions[static_cast<size_t>(source)]
                                                               : 0;
  table.file->read(table.at(index), out, row_bytes(table.layout, table.cols));
}

void RowWork::run(const RowOp& op, int32_t row, const Segment& segment, Worker& worker) const {
  const Program& program = model_.program();
  const VectorKernels& math = *model_.kernels().vector;
  float* out = memory_.floats_at(op.out_at, row, worker);
  const float* a =
      op.in[0] == -1 || op.kind == RowKind::kGather ? nullptr : memory_.floats_at(op.in_at[0], row, worker);
  switch (op.kind) {
    case RowKind::kFetch:
      read_row(std::get<EmbedOp>(*op.op), segment.source[row], reinterpret_cast<uint8_t*>(out));
      break;
    case RowKind::kEmbed: {
      const auto& embed = std::get<EmbedOp>(*op.op);
      const Layout layout = program.matrices[static_cast<size_t>(embed.table)].layout;
      const uint8_t* stored = worker.table_row;
      if (op.in[0] == -1) {
        read_row(embed, segment.source[row], worker.table_row);
      } else {
        stored = memory_.at(op.in_at[0], row, worker) + row_bytes(layout, int64_t{embed.piece} * op.width);
      }
      dequantize_row(layout, stored, out, op.width);
      if (embed.scale != 1) math.scale(out, embed.scale, op.width, out);
      break;
    }
    case RowKind::kNorm: {
      const auto& norm = std::get<NormOp>(*op.op);
      const int32_t group = norm.group > 0 ? norm.group : op.width;
      for (int32_t begin = 0; begin < op.width; begin += group) {
        if (norm.kind == NormKind::kLayer) {
          math.layer_norm(a + begin, model_.vector(norm.weight), model_.vector(norm.bias), group, norm.eps,
                          out + begin);
        } else {
          const auto kernel = norm.kind == NormKind::kL2 ? math.l2_norm : math.rms_norm;
          kernel(a + begin, model_.vector(norm.weight), group, norm.eps, out + begin);
        }
      }
      break;
    }
    case RowKind::kRopeTable: {
      const auto& rope = std::get<RopeOp>(*op.op);
      const double* inv_freq = program.constants[static_cast<size_t>(rope.inv_freq)].data();
      const double position = step_.positions[static_cast<size_t>(segment.source[row])];
      for (int32_t i = 0; i < op.width; ++i) {
        const double angle = position * inv_freq[i];
        out[i] = static_cast<float>(std::cos(angle) * rope.attention_factor);
        out[op.width + i] = static_cast<float>(std::sin(angle) * rope.attention_factor);
      }
      break;
    }
    case RowKind::kRope: {
      const auto& rope = std::get<RopeOp>(*op.op);
      const auto half = static_cast<int32_t>(program.constants[static_cast<size_t>(rope.inv_freq)].size());
      if (out != a) std::memcpy(out, a, static_cast<size_t>(op.width) * sizeof(float));
      const float* table = memory_.floats_at(op.in_at[1], row, worker);
      math.rope(out, op.width / rope.head_dim, rope.head_dim, 2 * half, table, table + half, rope.interleaved);
      break;
    }
    case RowKind::kTemper: {
      const auto& temper = std::get<TemperOp>(*op.op);
      const int64_t position = step_.positions[static_cast<size_t>(segment.source[row])];
      const auto begun = static_cast<double>((position + temper.offset) / temper.length);
      math.scale(a, static_cast<float>(1 + temper.beta * std::log(1 + begun)), op.width, out);
      break;
    }
    case RowKind::kRescale:
      math.scale(a, model_.vector(std::get<RescaleOp>(*op.op).weight)[0], op.width, out);
      break;
    case RowKind::kKernel: {
      const float* in[kMaxRowInputs] = {};
      for (int32_t i = 0; i < kMaxRowInputs; ++i) {
        if (op.in[i] == -1) continue;
        in[i] = memory_.floats_at(op.in_at[i], row, worker);
        if (op.guards != nullptr) memory_.note_damage(in[i], op.in_width[i], op.guards, worker);
      }
      op.kernel(math, *op.op, in, op.width, out);
      break;
    }
    case RowKind::kRoute: {
      const auto& route_op = std::get<RouteOp>(*op.op);
      router_.route(route_op, a, reinterpret_cast<uint8_t*>(out), worker);
      break;
    }
    case RowKind::kPredict:
      // One row only (see run): all threads are here, the one that talks to the stream does it.
      if (memory_.is_first(worker)) {
        router_.predict(std::get<PredictOp>(*op.op), a, reinterpret_cast<uint8_t*>(out), worker);
      }
      break;
    case RowKind::kOutput:
      // One row is in every thread's own memory; one of them hands it out.
      memory_.note_damage(a, op.width, "a row of the result", worker);
      if (step_.batch->wants_hidden && (!segment.is_one || memory_.is_first(worker))) {
        std::memcpy(memory_.floats_at(hidden_, row, worker), a, hidden_.stride);
      }
      break;
    case RowKind::kQuantize:
      if (op.act != ActKind::kF32) memory_.note_damage(a, op.width, "an activation", worker);  // NaN would become 0
      model_.kernels().linear->quantize(op.act, a, op.width, reinterpret_cast<uint8_t*>(out));
      break;
    case RowKind::kGather:
      std::memcpy(out, memory_.at(op.in_at[0], segment.source[row], worker), static_cast<size_t>(op.width));
      break;
  }
}

}  // namespace kamado
