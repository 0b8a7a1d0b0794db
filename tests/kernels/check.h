// A minimal test harness: CHECK counts failures, each test is registered by its
// file and run from main.cpp.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "common/cpu_level.h"
#include "common/parallel_for.h"

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

inline soho::ParallelFor parts(int num_parts) {
  return [=](int64_t total, int64_t, const std::function<void(int64_t, int64_t)>& body) {
    in_parts(total, num_parts, body);
  };
}

// Those of the build that this machine runs.
inline std::vector<soho::CpuLevel> available_cpu_levels() {
  std::vector<soho::CpuLevel> levels = soho::built_cpu_levels();
  std::erase_if(levels, [](soho::CpuLevel level) { return !soho::cpu_level_available(level); });
  return levels;
}

inline std::vector<float> normal(int64_t size, unsigned seed, float scale = 1.0f, float offset = 0.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(size);
  for (float& value : values) value = distribution(engine) * scale + offset;
  return values;
}

void test_codebook_lookup();
void test_codebook_update();
void test_encoder();
void test_group_mask();
void test_residual_lookup();
