// What a warp does together: shuffles, votes, and the matrix instructions with the fragments of the PTX manual.
#pragma once

#include "device_words.h"
#include "execution.h"

namespace soho_model {

inline unsigned lane_id() { return thread_rank() % kWarpSize; }

// Each lane brings a value and takes one made of all; Make(mask, values, lane).
template <class T, class R, class Make>
R exchange(const char* call, uint32_t mask, T value, Site site, Make make) {
  struct Brought {
    T value;
    R result;
    Make make;
  } brought{value, R{}, make};
  meet_in_warp(
      call, mask, &brought,
      [](uint32_t present, void* const* all) {
        T values[kWarpSize]{};
        for (unsigned lane = 0; lane < kWarpSize; ++lane) {
          if (present >> lane & 1) values[lane] = static_cast<Brought*>(all[lane])->value;
        }
        for (unsigned lane = 0; lane < kWarpSize; ++lane) {
          if (present >> lane & 1) {
            Brought& own = *static_cast<Brought*>(all[lane]);
            own.result = own.make(present, values, lane);
          }
        }
      },
      site);
  return brought.result;
}

// What a shuffle reads from a lane that takes no part is undefined: another value each time.
template <class T>
T shuffled(uint32_t present, const T* values, unsigned lane, int source, unsigned width) {
  const unsigned first = lane & ~(width - 1);
  if (source < static_cast<int>(first) || source >= static_cast<int>(first + width)) return values[lane];
  if (present >> source & 1) return values[source];
  const uint64_t garbage = random_bits();
  T value;
  std::memcpy(&value, &garbage, sizeof(T));
  return value;
}

}  // namespace soho_model

inline void __syncwarp(unsigned mask = 0xffffffffu, soho_model::Site site = soho_model::Site::current()) {
  soho_model::meet_in_warp("__syncwarp", mask, nullptr, nullptr, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<T, T>("__shfl_sync", mask, value, site,
                                    [=](uint32_t present, const T* values, unsigned lane) {
                                      const unsigned from = (lane & ~(width - 1)) | (source & (width - 1));
                                      return soho_model::shuffled(present, values, lane, from, width);
                                    });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<T, T>("__shfl_up_sync", mask, value, site,
                                    [=](uint32_t present, const T* values, unsigned lane) {
                                      return soho_model::shuffled(present, values, lane, lane - delta, width);
                                    });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<T, T>("__shfl_down_sync", mask, value, site,
                                    [=](uint32_t present, const T* values, unsigned lane) {
                                      return soho_model::shuffled(present, values, lane, lane + delta, width);
                                    });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<T, T>("__shfl_xor_sync", mask, value, site,
                                    [=](uint32_t present, const T* values, unsigned lane) {
                                      return soho_model::shuffled(present, values, lane, lane ^ lanes, width);
                                    });
}

inline unsigned __ballot_sync(unsigned mask, int predicate, soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<int, unsigned>("__ballot_sync", mask, predicate, site,
                                             [](uint32_t present, const int* values, unsigned) {
                                               unsigned votes = 0;
                                               for (unsigned lane = 0; lane < 32; ++lane)
                                                 votes |= unsigned{(present >> lane & 1) && values[lane]} << lane;
                                               return votes;
                                             });
}
inline int __any_sync(unsigned mask, int predicate, soho_model::Site site = soho_model::Site::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, soho_model::Site site = soho_model::Site::current()) {
  return __ballot_sync(mask, !predicate, site) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, soho_model::Site site = soho_model::Site::current()) {
  return soho_model::exchange<T, unsigned>(
      "__match_any_sync", mask, value, site, [](uint32_t present, const T* values, unsigned own) {
        unsigned same = 0;
        for (unsigned lane = 0; lane < 32; ++lane)
          same |= unsigned{(present >> lane & 1) && values[lane] == values[own]} << lane;
        return same;
      });
}

#define SOHO_MODEL_REDUCE(name, expression)                                                                           \
  template <class T>                                                                                                  \
  T name(unsigned mask, T value, soho_model::Site site = soho_model::Site::current()) {                               \
    return soho_model::exchange<T, T>(#name, mask, value, site, [](uint32_t present, const T* values, unsigned own) { \
      T a = values[own];                                                                                              \
      for (unsigned lane = 0; lane < 32; ++lane) {                                                                    \
        const T b = values[lane];                                                                                     \
        if (lane != own && (present >> lane & 1)) a = static_cast<T>(expression);                                     \
      }                                                                                                               \
      return a;                                                                                                       \
    });                                                                                                               \
  }
SOHO_MODEL_REDUCE(__reduce_add_sync, a + b)
SOHO_MODEL_REDUCE(__reduce_min_sync, std::min(a, b))
SOHO_MODEL_REDUCE(__reduce_max_sync, std::max(a, b))
SOHO_MODEL_REDUCE(__reduce_or_sync, a | b)
SOHO_MODEL_REDUCE(__reduce_and_sync, a& b)
#undef SOHO_MODEL_REDUCE

namespace soho_model {

// c + the sum of 16 exact products, as one of several machines makes it; see matrix.cpp.
float add_products(float c, const double (&products)[16]);

void multiply_fragments(const char* call, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        float (*widen)(uint16_t), const Site& site);
void load_fragments(const char* call, uint32_t* out, int num_matrices, bool transposed, const void* row,
                    const Site& site);

}  // namespace soho_model

namespace soho {

inline void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         soho_model::Site site = soho_model::Site::current()) {
  soho_model::multiply_fragments("mma_bfloat16", c, a, b, widen_bfloat16, site);
}
inline void mma_float16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        soho_model::Site site = soho_model::Site::current()) {
  soho_model::multiply_fragments("mma_float16", c, a, b, widen_float16, site);
}
inline void ldmatrix_x4(uint32_t (&out)[4], const void* shared_row,
                        soho_model::Site site = soho_model::Site::current()) {
  soho_model::load_fragments("ldmatrix_x4", out, 4, false, shared_row, site);
}
inline void ldmatrix_x4_transposed(uint32_t (&out)[4], const void* shared_row,
                                   soho_model::Site site = soho_model::Site::current()) {
  soho_model::load_fragments("ldmatrix_x4_transposed", out, 4, true, shared_row, site);
}
inline void ldmatrix_x2(uint32_t (&out)[2], const void* shared_row,
                        soho_model::Site site = soho_model::Site::current()) {
  soho_model::load_fragments("ldmatrix_x2", out, 2, false, shared_row, site);
}

}  // namespace soho
