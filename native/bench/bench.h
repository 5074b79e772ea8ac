// What the native benchmarks share: processor time of one thread, medians, and the limits of a tier.
#pragma once
#include <algorithm>
#include <cstring>
#include <ctime>
#include <vector>

#include "kamado/limits.h"

namespace kamado {

// Seconds of this thread's processor time.
inline double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Of five calls.
template <class Fn>
double median_seconds(Fn fn) {
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    const double start = now();
    fn();
    times.push_back(now() - start);
  }
  std::sort(times.begin(), times.end());
  return times[2];
}

inline const LimitKernels* limits_of(const char* tier) {
  if (std::strcmp(tier, "avx512") == 0) return limit_kernels_avx512();
  return std::strcmp(tier, "avx2") == 0 ? limit_kernels_avx2() : limit_kernels_ref();
}

}  // namespace kamado
