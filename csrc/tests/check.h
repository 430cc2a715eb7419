// A test is a program that returns 0; CHECK says where and why it does not.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition, ...)                                                      \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                           \
      std::fputc('\n', stderr);                                                    \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)
