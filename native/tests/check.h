// Tiny test support: CHECK counts, skip() tells, finish() prints the totals and gives the exit code.
#pragma once
#include <cstdio>
#include <string>

namespace kamado::test {

struct Totals {
  int passed = 0, failed = 0, skipped = 0;
};

inline Totals& totals() {
  static Totals t;
  return t;
}

inline bool check(bool ok, const char* file, int line, const std::string& what) {
  if (ok) {
    ++totals().passed;
  } else if (++totals().failed <= 50) {
    std::printf("%s:%d: FAILED: %s\n", file, line, what.c_str());
  }
  return ok;
}

inline void skip(const std::string& what) {
  ++totals().skipped;
  std::printf("skipped: %s\n", what.c_str());
}

// Whether a call throws what is expected.
template <class Exception, class Fn>
bool throws(Fn fn) {
  try {
    fn();
  } catch (const Exception&) {
    return true;
  }
  return false;
}

inline int finish() {
  std::printf("%d passed, %d failed, %d skipped\n", totals().passed, totals().failed, totals().skipped);
  return totals().failed == 0 ? 0 : 1;
}

}  // namespace kamado::test

#define CHECK(condition) ::kamado::test::check((condition), __FILE__, __LINE__, #condition)
// As CHECK, with a text that says which case it was.
#define CHECK_MSG(condition, text) ::kamado::test::check((condition), __FILE__, __LINE__, (text))
