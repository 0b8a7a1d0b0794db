// The codebook update on a GPU: a stable counting sort of the rows by code, then one group of lanes adds the members
// of one code in float64, in ascending row order, so that the bits are those of the CPU.
//
//   rank_rows      one warp per tile of rows: how many rows of the tile with the same code lie before each row
//   prefix_tiles   how many rows of each code lie in the tiles before
//   prefix_codes   where the members of each code begin
//   place_members  the rows, sorted by code
//   add_members    reads each counted row once; kUnroll rows are under way at a time
//   add_popular    the same for a code with kPopular members or more: a block takes few of its channels, and most
//                  of its warps bring rows to shared memory for the one that adds, so that only additions take time
#include "common/cuda_warp.cuh"
#include "kernels/codebook_update/codebook_update_cuda.h"

namespace soho {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;
constexpr int kChunks = 4;  // of 32 rows whose index rank_rows reads at a time
constexpr int kUnroll = 8;
constexpr uint32_t kPopular = 512;
constexpr int kSliceBytes = 64;  // of a row, in a block of add_popular
constexpr int kStageRows = 128;
constexpr int kStages =
    4;  // three under way: 384 rows, for some 700 ns until memory answers at 2 ns or more an addition
constexpr int kRingBytes = kStages * kStageRows * kSliceBytes;
constexpr int kCopiers = 128;
constexpr int64_t kMinTileRows = 256;
constexpr int64_t kMaxTiles = 512;
constexpr int64_t kCodesPerTileRow = 8;  // bounds the counters of all tiles by 32 bytes per row
constexpr int64_t kMaxSharedCounters = 8192;
constexpr CudaStatus kInvalidValue = 1;  // cudaErrorInvalidValue

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct SortPlan {
  int64_t tile_rows, num_tiles;
  uint32_t* ranks;        // (num_rows,) in the tile
  uint32_t* members;      // (num_rows,) counted rows by code, ascending
  uint32_t* tile_counts;  // (num_tiles, num_codes), then their exclusive prefix over the tiles
  uint32_t* offsets;      // (num_codes + 1,) where the members of a code begin
  size_t bytes;
};

SortPlan plan_sort(const CodebookUpdateArgs& args, void* workspace) {
  SortPlan plan{};
  const int64_t rows = args.num_rows > 0 ? args.num_rows : 1;
  int64_t tile_rows = kMinTileRows;
  for (const int64_t wanted : {divide_up(rows, kMaxTiles), divide_up(args.num_codes, kCodesPerTileRow)}) {
    if (wanted > tile_rows) tile_rows = wanted;
  }
  plan.tile_rows = divide_up(tile_rows, kWarp) * kWarp;
  plan.num_tiles = divide_up(rows, plan.tile_rows);
  const auto take = [&](int64_t count) {
    auto* part = reinterpret_cast<uint32_t*>(static_cast<char*>(workspace) + plan.bytes);
    plan.bytes += divide_up(sizeof(uint32_t) * count, 16) * 16;
    return workspace == nullptr ? nullptr : part;
  };
  plan.ranks = take(args.num_rows);
  plan.members = take(args.num_rows);
  plan.tile_counts = take(plan.num_tiles * args.num_codes);
  plan.offsets = take(args.num_codes + 1);
  return plan;
}

constexpr uint32_t kNotCounted = 0xffffffffu;

__device__ __forceinline__ uint32_t code_of(const CodebookUpdateArgs& args, int64_t row) {
  if (row >= args.num_rows) return kNotCounted;
  const int64_t code = args.index[row];
  const bool counted = code >= 0 && code < args.num_codes && (args.valid == nullptr || args.valid[row]);
  return counted ? static_cast<uint32_t>(code) : kNotCounted;
}

__global__ void __launch_bounds__(kWarp) rank_rows(CodebookUpdateArgs args, SortPlan plan, bool in_shared) {
  const unsigned lane = threadIdx.x;
  uint32_t* own = plan.tile_counts + blockIdx.x * args.num_codes;
  uint32_t* counters = in_shared ? reinterpret_cast<uint32_t*>(dynamic_shared()) : own;
  for (int64_t k = lane; k < args.num_codes; k += kWarp) counters[k] = 0;
  __syncwarp();
  const int64_t begin = blockIdx.x * plan.tile_rows;
  const int64_t end = min(begin + plan.tile_rows, args.num_rows);
  for (int64_t first = begin; first < end; first += kChunks * kWarp) {
    uint32_t codes[kChunks];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t row = first + c * kWarp + lane;
      codes[c] = row < end ? code_of(args, row) : kNotCounted;
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const uint32_t code = codes[c];
      const unsigned same = __match_any_sync(kAllLanes, code);
      const uint32_t before = code == kNotCounted ? 0 : counters[code];
      __syncwarp();  // all have read
      if (code != kNotCounted) {
        const uint32_t rank = before + __popc(same & ((1u << lane) - 1));
        plan.ranks[first + c * kWarp + lane] = rank;
        if (same >> lane == 1) counters[code] = rank + 1;  // the last of them
      }
      __syncwarp();  // before others read
    }
  }
  if (!in_shared) return;
  for (int64_t k = lane; k < args.num_codes; k += kWarp) own[k] = counters[k];
}

// A block takes 32 codes, each warp a run of tiles.
__global__ void __launch_bounds__(kScanThreads) prefix_tiles(SortPlan plan, int64_t num_codes) {
  constexpr int kWarps = kScanThreads / kWarp;
  __shared__ uint32_t sums[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t code = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const int64_t begin = plan.num_tiles * warp / kWarps, end = plan.num_tiles * (warp + 1) / kWarps;
  uint32_t sum = 0;
  if (code < num_codes) {
    for (int64_t t = begin; t < end; ++t) sum += plan.tile_counts[t * num_codes + code];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (code >= num_codes) return;
  uint32_t before = 0;
  for (int w = 0; w < warp; ++w) before += sums[w][lane];
  if (warp == kWarps - 1) plan.offsets[code] = before + sum;  // the code's members; prefix_codes makes offsets of them
  for (int64_t t = begin; t < end; ++t) {
    const uint32_t count = plan.tile_counts[t * num_codes + code];
    plan.tile_counts[t * num_codes + code] = before;
    before += count;
  }
}

// One block; `counts`, float32 or float64, may be null.
__global__ void __launch_bounds__(kScanThreads)
    prefix_codes(uint32_t* offsets, int64_t num_codes, void* counts, bool wide) {
  __shared__ uint32_t sums[kScanThreads / kWarp];
  const int64_t begin = num_codes * threadIdx.x / kScanThreads, end = num_codes * (threadIdx.x + 1) / kScanThreads;
  uint32_t own = 0, total;
  for (int64_t k = begin; k < end; ++k) own += offsets[k];
  uint32_t before = block_prefix_sum(own, sums, total);
  for (int64_t k = begin; k < end; ++k) {
    const uint32_t count = offsets[k];
    if (counts != nullptr && wide) static_cast<double*>(counts)[k] = count;
    if (counts != nullptr && !wide) static_cast<float*>(counts)[k] = static_cast<float>(count);
    offsets[k] = before;
    before += count;
  }
  if (threadIdx.x == 0) offsets[num_codes] = total;
}

__global__ void __launch_bounds__(kThreads) place_members(CodebookUpdateArgs args, SortPlan plan) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const uint32_t code = code_of(args, row);
  if (code == kNotCounted) return;
  const int64_t tile = row / plan.tile_rows;
  const uint32_t position = plan.offsets[code] + plan.tile_counts[tile * args.num_codes + code] + plan.ranks[row];
  plan.members[position] = static_cast<uint32_t>(row);
}

// kVector adjacent elements as they lie in memory.
template <Element type, int kVector>
struct Chunk;
template <>
struct Chunk<Element::kFloat32, 1> {
  float word;
  __device__ void add_to(double (&sum)[1]) const { sum[0] = __dadd_rn(sum[0], word); }
};
template <Element type>
struct Chunk<type, 1> {
  uint16_t word;
  __device__ void add_to(double (&sum)[1]) const {
    sum[0] = __dadd_rn(sum[0], type == Element::kBFloat16 ? widen_bfloat16(word) : widen_float16(word));
  }
};
template <>
struct Chunk<Element::kFloat32, 4> {
  float4 word;
  __device__ void add_to(double (&sum)[4]) const {
    sum[0] = __dadd_rn(sum[0], word.x);
    sum[1] = __dadd_rn(sum[1], word.y);
    sum[2] = __dadd_rn(sum[2], word.z);
    sum[3] = __dadd_rn(sum[3], word.w);
  }
};
template <Element type>
struct Chunk<type, 8> {
  uint4 word;
  __device__ void add_to(double (&sum)[8]) const {
    const uint32_t pairs[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const auto half = static_cast<uint16_t>(pairs[e / 2] >> (e % 2 * 16));
      sum[e] = __dadd_rn(sum[e], type == Element::kBFloat16 ? widen_bfloat16(half) : widen_float16(half));
    }
  }
};

struct Averaging {
  float decay, rest;
};

__device__ __forceinline__ float averaged(float code, float sum, float count, const Averaging& by) {
  return __fadd_rn(__fmul_rn(code, by.decay), __fmul_rn(__fdiv_rn(sum, count), by.rest));
}

template <int kVector>
__device__ __forceinline__ void load(float (&values)[kVector], const float* memory) {
  if constexpr (kVector % 4 == 0) {
#pragma unroll
    for (int e = 0; e < kVector; e += 4) {
      const float4 word = *reinterpret_cast<const float4*>(memory + e);
      values[e] = word.x, values[e + 1] = word.y, values[e + 2] = word.z, values[e + 3] = word.w;
    }
  } else {
    for (int e = 0; e < kVector; ++e) values[e] = memory[e];
  }
}

template <int kVector>
__device__ __forceinline__ void store(float* memory, const float (&values)[kVector]) {
  if constexpr (kVector % 4 == 0) {
#pragma unroll
    for (int e = 0; e < kVector; e += 4)  // a plain store of a float4 is taken apart by the compiler
      __stcg(reinterpret_cast<float4*>(memory + e),
             make_float4(values[e], values[e + 1], values[e + 2], values[e + 3]));
  } else {
    for (int e = 0; e < kVector; ++e) memory[e] = values[e];
  }
}

// Writes the sum of some channels of a code, or moves the code towards it.
template <int kVector>
__device__ __forceinline__ void finish(const CodebookUpdateArgs& args, int64_t position, const double (&wide)[kVector],
                                       uint32_t count, const Averaging& by) {
  if (args.wide) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) static_cast<double*>(args.sums)[position + e] = wide[e];
    return;
  }
  float sum[kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) sum[e] = __double2float_rn(wide[e]);
  if (!args.moves_codebook) {
    store(static_cast<float*>(args.sums) + position, sum);
  } else if (count > 0) {
    float before[kVector];
    load(before, args.codebook + position);
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum[e] = averaged(before[e], sum[e], static_cast<float>(count), by);
    store(args.codebook + position, sum);
  }
}

// `lanes` (a power of two, at most 32) take `lanes` * kVector channels of one code.
template <Element type, int kVector>
__global__ void __launch_bounds__(kThreads)
    add_members(CodebookUpdateArgs args, const uint32_t* members, const uint32_t* offsets, int lanes,
                int64_t num_slices, Averaging by) {
  const int64_t group = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  const int64_t code = group / num_slices, slice = group % num_slices;
  const int64_t channel = (slice * lanes + threadIdx.x % lanes) * kVector;
  if (code >= args.num_codes || channel >= args.num_channels) return;
  const auto* features = static_cast<const Chunk<type, kVector>*>(args.features) + channel / kVector;
  const int64_t row_chunks = args.row_stride / kVector;
  const uint32_t begin = offsets[code], end = offsets[code + 1];
  if (end - begin >= kPopular) return;
  double sum[kVector] = {};
  for (uint32_t first = begin; first < end; first += kUnroll) {
    const uint32_t left = end - first;
    Chunk<type, kVector> chunks[kUnroll];
#pragma unroll
    for (uint32_t m = 0; m < kUnroll; ++m)  // without branches all are under way at once; the last one may repeat
      chunks[m] = features[members[first + min(m, left - 1)] * row_chunks];
#pragma unroll
    for (uint32_t m = 0; m < kUnroll; ++m) {
      if (m < left) chunks[m].add_to(sum);
    }
  }
  finish(args, code * args.num_channels + channel, sum, end - begin, by);
}

// A block per kPopular members and slice of channels. Of the blocks whose member belongs to a popular code, the first
// takes the code: each such code has one. `kWide`: rows are copied in pieces of 16 bytes.
template <Element type, bool kWide>
__global__ void __launch_bounds__(kWarp + kCopiers)
    add_popular(CodebookUpdateArgs args, const uint32_t* members, const uint32_t* offsets, int64_t num_slices,
                Averaging by) {
  constexpr int kElementBytes = type == Element::kFloat32 ? 4 : 2;
  constexpr int kSlice = kSliceBytes / kElementBytes;
  constexpr int kPieceBytes = kWide ? 16 : kElementBytes;
  constexpr int kPieces = kSliceBytes / kPieceBytes;  // of a row
  constexpr int kRowsAtOnce = kCopiers / kPieces;
  constexpr int kBatch = kStageRows / kRowsAtOnce < 8 ? kStageRows / kRowsAtOnce : 8;  // of rows under way to a thread
  const auto position = static_cast<uint32_t>(blockIdx.x / num_slices * kPopular);
  if (position >= offsets[args.num_codes]) return;
  const int64_t code = args.index[members[position]];
  const uint32_t begin = offsets[code], count = offsets[code + 1] - begin;
  if (count < kPopular || position - begin >= kPopular) return;

  unsigned char* ring = dynamic_shared();
  const int64_t first_channel = blockIdx.x % num_slices * kSlice;
  const int copier = static_cast<int>(threadIdx.x) - kWarp;
  const int piece = copier % kPieces;
  const int64_t channel = first_channel + piece * (kPieceBytes / kElementBytes);
  const bool copies = copier >= 0 && channel < args.num_channels;
  const auto* features = static_cast<const char*>(args.features) + channel * kElementBytes;
  const int64_t row_bytes = args.row_stride * kElementBytes;
  const uint32_t num_stages = (count + kStageRows - 1) / kStageRows;
  const auto copy = [&](uint32_t stage) {
    if (copies && stage < num_stages) {
      const uint32_t first = stage * kStageRows, last = min(count - first, uint32_t{kStageRows}) - 1;
      unsigned char* target = ring + stage % kStages * (kStageRows * kSliceBytes) + piece * kPieceBytes;
      for (uint32_t batch = copier / kPieces; batch <= last; batch += kBatch * kRowsAtOnce) {
        const char* sources[kBatch];
#pragma unroll
        for (uint32_t r = 0; r < kBatch; ++r)  // all are under way at once; the last one may repeat
          sources[r] = features + members[begin + first + min(batch + r * kRowsAtOnce, last)] * row_bytes;
        if constexpr (kWide) {
#pragma unroll
          for (uint32_t r = 0; r < kBatch; ++r) {
            const uint32_t row = batch + r * kRowsAtOnce;
            if (row <= last) copy_async_16(target + row * kSliceBytes, sources[r]);
          }
        } else {
          Chunk<type, 1> values[kBatch];
#pragma unroll
          for (uint32_t r = 0; r < kBatch; ++r) values[r] = *reinterpret_cast<const Chunk<type, 1>*>(sources[r]);
#pragma unroll
          for (uint32_t r = 0; r < kBatch; ++r) {
            const uint32_t row = batch + r * kRowsAtOnce;
            if (row <= last) *reinterpret_cast<Chunk<type, 1>*>(target + row * kSliceBytes) = values[r];
          }
        }
      }
    }
    copy_async_commit();
  };
  for (uint32_t stage = 0; stage + 1 < kStages; ++stage) copy(stage);
  const bool adds = threadIdx.x < kSlice && first_channel + threadIdx.x < args.num_channels;
  double sum[1] = {};
  for (uint32_t stage = 0; stage < num_stages; ++stage) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this stage has come, the one before is added and gives its place
    copy(stage + kStages - 1);
    if (!adds) continue;
    const auto* rows = reinterpret_cast<const Chunk<type, 1>*>(ring + stage % kStages * (kStageRows * kSliceBytes));
    const uint32_t num_rows = min(count - stage * kStageRows, uint32_t{kStageRows});
#pragma unroll 32
    for (uint32_t row = 0; row < num_rows; ++row) rows[row * kSlice + threadIdx.x].add_to(sum);
  }
  if (adds) finish(args, code * args.num_channels + first_channel + threadIdx.x, sum, count, by);
}

template <Element type, bool kWide>
CudaStatus launch_add_popular(const CodebookUpdateArgs& args, const SortPlan& plan, const Averaging& by,
                              CudaStream stream) {
  if (args.num_rows < kPopular) return 0;
  constexpr int64_t kSlice = kSliceBytes / (type == Element::kFloat32 ? 4 : 2);
  const int64_t num_slices = divide_up(args.num_channels, kSlice);
  const int64_t num_blocks = divide_up(args.num_rows, kPopular) * num_slices;
  return launch(add_popular<type, kWide>, static_cast<unsigned>(num_blocks), kWarp + kCopiers, kRingBytes, stream, args,
                plan.members, plan.offsets, num_slices, by);
}

template <Element type, int kVector>
CudaStatus launch_add_members(const CodebookUpdateArgs& args, const SortPlan& plan, CudaStream stream) {
  int lanes = kWarp;
  while (lanes > 1 && lanes / 2 * kVector >= args.num_channels) lanes /= 2;
  const int64_t num_slices = divide_up(args.num_channels, lanes * kVector);
  const int64_t num_blocks = divide_up(args.num_codes * num_slices * lanes, kThreads);
  const Averaging by{static_cast<float>(args.decay), static_cast<float>(1.0 - args.decay)};
  const CudaStatus status = launch(add_members<type, kVector>, static_cast<unsigned>(num_blocks), kThreads, 0, stream,
                                   args, plan.members, plan.offsets, lanes, num_slices, by);
  return status != 0 ? status : launch_add_popular<type, kVector != 1>(args, plan, by, stream);
}

bool is_aligned(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

template <Element type>
CudaStatus launch_add_members_of(const CodebookUpdateArgs& args, const SortPlan& plan, CudaStream stream) {
  constexpr int kVector = type == Element::kFloat32 ? 4 : 8;
  const bool wide = args.num_channels % kVector == 0 && args.row_stride % kVector == 0 && is_aligned(args.features) &&
                    is_aligned(args.moves_codebook ? args.codebook : args.sums);
  return wide ? launch_add_members<type, kVector>(args, plan, stream) : launch_add_members<type, 1>(args, plan, stream);
}

// A warp takes a code.
template <int kVector>
__global__ void __launch_bounds__(kThreads) move_codes(CodebookEmaArgs args, int64_t num_codes, Averaging by) {
  const int64_t code = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (code >= num_codes) return;
  const float count = args.counts[code];
  if (!(count > 0.0f)) return;
  float* target = args.codebook + code * args.codebook_row_stride;
  const float* sums = args.sums + code * args.num_channels;
  for (int64_t c = threadIdx.x % kWarp * kVector; c < args.num_channels; c += kWarp * kVector) {
    float sum[kVector], code_values[kVector];
    load(sum, sums + c);
    load(code_values, target + c);
#pragma unroll
    for (int e = 0; e < kVector; ++e) code_values[e] = averaged(code_values[e], sum[e], count, by);
    store(target + c, code_values);
  }
}

}  // namespace

size_t update_codebook_workspace_bytes_cuda(const CodebookUpdateArgs& args) { return plan_sort(args, nullptr).bytes; }

CudaStatus update_codebook_cuda(const CodebookUpdateArgs& args, void* workspace, CudaStream stream) {
  if (args.num_rows >= kNotCounted || args.num_codes >= kNotCounted) return kInvalidValue;
  if (args.num_codes == 0) return 0;
  const SortPlan plan = plan_sort(args, workspace);
  const bool in_shared = args.num_codes <= kMaxSharedCounters;
  const size_t shared_bytes = in_shared ? sizeof(uint32_t) * args.num_codes : 0;
  CudaStatus status =
      launch(rank_rows, static_cast<unsigned>(plan.num_tiles), kWarp, shared_bytes, stream, args, plan, in_shared);
  if (status != 0) return status;
  status = launch(prefix_tiles, static_cast<unsigned>(divide_up(args.num_codes, kWarp)), kScanThreads, 0, stream, plan,
                  args.num_codes);
  if (status != 0) return status;
  status = launch(prefix_codes, 1, kScanThreads, 0, stream, plan.offsets, args.num_codes,
                  args.moves_codebook ? nullptr : args.counts, args.wide);
  if (status != 0) return status;
  status =
      launch(place_members, static_cast<unsigned>(divide_up(args.num_rows, kThreads)), kThreads, 0, stream, args, plan);
  if (status != 0 || args.num_channels == 0) return status;
  switch (args.features_type) {
    case Element::kFloat32:
      return launch_add_members_of<Element::kFloat32>(args, plan, stream);
    case Element::kBFloat16:
      return launch_add_members_of<Element::kBFloat16>(args, plan, stream);
    default:
      return launch_add_members_of<Element::kFloat16>(args, plan, stream);
  }
}

CudaStatus codebook_ema_cuda(const CodebookEmaArgs& args, int64_t num_codes, CudaStream stream) {
  const Averaging by{static_cast<float>(args.decay), static_cast<float>(1.0 - args.decay)};
  const auto num_blocks = static_cast<unsigned>(divide_up(num_codes * kWarp, kThreads));
  const bool wide = args.num_channels % 4 == 0 && args.codebook_row_stride % 4 == 0 && is_aligned(args.codebook) &&
                    is_aligned(args.sums);
  return wide ? launch(move_codes<4>, num_blocks, kThreads, 0, stream, args, num_codes, by)
              : launch(move_codes<1>, num_blocks, kThreads, 0, stream, args, num_codes, by);
}

}  // namespace soho
