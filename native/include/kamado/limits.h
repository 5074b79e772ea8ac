// What this machine can do at most: the figures that `kamado bench --limits` prints and every speed is held against.
// Each call starts its own threads and runs for about the given time; take it when the machine is otherwise idle.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kamado {

// Bytes a second that num_threads threads read together from one buffer of `megabytes` MiB (huge pages where the system
// gives them), each its own share again and again. Choose it several times the last-level cache to measure memory.
double measure_bandwidth(int32_t num_threads, int64_t megabytes, double seconds);

// Operations a second (a multiply-add is two) of 8-bit integer dot products on data in the first-level cache, with the
// instructions of the active tier.
double measure_int8(int32_t num_threads, double seconds);

// The same for 32-bit float multiply-adds in registers.
double measure_f32(int32_t num_threads, double seconds);

// The loops, one table a tier. Results mean nothing; they are returned so that the work cannot be left out.
struct LimitKernels {
  uint64_t (*read)(const uint8_t* data, size_t bytes);                     // data 64-byte aligned, bytes % 1024 == 0
  int32_t (*int8_dot)(const uint8_t* a, const int8_t* b, int64_t rounds);  // 4 rows of a with 2 of b, kDotBytes each
  float (*multiply_add)(int64_t rounds);                                   // kFmaPerRound multiply-adds a round
};

constexpr size_t kDotBytes = 1024;  // bytes of a row; six rows stay in the first-level cache
constexpr int64_t kFmaPerRound = 4096;

const LimitKernels* limit_kernels_ref();
const LimitKernels* limit_kernels_avx2();
const LimitKernels* limit_kernels_avx512();

}  // namespace kamado
