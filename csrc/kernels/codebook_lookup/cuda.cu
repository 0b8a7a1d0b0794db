// Certified lookup on a GPU; sm_80 and newer.
//
// Packing a codebook (cuda_codes.cuh): insert_codes finds copies, sum_codes and centre_codes the mean of the distinct
// codes, measure_codes the scale, pack_codes writes float16. A lookup takes the rows in slabs, so that its workspace
// has a bound; of each slab
//   convert_rows (cuda_rows.cuh)      centres, scales and rounds the rows and bounds the error of their scores
//   screen_rows (cuda_screen.cuh)     scores on tensor cores; what lies within the window of the best goes to a list
//   decide (cuda_decide.cuh)          a single candidate is the nearest code; more are compared in float64
//   compare_all, finish_compared      rows whose candidates did not fit, against all codes in float64
// The error bound is that of passes.h for float16 with the first factor 3 in place of 1.25: tensor cores align
// the terms of a sum to the largest and cut them off. Where they do so in blocks of four products, without a bit to
// spare, each block loses less than five units of 2^-23 of the largest sum, so a chain of C additions loses less than
// 1.25 (1 + C 2^-22) C 2^-23 = 2.6 C 2^-24 of it up to C = 2^18, larger blocks less; the other 0.4 (C + 16) 2^-24 and
// 16 times 2.6 hold the roundings of a, b, |b|^2/2, |a| and the threshold. A product of two float16 is exact.
#include "kernels/codebook_lookup/codebook_lookup_cuda.h"
#include "kernels/codebook_lookup/cuda_decide.cuh"
#include "kernels/codebook_lookup/cuda_gather.cuh"

namespace soho {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kSlabBytes = 96 * 1024 * 1024;  // of converted rows, where one wave of blocks does not take more
constexpr int64_t kMostWaves = 8;                 // of blocks in a slab
constexpr int64_t kBlocksPerMultiprocessor = 2;   // of screen_rows
constexpr int64_t kMostRanges = 16;               // of codes, where there are few rows
constexpr size_t kScreenSharedBytes = sizeof(ScreenShared);

int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Cuts a block of memory into aligned arrays; with a null block it only counts.
class Arrays {
 public:
  explicit Arrays(void* block) : block_(static_cast<char*>(block)) {}
  template <class T>
  T* next(int64_t count) {
    T* array = block_ == nullptr ? nullptr : reinterpret_cast<T*>(block_ + used_);
    used_ += ceil_div(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
    return array;
  }
  size_t used() const { return static_cast<size_t>(used_); }

 private:
  char* block_;
  int64_t used_ = 0;
};

int64_t padded_channels(int64_t num_channels) {  // at least one step: screen_rows assumes it
  return num_channels == 0 ? kTileChannels : ceil_div(num_channels, kTileChannels) * kTileChannels;
}

CudaCodes codes_in(Arrays& arrays, int64_t num_codes, int64_t num_channels) {
  const int64_t padded_codes = ceil_div(num_codes, kTileCodes) * kTileCodes;
  CudaCodes codes{};
  codes.num_codes = num_codes;
  codes.num_channels = num_channels;
  codes.padded_channels = padded_channels(num_channels);
  codes.header = arrays.next<CudaCodesHeader>(1);
  codes.centre = arrays.next<float>(codes.padded_channels);
  codes.negated_half = arrays.next<float>(padded_codes);
  codes.panel = arrays.next<uint16_t>(padded_codes * codes.padded_channels);
  return codes;
}

CopyTable table_in(Arrays& arrays, int64_t num_codes, int64_t num_channels) {
  CopyTable table{};
  table.capacity = 16;
  while (table.capacity < 2 * num_codes) table.capacity *= 2;
  table.entries = arrays.next<unsigned long long>(table.capacity);
  table.entry_of = arrays.next<int64_t>(num_codes);
  const int64_t parts = ceil_div(num_codes, kCodesOfSumPart);
  table.num_parts = static_cast<int>(parts < kMostSumParts ? parts : kMostSumParts);
  table.partial_sums = arrays.next<double>(table.num_parts * num_channels);
  return table;
}

// How many rows go together, and over how many ranges of codes their blocks are spread.
struct Plan {
  int64_t slab_rows;  // whole tiles
  int64_t slots;      // blocks of screen_rows at a time
  int64_t code_tiles;
  int64_t num_ranges(int64_t num_rows) const {
    const int64_t wanted = slots / ceil_div(num_rows, kTileRows);
    const int64_t most = code_tiles < kMostRanges ? code_tiles : kMostRanges;
    return wanted < 1 ? 1 : wanted < most ? wanted : most;
  }
};

Plan plan_of(const CodebookLookupArgs& args) {
  const int64_t slots = num_multiprocessors() * kBlocksPerMultiprocessor;
  const int64_t wave_bytes = slots * kTileRows * padded_channels(args.num_channels) * 2;
  int64_t waves = kSlabBytes / wave_bytes;
  waves = waves < 1 ? 1 : waves < kMostWaves ? waves : kMostWaves;
  const int64_t all = ceil_div(args.num_rows, kTileRows), most = waves * slots;
  return {(all < most ? all : most) * kTileRows, slots, ceil_div(args.num_codes, kTileCodes)};
}

struct Workspace {
  CudaRows rows;
  CudaLists lists;
  uint32_t* num_undecided;
  int32_t* undecided;
  double* part_distance;
  int32_t* part_code;
};

Workspace workspace_in(Arrays& arrays, const CodebookLookupArgs& args, const Plan& plan) {
  const int64_t rows = plan.slab_rows, tiles = rows / kTileRows;
  // A shorter slab is spread over more ranges, but over no more than `slots` blocks.
  int64_t list_tiles = tiles * plan.num_ranges(rows);
  const int64_t last_tiles = ceil_div(args.num_rows % rows, kTileRows);
  if (last_tiles > 0 && last_tiles * plan.num_ranges(last_tiles * kTileRows) > list_tiles)
    list_tiles = last_tiles * plan.num_ranges(last_tiles * kTileRows);
  const int64_t items = list_tiles * kTileRows;
  const int64_t parts =
      (ceil_div(rows, kRowsOfItem) > plan.slots ? ceil_div(rows, kRowsOfItem) : plan.slots) * kRowsOfItem;
  Workspace space{};
  space.rows.panel = arrays.next<uint16_t>(rows * padded_channels(args.num_channels));
  space.rows.window = arrays.next<float>(rows);
  space.rows.ratio = arrays.next<float>(tiles);
  space.lists.best = arrays.next<float>(items);
  space.lists.count = arrays.next<int32_t>(items);
  space.lists.position = arrays.next<int32_t>(items * kListSize);
  space.lists.score = arrays.next<float>(items * kListSize);
  space.num_undecided = arrays.next<uint32_t>(1);
  space.undecided = arrays.next<int32_t>(rows);
  space.part_distance = arrays.next<double>(parts);
  space.part_code = arrays.next<int32_t>(parts);
  return space;
}

int lanes_of_row(int64_t num_channels) {
  int lanes = 1;
  while (lanes < kWarp && lanes * kLanesOfFour < num_channels) lanes *= 2;
  return lanes;
}

bool four_aligned(const CodebookLookupArgs& args) {
  const int64_t four = 4 * element_size(args.features_type);
  return reinterpret_cast<uintptr_t>(args.features) % four == 0 &&
         args.row_stride * element_size(args.features_type) % four == 0;
}

// Stops at the first launch that fails.
class Launches {
 public:
  explicit Launches(CudaStream stream) : stream_(stream) {}
  template <class... Parameters, class... Args>
  void start(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, Args... args) {
    if (status_ == 0) status_ = launch(kernel, grid, dim3(threads), shared_bytes, stream_, args...);
  }
  void fill(void* memory, int byte, int64_t num_bytes) {
    if (status_ == 0) status_ = clear(memory, byte, static_cast<size_t>(num_bytes), stream_);
  }
  CudaStatus status() const { return status_; }

 private:
  CudaStream stream_;
  CudaStatus status_ = 0;
};

template <Element type>
void look_up_slab(const DecideArgs& args, const Plan& plan, Launches& launches) {
  const int64_t num_rows = args.rows.num_rows, tiles = ceil_div(num_rows, kTileRows);
  const RowsArgs rows{args.lookup.features, args.lookup.row_stride, four_aligned(args.lookup), args.codes, args.rows};
  launches.start(convert_rows<type>, dim3(tiles), kBlockThreads, 0, rows, lanes_of_row(args.lookup.num_channels));
  launches.start(screen_rows, dim3(tiles, args.num_ranges), kScreenThreads, kScreenSharedBytes,
                 ScreenArgs{args.codes, args.rows, args.lists});
  launches.fill(args.num_undecided, 0, sizeof(uint32_t));
  launches.start(decide<type>, dim3(ceil_div(num_rows, kBlockWarps)), kBlockThreads, 0, args);
  const int num_blocks = static_cast<int>(plan.slots);
  launches.start(compare_all<type>, dim3(num_blocks), kBlockThreads, 0, args);
  launches.start(finish_compared<type>, dim3(ceil_div(num_rows, kBlockDistances)), kBlockThreads, 0, args, num_blocks);
}

}  // namespace

size_t packed_codebook_bytes_cuda(int64_t num_codes, int64_t num_channels) {
  Arrays arrays(nullptr);
  codes_in(arrays, num_codes, num_channels);
  return arrays.used();
}

size_t pack_codebook_workspace_bytes_cuda(int64_t num_codes, int64_t num_channels) {
  Arrays arrays(nullptr);
  table_in(arrays, num_codes, num_channels);
  return arrays.used();
}

CudaStatus pack_codebook_cuda(const float* codebook, int64_t num_codes, int64_t num_channels, void* packed,
                              void* workspace, CudaStream stream) {
  Arrays packed_arrays(packed), arrays(workspace);
  const CudaCodes codes = codes_in(packed_arrays, num_codes, num_channels);
  const CopyTable table = table_in(arrays, num_codes, num_channels);
  const int64_t warp_blocks = ceil_div(codes.num_codes, kBlockWarps), most_blocks = 8 * num_multiprocessors();
  const dim3 in_turn(warp_blocks < most_blocks ? warp_blocks : most_blocks);
  Launches launches(stream);
  launches.fill(codes.header, 0, sizeof(CudaCodesHeader));
  launches.fill(table.entries, 0xff, table.capacity * static_cast<int64_t>(sizeof(kEmpty)));
  launches.start(insert_codes, dim3(warp_blocks), kBlockThreads, 0, codebook, num_codes, num_channels, table);
  const int64_t channel_blocks = num_channels == 0 ? 1 : ceil_div(num_channels, kWarp);
  launches.start(sum_codes, dim3(channel_blocks, table.num_parts), kBlockThreads, 0, codebook, codes, table);
  launches.start(centre_codes, dim3(ceil_div(num_channels, kBlockThreads)), kBlockThreads, 0, codes, table);
  launches.start(measure_codes, in_turn, kBlockThreads, 0, codebook, codes, table);
  launches.start(pack_codes, in_turn, kBlockThreads, 0, codebook, codes, table);
  return launches.status();
}

size_t codebook_lookup_workspace_bytes_cuda(const CodebookLookupArgs& args) {
  if (args.num_rows == 0) return 0;
  Arrays arrays(nullptr);
  workspace_in(arrays, args, plan_of(args));
  return arrays.used();
}

CudaStatus codebook_lookup_cuda(const CodebookLookupArgs& args, const void* packed, void* workspace,
                                unsigned long long* counts, CudaStream stream) {
  if (args.num_rows == 0) return 0;
  Arrays packed_arrays(const_cast<void*>(packed)), arrays(workspace);
  const Plan plan = plan_of(args);
  const Workspace space = workspace_in(arrays, args, plan);
  DecideArgs slab{};
  slab.codes = codes_in(packed_arrays, args.num_codes, args.num_channels);
  slab.rows = space.rows;
  slab.lists = space.lists;
  slab.num_undecided = space.num_undecided;
  slab.undecided = space.undecided;
  slab.part_distance = space.part_distance;
  slab.part_code = space.part_code;
  slab.counts = counts;
  Launches launches(stream);
  for (int64_t first = 0; first < args.num_rows; first += plan.slab_rows) {
    const int64_t left = args.num_rows - first;
    slab.lookup = args;
    slab.lookup.features = row_at(args.features, first, args.row_stride, args.features_type);
    slab.lookup.index = args.index + first;
    slab.lookup.distance = args.distance == nullptr ? nullptr : args.distance + first;
    slab.lookup.num_rows = slab.rows.num_rows = left < plan.slab_rows ? left : plan.slab_rows;
    slab.num_ranges = static_cast<int32_t>(plan.num_ranges(slab.rows.num_rows));
    slab.lists.list_rows = ceil_div(slab.rows.num_rows, kTileRows) * kTileRows;
    for_element(args.features_type, [&]<Element type>() { look_up_slab<type>(slab, plan, launches); });
  }
  return launches.status();
}

CudaStatus gather_codes_cuda(const GatherCodesArgs& args, int64_t num_rows, CudaStream stream) {
  const dim3 grid(ceil_div(num_rows, kBlockWarps));
  const uintptr_t bits =
      reinterpret_cast<uintptr_t>(args.codebook) | reinterpret_cast<uintptr_t>(args.output) | args.row_bytes;
  if (bits % sizeof(uint4) == 0)
    return launch(gather_rows<uint4>, grid, dim3(kBlockThreads), 0, stream, args, num_rows);
  return launch(gather_rows<uint16_t>, grid, dim3(kBlockThreads), 0, stream, args, num_rows);
}

}  // namespace soho
