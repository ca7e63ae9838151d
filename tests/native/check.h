// A test frame: TEST(name) { CHECK(...); }, and RUN_TESTS() once per program. Checks hold with NDEBUG, too.
#pragma once
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

inline void check(bool ok, const char* file, int line, const std::string& what) {
  if (ok) return;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  ++failures();
}

#define TEST(name)                                                            \
  static void name();                                                         \
  static const bool name##_listed = (tests().push_back({#name, name}), true); \
  static void name()

#define CHECK(condition) check((condition), __FILE__, __LINE__, #condition)

// `expression` throws a `type` whose message contains `part`.
#define CHECK_THROWS(type, part, expression)                                                      \
  do {                                                                                            \
    std::string got_ = "nothing was thrown";                                                      \
    bool thrown_ = false;                                                                         \
    try {                                                                                         \
      (void)(expression);                                                                         \
    } catch (const type& e) {                                                                     \
      thrown_ = true;                                                                             \
      got_ = e.what();                                                                            \
    }                                                                                             \
    check(thrown_ && got_.find(part) != std::string::npos, __FILE__, __LINE__,                    \
          std::string(#expression) + ": expected " #type " with '" + (part) + "', got: " + got_); \
  } while (false)

inline int run_tests() {
  for (const Test& test : tests()) {
    int before = failures();
    try {
      test.run();
    } catch (const std::exception& e) { check(false, test.name, 0, std::string("threw ") + e.what()); }
    std::printf("%s %s\n", failures() == before ? "ok  " : "FAIL", test.name);
  }
  return failures() == 0 && !tests().empty() ? 0 : 1;
}

#define RUN_TESTS() \
  int main() { return run_tests(); }
