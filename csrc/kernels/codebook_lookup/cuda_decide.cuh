// The float64 end of the lookup: between the candidates of a row, or between all codes where they do not fit its list.
//
// Eight lanes evaluate one distance, lane l the partial sum l of codebook_lookup.h; a warp compares four codes at once.
//
// compare_all takes float32 first, of which a card does up to 64 times as many operations, and float64 for the codes
// that are not clearly farther than the nearest so far. The float32 distance s of a code at the distance d, of C
// channels, is a sum of squared differences in eight parts. A difference is rounded once, which counts twice in its
// square; a square passes through at most C/8 + 1 sums of its part (fused, so that it is not rounded itself) and three
// of parts. No term is negative, so (1 - u)^n d - t <= s <= (1 + u)^n d + t with u = 2^-24, n = C/8 + 6, and t =
// (C + 3) 2^-150 for squares that vanish. Let m be the smallest s of a row so far. A code with
//   s > far_from(m) = max(m (1 + 4 (C/8 + 12) u), 2^-78)
// is farther than that of m: the distances differ by a factor of ((1 - u) / (1 + u))^n (1 + 4 (n + 6) u) or more, which
// exceeds 1 while n u <= 0.5 (C up to 2^26). 24 u are to spare for the rounding of far_from, for t, at most 2^-45 of
// 2^-78, and for the roundings of float64. An s that overflows is above the largest float32, and so is (1 + u)^n d;
// where far_from overflows, and with more channels, no code is dropped. So neither is the nearest, nor one as near.
#pragma once

#include "kernels/codebook_lookup/cuda_screen.cuh"

namespace soho {
namespace {

constexpr int kSums = 8;               // lanes of one distance
constexpr int kPairs = kWarp / kSums;  // distances of a warp at a time
constexpr int kRowsOfItem = 4;         // undecided rows that go through the codes together
constexpr int kBlockDistances = kBlockThreads / kSums;

// Arrays of all codebooks of the slab, one after the other; blocks' z is the codebook.
struct DecideArgs {
  CodebookLookupArgs lookup;  // num_rows are those of each codebook
  CudaCodes codes;
  CudaRows rows;
  CudaLists lists;
  int32_t num_ranges;
  uint32_t* num_undecided;  // (books,)
  int32_t* undecided;       // (books, book_rows): rows of the codebook, in any order
  double* part_distance;    // of kRowsOfItem rows per item of compare_all: the smallest of its part of the codes
  int32_t* part_code;
  int64_t book_parts;          // of part_distance and part_code
  unsigned long long* counts;  // (2,) or null: adds the rows compared in float64 and those of them left to compare_all
};

__device__ __forceinline__ DecideArgs decide_args_of_book(DecideArgs args, unsigned book) {
  const int64_t first = book * args.lookup.num_rows, padded_first = book * args.rows.book_rows;
  args.lookup.features = static_cast<const char*>(args.lookup.features) +
                         first * args.lookup.row_stride * (args.lookup.features_type == Element::kFloat32 ? 4 : 2);
  args.lookup.codebook += book * args.lookup.num_codes * args.lookup.num_channels;
  args.lookup.index += first;
  if (args.lookup.distance != nullptr) args.lookup.distance += first;
  args.codes = codes_of_book(args.codes, book);
  args.rows.window += padded_first;
  args.lists.best += padded_first * args.num_ranges;
  args.lists.count += padded_first * args.num_ranges;
  args.lists.position += padded_first * args.num_ranges * kListSize;
  args.lists.score += padded_first * args.num_ranges * kListSize;
  args.num_undecided += book;
  args.undecided += padded_first;
  args.part_distance += book * args.book_parts;
  args.part_code += book * args.book_parts;
  return args;
}

// The defined distance of a row and a code, in all lanes of a group of eight. Unrolled it takes more registers.
template <Element type, int unrolled = 4>
__device__ __forceinline__ double squared_distance(const void* row, const float* code, int64_t num_channels,
                                                   int sum_lane) {
  double sum = 0.0;
#pragma unroll unrolled
  for (int64_t c = sum_lane; c < num_channels; c += kSums) {
    const double difference = __dsub_rn(static_cast<double>(load_value<type>(row, c)), static_cast<double>(code[c]));
    sum = __dadd_rn(sum, __dmul_rn(difference, difference));
  }
  for (int step = kSums / 2; step > 0; step /= 2) sum = __dadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, step));
  return sum;
}

struct Nearest {
  double distance;
  int32_t code;
  __device__ __forceinline__ void update(double other_distance, int32_t other_code) {
    if (other_distance < distance || (other_distance == distance && other_code < code)) {
      distance = other_distance;
      code = other_code;
    }
  }
};

__device__ __forceinline__ int set_bit(uint32_t bits,
                                       int which) {  // position of the which-th, -1 where there are fewer
  for (; which > 0; --which) bits &= bits - 1;
  return __ffs(static_cast<int>(bits)) - 1;
}

// One warp for each row.
template <Element type>
__global__ void __launch_bounds__(kBlockThreads, 3) decide(DecideArgs slab) {
  const DecideArgs args = decide_args_of_book(slab, blockIdx.z);
  const int lane = threadIdx.x % kWarp, sum_lane = lane % kSums, pair = lane / kSums;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockWarps + threadIdx.x / kWarp;
  if (i >= args.rows.num_rows) return;
  const CodebookLookupArgs& lookup = args.lookup;
  const void* row = row_on_device<type>(lookup.features, i, lookup.row_stride);
  const float window = args.rows.window[i];
  const bool screened = finite_bits(window);
  Nearest nearest{INFINITY, 0};

  float best = -INFINITY;
  bool fits = true;
  for (int range = lane; screened && range < args.num_ranges; range += kWarp) {
    const int64_t item = range * args.rows.book_rows + i;
    best = fmaxf(best, args.lists.best[item]);
    fits &= args.lists.count[item] >= 0;
  }
  best = warp_max(best);
  fits = __all_sync(kAllLanes, fits);
  if (window == INFINITY || !fits) {
    if (lane == 0) args.undecided[atomicAdd(args.num_undecided, 1u)] = static_cast<int32_t>(i);
    return;
  }
  if (screened) {
    const float threshold = best - window;
    const int num_entries = args.num_ranges * kListSize;
    int num_candidates = 0;
    bool measured = false;
    for (int first = 0; first < num_entries; first += kWarp) {
      const int entry = first + lane;
      const int64_t item = (entry / kListSize) * args.rows.book_rows + i;
      const bool listed = entry < num_entries && entry % kListSize < args.lists.count[item];
      const bool is_candidate = listed && args.lists.score[item * kListSize + entry % kListSize] >= threshold;
      const int32_t code = is_candidate ? args.lists.position[item * kListSize + entry % kListSize] : 0;
      uint32_t candidates = __ballot_sync(kAllLanes, is_candidate);
      num_candidates += __popc(candidates);
      while (candidates != 0) {
        const int source = set_bit(candidates, pair);
        const int32_t chosen =
            __shfl_sync(kAllLanes, code, source < 0 ? __ffs(static_cast<int>(candidates)) - 1 : source);
        // A single candidate needs no distance; whether more follow is known in the last round only.
        const bool single = num_candidates == 1 && first + kWarp >= num_entries;
        double distance = 0.0;
        if (!single) {
          const float* content = lookup.codebook + static_cast<int64_t>(chosen) * lookup.num_channels;
          distance = squared_distance<type>(row, content, lookup.num_channels, sum_lane);
          measured = true;
        }
        nearest.update(distance, chosen);
        for (int n = 0; n < kPairs; ++n) candidates &= candidates - 1;
      }
    }
    for (int step = kSums; step < kWarp; step *= 2) {
      const double distance = __shfl_xor_sync(kAllLanes, nearest.distance, step);
      const int32_t code = __shfl_xor_sync(kAllLanes, nearest.code, step);
      nearest.update(distance, code);
    }
    if (measured && num_candidates > 1 && lane == 0 && args.counts != nullptr) atomicAdd(args.counts, 1ull);
  }
  if (lane == 0) lookup.index[i] = nearest.code;
  if (lookup.distance == nullptr) return;
  const float* content = lookup.codebook + static_cast<int64_t>(nearest.code) * lookup.num_channels;
  const double distance = squared_distance<type>(row, content, lookup.num_channels, sum_lane);
  if (lane == 0) lookup.distance[i] = static_cast<float>(distance);
}

// How compare_all cuts its work: items of four undecided rows and one part of the codes, as many parts as keep the grid
// busy. Item group * num_parts + part.
struct Items {
  int64_t num_groups, num_parts;
};
__device__ __forceinline__ Items items_of(uint32_t num_undecided, int num_blocks) {
  const int64_t groups = (static_cast<int64_t>(num_undecided) + kRowsOfItem - 1) / kRowsOfItem;
  return {groups, groups == 0 || groups >= num_blocks ? 1 : num_blocks / groups};
}

// The largest float32 distance of a code that may be as near as one at the float32 distance `smallest`.
__device__ __forceinline__ float far_from(float smallest, int64_t num_channels) {
  const float limit = smallest * (1.0f + (static_cast<float>(num_channels) / 8 + 12) * 0x1p-22f);
  return num_channels > (int64_t{1} << 26) ? INFINITY : fmaxf(limit, 0x1p-78f);
}

template <Element type>
__global__ void __launch_bounds__(kBlockThreads, 2) compare_all(DecideArgs slab) {
  const DecideArgs args = decide_args_of_book(slab, blockIdx.z);
  __shared__ Nearest found[kBlockDistances][kRowsOfItem];
  const int sum_lane = threadIdx.x % kSums, group_of_lanes = threadIdx.x / kSums;
  const CodebookLookupArgs& lookup = args.lookup;
  const uint32_t num_undecided = *args.num_undecided;
  const Items items = items_of(num_undecided, gridDim.x);
  for (int64_t item = blockIdx.x; item < items.num_groups * items.num_parts; item += gridDim.x) {
    const int64_t group = item / items.num_parts, part = item % items.num_parts;
    const int64_t begin = lookup.num_codes * part / items.num_parts;
    const int64_t end = lookup.num_codes * (part + 1) / items.num_parts;
    const void* rows[kRowsOfItem];
    Nearest nearest[kRowsOfItem];
    float smallest[kRowsOfItem];  // float32 distance that this warp has met
#pragma unroll
    for (int r = 0; r < kRowsOfItem; ++r) {  // the last row is repeated
      const int64_t position = min(group * kRowsOfItem + r, static_cast<int64_t>(num_undecided) - 1);
      rows[r] = row_on_device<type>(lookup.features, args.undecided[position], lookup.row_stride);
      nearest[r] = {INFINITY, 0};
      smallest[r] = INFINITY;
    }
    for (int64_t first = begin; first < end; first += kBlockDistances) {  // uniform: a warp shuffles
      const int64_t j = first + group_of_lanes;
      const bool used = j < end && args.codes.negated_half[j] != -INFINITY;
      const float* code = lookup.codebook + (used ? j : begin) * lookup.num_channels;
      float near[kRowsOfItem] = {};
      for (int64_t c = sum_lane; used && c < lookup.num_channels; c += kSums) {
#pragma unroll
        for (int r = 0; r < kRowsOfItem; ++r) {
          const float difference = load_value<type>(rows[r], c) - code[c];
          near[r] = fmaf(difference, difference, near[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsOfItem; ++r) {
        for (int step = kSums / 2; step > 0; step /= 2) near[r] += __shfl_xor_sync(kAllLanes, near[r], step);
        float least = used ? near[r] : INFINITY;
        for (int step = kSums; step < kWarp; step *= 2) least = fminf(least, __shfl_xor_sync(kAllLanes, least, step));
        smallest[r] = fminf(smallest[r], least);
        const bool may_be_nearest = used && near[r] <= far_from(smallest[r], lookup.num_channels);
        if (!__any_sync(kAllLanes, may_be_nearest)) continue;
        const double distance = squared_distance<type, 1>(rows[r], code, lookup.num_channels, sum_lane);
        if (used && distance < nearest[r].distance) nearest[r] = {distance, static_cast<int32_t>(j)};
      }
    }
    if (sum_lane == 0) {
#pragma unroll
      for (int r = 0; r < kRowsOfItem; ++r) found[group_of_lanes][r] = nearest[r];
    }
    __syncthreads();
    if (threadIdx.x < kRowsOfItem) {
      Nearest smallest = found[0][threadIdx.x];
      for (int other = 1; other < kBlockDistances; ++other)
        smallest.update(found[other][threadIdx.x].distance, found[other][threadIdx.x].code);
      args.part_distance[item * kRowsOfItem + threadIdx.x] = smallest.distance;
      args.part_code[item * kRowsOfItem + threadIdx.x] = smallest.code;
    }
    __syncthreads();
  }
}

// Eight lanes for each undecided row: between the parts of compare_all, whose grid had `num_blocks` of a codebook.
template <Element type>
__global__ void __launch_bounds__(kBlockThreads) finish_compared(DecideArgs slab, int num_blocks) {
  const DecideArgs args = decide_args_of_book(slab, blockIdx.z);
  const int sum_lane = threadIdx.x % kSums;
  const int64_t num_undecided = *args.num_undecided;
  const Items items = items_of(static_cast<uint32_t>(num_undecided), num_blocks);
  const int64_t warp_first = (static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x / kWarp * kWarp) / kSums;
  if (warp_first >= num_undecided) return;
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kBlockDistances + threadIdx.x / kSums;
  const int64_t position = min(own, num_undecided - 1);
  const int32_t i = args.undecided[position];
  const int64_t group = position / kRowsOfItem, r = position % kRowsOfItem;
  Nearest nearest{INFINITY, 0};
  for (int64_t part = 0; part < items.num_parts; ++part) {  // parts are in the order of codes: the first smallest wins
    const int64_t slot = (group * items.num_parts + part) * kRowsOfItem + r;
    if (args.part_distance[slot] < nearest.distance) nearest = {args.part_distance[slot], args.part_code[slot]};
  }
  const CodebookLookupArgs& lookup = args.lookup;
  if (own < num_undecided && sum_lane == 0) {
    lookup.index[i] = nearest.code;
    if (args.counts != nullptr) {
      atomicAdd(args.counts, 1ull);
      atomicAdd(args.counts + 1, 1ull);
    }
  }
  if (lookup.distance == nullptr) return;
  const void* row = row_on_device<type>(lookup.features, i, lookup.row_stride);
  const float* content = lookup.codebook + static_cast<int64_t>(nearest.code) * lookup.num_channels;
  const double distance = squared_distance<type>(row, content, lookup.num_channels, sum_lane);
  if (own < num_undecided && sum_lane == 0) lookup.distance[i] = static_cast<float>(distance);
}

}  // namespace
}  // namespace soho
