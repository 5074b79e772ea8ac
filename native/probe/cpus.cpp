#include "kamado/cpus.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace kamado {
namespace {

int32_t affinity_cpus() {
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  return std::max<int32_t>(1, static_cast<int32_t>(std::thread::hardware_concurrency()));
}

// Processors of a quota; 0 when there is none. A part of one counts as one.
int32_t quota_cpus(double quota, double period) {
  if (!(quota > 0) || !(period > 0)) return 0;
  return std::max<int32_t>(1, static_cast<int32_t>(std::min(std::ceil(quota / period), 1e6)));
}

int32_t read_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max") return 0;
  return quota_cpus(std::atof(quota.c_str()), period);
}

int32_t read_v1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (!(quota_file >> quota) || !(period_file >> period)) return 0;
  return quota_cpus(quota, period);
}

}  // namespace

int32_t available_cpus() {
  int32_t cpus = affinity_cpus();
  const auto limit = [&cpus](int32_t quota) {
    if (quota > 0) cpus = std::min(cpus, quota);
  };
  // Each line is "id:controllers:path"; every enclosing group's quota counts. In a container the path may not exist
  // below the mount: the mount's own root, which the loop ends with, is the container's group then.
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool is_v2 = controllers.empty();
    if (!is_v2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    const std::string mount = is_v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    while (true) {
      if (path == "/") path.clear();
      limit(is_v2 ? read_v2(mount + path) : read_v1(mount + path));
      if (path.empty()) break;
      const size_t slash = path.rfind('/');
      path = path.substr(0, slash == std::string::npos ? 0 : slash);
    }
  }
  return cpus;
}

}  // namespace kamado
