// ELA_CHECK: programmer errors end the process with the place and the values; users' errors are
// absl::Status.
#pragma once

#include <cstdio>
#include <cstdlib>

#define ELA_CHECK(condition, ...)                                                      \
  do {                                                                                 \
    if (!(condition)) [[unlikely]] {                                                   \
      std::fprintf(stderr, "%s:%d: check failed: %s", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, " " __VA_ARGS__);                                           \
      std::fputc('\n', stderr);                                                        \
      std::abort();                                                                    \
    }                                                                                  \
  } while (false)
