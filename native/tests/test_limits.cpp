// The limit measurements run, give something, and refuse nonsense. How fast the machine is, is no test's business.
#include <stdexcept>

#include "check.h"
#include "kamado/limits.h"

namespace {

template <class Fn>
bool refuses(Fn fn) {
  try {
    (void)fn();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  using namespace kamado;
  for (const int32_t threads : {1, 2}) {
    CHECK(measure_bandwidth(threads, 8, 0.001) > 0);
    CHECK(measure_int8(threads, 0.001) > 0);
    CHECK(measure_f32(threads, 0.001) > 0);
  }
  CHECK(refuses([] { return measure_bandwidth(0, 8, 0.001); }));
  CHECK(refuses([] { return measure_bandwidth(1, 0, 0.001); }));
  CHECK(refuses([] { return measure_bandwidth(8, 8, 0.001); }));  // less than a huge page a thread
  CHECK(refuses([] { return measure_int8(1, 0.0); }));
  CHECK(refuses([] { return measure_f32(1, -1.0); }));
  return kamado::test::finish();
}
