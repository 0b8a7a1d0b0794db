// Scores of a tile of rows against all codes of a range on tensor cores, and the candidates among them.
//
// A block of four warps takes 128 rows and goes through the codes in tiles of 128, each in steps of 32 channels that
// cp.async brings into a ring of shared memory. A warp owns 32 rows: of each row four lanes (a quad) hold all 128
// scores of a tile, so the running threshold stays in registers, the list of candidates needs no atomics, and no
// barrier is needed but that of the ring. Where the largest score of a tile is below the threshold for all eight rows
// that a warp looks at together, that comparison is all that is done.
#pragma once

#include "kernels/codebook_lookup/cuda_rows.cuh"

namespace soho {
namespace {

constexpr int kScreenThreads = 128;
constexpr int kListSize = 16;  // candidates kept per row
constexpr int kWarpRows = 32;
constexpr int kRowSlots = 4;  // rows of a lane: g, g + 8, g + 16, g + 24 of its warp, g = lane / 4
constexpr int kGroups = 4;    // of the scores of one row in one lane: columns 8n + 2t and 8n + 2t + 1, t = lane % 4
constexpr int kGroupFragments = 16 / kGroups;
constexpr int kRowsOfCopy = kScreenThreads / (kTileChannels / 8);  // a thread copies every 32nd row of a tile
constexpr int kOverflowedList = -1;

// One row and one range of codes is an item: (book * num_ranges + range) * book_rows + row.
struct CudaLists {
  float* best;        // highest score
  int32_t* count;     // candidates, or kOverflowedList
  int32_t* position;  // (items, kListSize): codes
  float* score;       // (items, kListSize)
};

struct ScreenArgs {
  CudaCodes codes;
  CudaRows rows;
  CudaLists lists;
};

struct Stage {
  uint16_t rows[kTileRows * kTileChannels];
  uint16_t codes[kTileCodes * kTileChannels];
  float negated_half[kTileCodes];
};

// A ring of three stages where a multiprocessor has room for two such blocks, else of two; 1 KiB a block is the
// system's.
template <int stages>
struct ScreenShared {
  Stage stage[stages];
  int32_t position[kTileRows * kListSize];
  float score[kTileRows * kListSize];
};
template <int stages>
constexpr int kSharedOfTwo = 2 * (static_cast<int>(sizeof(ScreenShared<stages>)) + 1024);
static_assert(kSharedOfTwo<3> <= 164 * 1024);  // sm_80, sm_87; 228 KiB from sm_90 to sm_103
static_assert(kSharedOfTwo<2> <= 100 * 1024);  // sm_86, sm_89 (A10, L4, RTX), sm_120

// Rows of a stage are four chunks of 16 bytes. They are exchanged so that eight rows of one chunk, which ldmatrix reads
// together, lie in different banks.
__device__ __forceinline__ int chunk_at(int row, int chunk) {
  return (row * (kTileChannels / 8) + (chunk ^ ((row >> 1) & 3))) * 8;
}

// This thread's part of a tile; `stride` leads to its next row.
__device__ __forceinline__ void copy_tile(uint16_t* target, const uint16_t* source, int64_t stride) {
#pragma unroll
  for (int part = 0; part < kTileRows / kRowsOfCopy; ++part)
    copy_async_16(target + part * kRowsOfCopy * kTileChannels, source + part * stride);
}

// Scores of one step of 16 channels.
__device__ __forceinline__ void multiply(const Stage& stage, int step, int warp, int lane, float (&score)[2][16][4]) {
  const int matrix = lane / 8, line = lane % 8;
  uint32_t a[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const int row = warp * kWarpRows + 16 * m + 8 * (matrix & 1) + line;
    ldmatrix_x4(a[m], stage.rows + chunk_at(row, 2 * step + (matrix >> 1)));
  }
#pragma unroll
  for (int n = 0; n < 16; n += 2) {
    uint32_t both[4];
    ldmatrix_x4(both, stage.codes + chunk_at(8 * n + 8 * (matrix >> 1) + line, 2 * step + (matrix & 1)));
    const uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      mma_float16(score[m][n], a[m], b[0]);
      mma_float16(score[m][n + 1], a[m], b[1]);
    }
  }
}

// The list of one row; all but its entries is the same in the four lanes of the quad.
struct RowList {
  float best, threshold, window;
  int count;
};

// Drops what has fallen below the threshold. All lanes of the warp take part.
__device__ __forceinline__ void keep_above(RowList& list, int32_t* position, float* score, int lane) {
  __syncwarp();
  int kept = 0;
  if (lane % 4 == 0) {
    for (int n = 0; n < list.count; ++n) {
      const float value = score[n];
      const int32_t code = position[n];
      score[kept] = value;
      position[kept] = code;
      kept += value >= list.threshold;
    }
  }
  __syncwarp();
  const int counted = __shfl_sync(kAllLanes, kept, lane & ~3);
  if (list.count > 0) list.count = counted;
}

// Adds one group of scores, those that reach the threshold, to the list of one row. All lanes of the warp take part.
template <int m, int half, int group>
__device__ __forceinline__ void add_group(const float (&score)[2][16][4], int32_t first_code, RowList& list,
                                          int32_t* positions, float* scores, int lane) {
  int wanted = 0;
#pragma unroll
  for (int n = group * kGroupFragments; n < (group + 1) * kGroupFragments; ++n) {
    wanted += score[m][n][2 * half] >= list.threshold;
    wanted += score[m][n][2 * half + 1] >= list.threshold;
  }
  int before = 0, total = 0;  // of the quad
#pragma unroll
  for (int other = 0; other < 4; ++other) {
    const int theirs = __shfl_sync(kAllLanes, wanted, (lane & ~3) + other);
    before += other < lane % 4 ? theirs : 0;
    total += theirs;
  }
  const bool crowded = list.count >= 0 && list.count + total > kListSize;
  if (__any_sync(kAllLanes, crowded)) keep_above(list, positions, scores, lane);
  if (list.count >= 0 && list.count + total > kListSize) {
    list = {INFINITY, INFINITY, list.window, kOverflowedList};
  }
  if (list.count < 0) return;
  int next = list.count + before;
#pragma unroll
  for (int n = group * kGroupFragments; n < (group + 1) * kGroupFragments; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (score[m][n][2 * half + e] >= list.threshold) {
        positions[next] = first_code + 8 * n + 2 * (lane % 4) + e;
        scores[next] = score[m][n][2 * half + e];
        ++next;
      }
    }
  }
  list.count += total;
}

// Adds the scores of one tile that reach the threshold to the list of one row. The eight rows of a warp that come here
// together rarely have more than one or two such scores, so only the groups of scores that hold one are gone through.
// All lanes of the warp take part.
template <int m, int half>
__device__ __forceinline__ void add_candidates(const float (&score)[2][16][4], int32_t first_code, RowList& list,
                                               int32_t* positions, float* scores, int lane) {
  float largest_of[kGroups], largest = -INFINITY;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int first = group * kGroupFragments;
    largest_of[group] = fmaxf(score[m][first][2 * half], score[m][first][2 * half + 1]);
#pragma unroll
    for (int n = first + 1; n < first + kGroupFragments; ++n)
      largest_of[group] = fmaxf(largest_of[group], fmaxf(score[m][n][2 * half], score[m][n][2 * half + 1]));
    largest = fmaxf(largest, largest_of[group]);
  }
  if (!__any_sync(kAllLanes, largest >= list.threshold)) return;
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
  if (largest > list.best) {
    list.best = largest;
    list.threshold = largest - list.window;
  }
  const auto add = [&]<int group>() {
    if (__any_sync(kAllLanes, largest_of[group] >= list.threshold))
      add_group<m, half, group>(score, first_code, list, positions, scores, lane);
  };
  add.template operator()<0>();
  add.template operator()<1>();
  add.template operator()<2>();
  add.template operator()<3>();
}

// Block (tile of rows, range of codes, codebook).
template <int stages>
__global__ void __launch_bounds__(kScreenThreads, 2) screen_rows(ScreenArgs args) {
  auto& shared = *reinterpret_cast<ScreenShared<stages>*>(dynamic_shared());
  const CudaCodes codes = codes_of_book(args.codes, blockIdx.z);
  if (!screenable(codes)) return;  // all blocks of the codebook
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first_row = blockIdx.z * args.rows.book_rows + static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int64_t num_tiles = (codes.num_codes + kTileCodes - 1) / kTileCodes;
  const auto first_tile = static_cast<int>(num_tiles * blockIdx.y / gridDim.y);
  const auto end_tile = static_cast<int>(num_tiles * (blockIdx.y + 1) / gridDim.y);
  // Fewer steps than codes times channels / 4096, so 32 bits hold them.
  const auto steps_of_tile = static_cast<int>(codes.padded_channels / kTileChannels);
  const int num_steps = (end_tile - first_tile) * steps_of_tile;

  // What this thread copies next, and where to.
  const int copied_row = threadIdx.x / (kTileChannels / 8), copied_chunk = threadIdx.x % (kTileChannels / 8);
  const int64_t own = copied_row * codes.padded_channels + 8 * copied_chunk,
                stride = kRowsOfCopy * codes.padded_channels;
  const uint16_t* next_rows = args.rows.panel + first_row * codes.padded_channels + own;
  const uint16_t* next_codes = codes.panel + first_tile * kTileCodes * codes.padded_channels + own;
  const float* next_half = codes.negated_half + first_tile * kTileCodes + 4 * threadIdx.x;
  int left_to_copy = num_steps, next_step_of_tile = 0, next_stage = 0;
  const auto copy_next = [&] {
    if (left_to_copy > 0) {
      Stage& stage = shared.stage[next_stage];
      copy_tile(stage.rows + chunk_at(copied_row, copied_chunk), next_rows, stride);
      copy_tile(stage.codes + chunk_at(copied_row, copied_chunk), next_codes, stride);
      next_rows += kTileChannels;
      next_codes += kTileChannels;
      if (next_step_of_tile == 0) {
        if (threadIdx.x < kTileCodes / 4) copy_async_16(stage.negated_half + 4 * threadIdx.x, next_half);
        next_half += kTileCodes;
      }
      if (++next_step_of_tile == steps_of_tile) {
        next_step_of_tile = 0;
        next_rows -= codes.padded_channels;
        next_codes += (kTileCodes - 1) * codes.padded_channels;
      }
      --left_to_copy;
      next_stage = next_stage + 1 == stages ? 0 : next_stage + 1;
    }
    copy_async_commit();  // an empty group at the end keeps the count
  };

  RowList lists[kRowSlots];
  float ratio[kRowSlots];
#pragma unroll
  for (int slot = 0; slot < kRowSlots; ++slot) {
    const int64_t row = first_row + warp * kWarpRows + 8 * slot + lane / 4;
    const float window = args.rows.window[row];
    const bool screened = finite_bits(window);
    lists[slot] = {screened ? -INFINITY : INFINITY, screened ? -3.4e38f : INFINITY, window, 0};
    ratio[slot] = args.rows.ratio[row];
  }
  const int first_entry = (warp * kWarpRows + lane / 4) * kListSize, slot_entries = 8 * kListSize;
  int32_t* const positions = shared.position + first_entry;
  float* const scores = shared.score + first_entry;
  float score[2][16][4];
  for (int stage = 0; stage < stages - 1; ++stage) copy_next();
  int32_t first_code = first_tile * kTileCodes;
  int step_of_tile = 0, read_stage = 0;
  for (int step = 0; step < num_steps; ++step) {
    copy_async_wait<stages - 2>();
    __syncthreads();
    copy_next();  // into the stage that all warps have left
    const Stage& stage = shared.stage[read_stage];
    read_stage = read_stage + 1 == stages ? 0 : read_stage + 1;
    if (step_of_tile == 0) {
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        const float2 half = *reinterpret_cast<const float2*>(stage.negated_half + 8 * n + 2 * (lane % 4));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          score[m][n][0] = half.x * ratio[2 * m];
          score[m][n][1] = half.y * ratio[2 * m];
          score[m][n][2] = half.x * ratio[2 * m + 1];
          score[m][n][3] = half.y * ratio[2 * m + 1];
        }
      }
    }
#pragma unroll
    for (int part = 0; part < kTileChannels / 16; ++part) multiply(stage, part, warp, lane, score);
    if (++step_of_tile < steps_of_tile) continue;
    add_candidates<0, 0>(score, first_code, lists[0], positions, scores, lane);
    add_candidates<0, 1>(score, first_code, lists[1], positions + slot_entries, scores + slot_entries, lane);
    add_candidates<1, 0>(score, first_code, lists[2], positions + 2 * slot_entries, scores + 2 * slot_entries, lane);
    add_candidates<1, 1>(score, first_code, lists[3], positions + 3 * slot_entries, scores + 3 * slot_entries, lane);
    step_of_tile = 0;
    first_code += kTileCodes;
  }
  copy_async_wait<0>();

#pragma unroll
  for (int slot = 0; slot < kRowSlots; ++slot) {
    const int row = warp * kWarpRows + 8 * slot + lane / 4;
    const int32_t* kept_positions = positions + slot * slot_entries;
    const float* kept_scores = scores + slot * slot_entries;
    keep_above(lists[slot], positions + slot * slot_entries, scores + slot * slot_entries, lane);
    const int64_t item = (static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * args.rows.book_rows +
                         static_cast<int64_t>(blockIdx.x) * kTileRows + row;
    if (lane % 4 == 0) {
      args.lists.best[item] = lists[slot].best;
      args.lists.count[item] = lists[slot].count;
    }
    for (int n = lane % 4; n < lists[slot].count; n += 4) {
      args.lists.position[item * kListSize + n] = kept_positions[n];
      args.lists.score[item * kListSize + n] = kept_scores[n];
    }
  }
}

}  // namespace
}  // namespace soho
