// The executor's parts, each of which knows only those before it that it needs:
//
//   plan       what a step does, in which order                       plan.h, made from the program by fuse.h
//   team       threads: sharing out, meeting, being stopped           team.h
//   sequences  what sequences keep from step to step                  sequences.h, over kamado/state.h
//   memory     what a step writes                                     memory.h
//   model      what is loaded: weights, streamed experts              loaded.h, over weights.h and kamado/experts.h
//   runner     a step: rows.h, linear.h, attend.h, experts.h, records.h do the nodes; measure.h and times.h look on
#pragma once
#include "executor/loaded.h"
#include "executor/memory.h"
#include "executor/plan.h"
#include "executor/runner.h"
#include "executor/sequences.h"
#include "executor/team.h"
#include "kamado/executor.h"
#include "kamado/tables.h"

namespace kamado {

struct Executor::Impl {
  Impl(Program given, const ExecutorOptions& given_options, const Progress& progress);

  ExpertStream& streamed() const;  // throws std::invalid_argument when the experts are resident

  const ExecutorOptions options;
  const Program program;
  const KernelTable& kernels;
  const Plan plan;
  Team team;
  Sequences sequences;
  StepMemory memory;
  const LoadedModel model;
  StepRunner runner;
};

}  // namespace kamado
