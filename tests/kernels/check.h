// A minimal test harness: CHECK counts failures, each test is registered by its
// file and run from main.cpp.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

inline int& num_failures() {
  static int count = 0;
  return count;
}

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      ++num_failures();                                                   \
    }                                                                     \
  } while (false)

// Runs `body` on [0, total) cut into `num_parts` ranges, each on its own
// thread.
inline void in_parts(int64_t total, int num_parts, const std::function<void(int64_t, int64_t)>& body) {
  std::vector<std::thread> threads;
  for (int part = 0; part < num_parts; ++part) {
    threads.emplace_back([=, &body] { body(total * part / num_parts, total * (part + 1) / num_parts); });
  }
  for (std::thread& thread : threads) thread.join();
}

void test_codebook_lookup();
void test_codebook_update();
void test_group_mask();
void test_residual_lookup();
