// Grouped masking on a GPU. A warp takes some tokens of the batch: its lanes read their index and write their labels,
// then the warp moves one row after the other, 16 bytes per lane where the layout allows it.
#include "common/cuda_warp.cuh"
#include "kernels/group_mask/group_mask_cuda.h"

namespace soho {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;
constexpr int kTokensInPlace = 32;  // of a warp; few of them are written
constexpr int kTokensCopied = 4;
constexpr int64_t kMaxSharedLabels = 4096;
constexpr CudaStatus kInvalidValue = 1;  // cudaErrorInvalidValue

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A row in units: `num_units` of them, `stride` apart; tokens and images are units apart, too.
struct UnitStrides {
  int64_t image, token, unit;
};

// Copies by the warp, several units under way at a time.
template <class Unit>
__device__ __forceinline__ void copy_row(const Unit* source, int64_t source_stride, Unit* target, int64_t target_stride,
                                         int64_t num_units) {
  for (int64_t first = threadIdx.x % kWarp; first < num_units; first += kWarp * kUnroll) {
    Unit units[kUnroll];
#pragma unroll
    for (int64_t u = 0; u < kUnroll; ++u)  // the last one may repeat
      units[u] = source[min(first + u * kWarp, num_units - 1) * source_stride];
#pragma unroll
    for (int64_t u = 0; u < kUnroll; ++u) {
      if (first + u * kWarp < num_units) target[(first + u * kWarp) * target_stride] = units[u];
    }
  }
}

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    mask_tokens(GroupMaskArgs args, UnitStrides from, UnitStrides to, int64_t num_units, int tokens_per_warp) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  const int64_t begin = warp * tokens_per_warp, num_positions = args.num_images * args.num_tokens;
  const int64_t own = begin + lane;
  bool hit = false;
  if (lane < tokens_per_warp && own < num_positions) {
    const int64_t target = args.target[own / args.num_tokens];
    hit = target >= 0 && args.index[own] == target && (args.valid == nullptr || args.valid[own]);
    args.labels[own] = hit ? target : kIgnoredLabel;
  }
  const unsigned hits = __ballot_sync(kAllLanes, hit);
  const auto* features = static_cast<const Unit*>(args.features);
  for (int t = 0; t < tokens_per_warp && begin + t < num_positions; ++t) {
    const bool is_hit = hits >> t & 1;
    if (!is_hit && features == nullptr) continue;
    const int64_t image = (begin + t) / args.num_tokens, token = (begin + t) % args.num_tokens;
    Unit* target = static_cast<Unit*>(args.masked) + image * to.image + token * to.token;
    if (is_hit)
      copy_row(static_cast<const Unit*>(args.mask_token), 1, target, to.unit, num_units);
    else
      copy_row(features + image * from.image + token * from.token, from.unit, target, to.unit, num_units);
  }
}

template <class Unit>
CudaStatus launch_mask_tokens(const GroupMaskArgs& args, CudaStream stream) {
  const auto in_units = [&](const int64_t* strides) {
    constexpr int64_t kBytes = sizeof(Unit);
    return UnitStrides{strides[0] * args.element_size / kBytes, strides[1] * args.element_size / kBytes,
                       kBytes == args.element_size ? strides[2] : 1};
  };
  const int tokens_per_warp = args.features == nullptr ? kTokensInPlace : kTokensCopied;
  const int64_t num_warps = divide_up(args.num_images * args.num_tokens, tokens_per_warp);
  return launch(mask_tokens<Unit>, static_cast<unsigned>(divide_up(num_warps * kWarp, kThreads)), kThreads, 0, stream,
                args, in_units(args.feature_strides), in_units(args.masked_strides),
                args.num_channels * args.element_size / static_cast<int64_t>(sizeof(Unit)), tokens_per_warp);
}

bool in_whole_units(const GroupMaskArgs& args, int64_t unit_bytes) {
  const auto fits = [&](const void* memory, const int64_t* strides) {
    return reinterpret_cast<uintptr_t>(memory) % unit_bytes == 0 && strides[2] == 1 &&
           strides[0] * args.element_size % unit_bytes == 0 && strides[1] * args.element_size % unit_bytes == 0;
  };
  return fits(args.masked, args.masked_strides) &&
         (args.features == nullptr || fits(args.features, args.feature_strides)) &&
         reinterpret_cast<uintptr_t>(args.mask_token) % unit_bytes == 0 &&
         args.num_channels * args.element_size % unit_bytes == 0;
}

constexpr int64_t kAbsent = 0x7fffffffffffffff;

// A block sorts the labels of an image and takes the wanted one of those that differ from the one before.
__global__ void __launch_bounds__(kThreads) sample_labels(SampleGroupArgs args, int64_t* workspace, int64_t length) {
  __shared__ int64_t sums[kThreads / kWarp];
  const int64_t image = blockIdx.x;
  int64_t* labels = workspace == nullptr ? reinterpret_cast<int64_t*>(dynamic_shared()) : workspace + image * length;
  for (int64_t p = threadIdx.x; p < length; p += kThreads) {
    const int64_t position = image * args.num_tokens + p;
    const bool is_real = p < args.num_tokens && (args.valid == nullptr || args.valid[position]);
    const int64_t label = is_real ? args.index[position] : -1;
    labels[p] = label >= 0 ? label : kAbsent;
  }
  __syncthreads();
  for (int64_t run = 2; run <= length; run *= 2) {  // a bitonic network
    for (int64_t distance = run / 2; distance > 0; distance /= 2) {
      for (int64_t pair = threadIdx.x; pair < length / 2; pair += kThreads) {
        const int64_t low = pair / distance * 2 * distance + pair % distance, high = low + distance;
        const int64_t a = labels[low], b = labels[high];
        if ((a > b) == ((low & run) == 0)) {
          labels[low] = b;
          labels[high] = a;
        }
      }
      __syncthreads();
    }
  }
  const int64_t begin = length * threadIdx.x / kThreads, end = length * (threadIdx.x + 1) / kThreads;
  const auto is_first = [&](int64_t p) { return labels[p] != kAbsent && (p == 0 || labels[p] != labels[p - 1]); };
  int64_t own = 0, num_labels;
  for (int64_t p = begin; p < end; ++p) own += is_first(p);
  int64_t before = block_prefix_sum(own, sums, num_labels);
  if (num_labels == 0) {
    if (threadIdx.x == 0) args.target[image] = -1;
    return;
  }
  const int64_t wanted = __double2ll_rd(__dmul_rn(args.uniform[image], static_cast<double>(num_labels)));
  const int64_t rank = max(int64_t{0}, min(wanted, num_labels - 1));
  for (int64_t p = begin; p < end; ++p) {
    if (!is_first(p)) continue;
    if (before == rank) args.target[image] = labels[p];
    ++before;
  }
}

int64_t sorted_length(const SampleGroupArgs& args) {
  int64_t length = 1;
  while (length < args.num_tokens) length *= 2;
  return length;
}

}  // namespace

CudaStatus group_mask_cuda(const GroupMaskArgs& args, CudaStream stream) {
  if (in_whole_units(args, 16)) return launch_mask_tokens<uint4>(args, stream);
  return args.element_size == 4 ? launch_mask_tokens<uint32_t>(args, stream)
                                : launch_mask_tokens<uint16_t>(args, stream);
}

size_t sample_group_workspace_bytes_cuda(const SampleGroupArgs& args) {
  const int64_t length = sorted_length(args);
  return length <= kMaxSharedLabels ? 0 : sizeof(int64_t) * args.num_images * length;
}

CudaStatus sample_group_cuda(const SampleGroupArgs& args, void* workspace, CudaStream stream) {
  if (args.num_images > 0x7fffffff) return kInvalidValue;
  const int64_t length = sorted_length(args);
  const bool in_shared = length <= kMaxSharedLabels;
  return launch(sample_labels, static_cast<unsigned>(args.num_images), kThreads,
                in_shared ? sizeof(int64_t) * length : 0, stream, args,
                in_shared ? nullptr : static_cast<int64_t*>(workspace), length);
}

}  // namespace soho
