// How many threads make sense here.
#pragma once
#include <cstdint>

namespace kamado {

// Processors that this process may use: affinity and the cgroup's quota, at least 1.
int32_t available_cpus();

}  // namespace kamado
