// Certified lookup on a GPU; sm_80 and newer.
//
// Packing a codebook (cuda_codes.cuh): insert_codes finds copies, sum_codes and centre_codes the mean of the distinct
// codes, measure_codes the scale, pack_codes writes float16. A lookup takes the rows in slabs, so that its workspace
// has a bound: as many codebooks with all their rows as one slab holds, or a part of the rows of one; of each slab
//   convert_rows (cuda_rows.cuh)      centres, scales and rounds the rows and bounds the error of their scores
//   screen_rows (cuda_screen.cuh)     scores on tensor cores; what lies within the window of the best goes to a list
//   decide (cuda_decide.cuh)          a single candidate is the nearest code; more are compared in float64
//   compare_all, finish_compared      rows whose candidates did not fit, against all codes in float32, then float64
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
constexpr int64_t kBlocksPerMultiprocessor = 2;   // of screen_rows, see kSharedOfTwo
constexpr int64_t kMostRanges = 16;               // of codes, where there are few rows
constexpr int64_t kMostBooks = 65535;             // of a launch: blocks along z

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

// The first of some packed codebooks.
CudaCodes codes_in(void* packed, int64_t num_codes, int64_t num_channels) {
  Arrays arrays(packed);
  const int64_t padded_codes = ceil_div(num_codes, kTileCodes) * kTileCodes;
  CudaCodes codes{};
  codes.num_codes = num_codes;
  codes.num_channels = num_channels;
  codes.padded_channels = padded_channels(num_channels);
  codes.header = arrays.next<CudaCodesHeader>(1);
  codes.centre = arrays.next<float>(codes.padded_channels);
  codes.negated_half = arrays.next<float>(padded_codes);
  codes.panel = arrays.next<uint16_t>(padded_codes * codes.padded_channels);
  codes.block_bytes = static_cast<int64_t>(arrays.used());
  return codes;
}

CopyTable table_in(Arrays& arrays, int64_t num_books, int64_t num_codes, int64_t num_channels) {
  CopyTable table{};
  table.capacity = 16;
  while (table.capacity < 2 * num_codes) table.capacity *= 2;
  table.entries = arrays.next<unsigned long long>(num_books * table.capacity);
  table.entry_of = arrays.next<int64_t>(num_books * num_codes);
  const int64_t parts = ceil_div(num_codes, kCodesOfSumPart);
  table.num_parts = static_cast<int>(parts < kMostSumParts ? parts : kMostSumParts);
  table.partial_sums = arrays.next<double>(num_books * table.num_parts * num_channels);
  return table;
}

// How many rows of how many codebooks go together, and over how many ranges of codes their blocks are spread.
struct Plan {
  int64_t slab_rows;   // of each codebook, whole tiles
  int64_t slab_books;  // 1 where a codebook has more rows than a slab
  int64_t slots;       // blocks of screen_rows at a time
  int64_t code_tiles;
  int64_t num_ranges(int64_t num_books, int64_t num_rows) const {
    const int64_t wanted = slots / (num_books * ceil_div(num_rows, kTileRows));
    const int64_t most = code_tiles < kMostRanges ? code_tiles : kMostRanges;
    return wanted < 1 ? 1 : wanted < most ? wanted : most;
  }
  // Of compare_all, to a codebook.
  int64_t compare_blocks(int64_t num_books) const { return slots < num_books ? 1 : slots / num_books; }
};

Plan plan_of(const CodebookLookupArgs& args, int64_t num_books) {
  const int64_t slots = num_multiprocessors() * kBlocksPerMultiprocessor;
  const int64_t wave_bytes = slots * kTileRows * padded_channels(args.num_channels) * 2;
  int64_t waves = kSlabBytes / wave_bytes;
  waves = waves < 1 ? 1 : waves < kMostWaves ? waves : kMostWaves;
  const int64_t all = ceil_div(args.num_rows, kTileRows), most = waves * slots;
  int64_t books = all < most ? most / all : 1;
  for (const int64_t limit : {num_books, kMostBooks}) books = books < limit ? books : limit;
  return {(all < most ? all : most) * kTileRows, books, slots, ceil_div(args.num_codes, kTileCodes)};
}

struct Workspace {
  CudaRows rows;
  CudaLists lists;
  uint32_t* num_undecided;
  int32_t* undecided;
  double* part_distance;
  int32_t* part_code;
};

Workspace workspace_in(Arrays& arrays, const CodebookLookupArgs& args, int64_t num_books, const Plan& plan) {
  // A smaller slab at the end is spread over more ranges and blocks, but over no more than `slots` blocks in all.
  int64_t items = 0, parts = 0;
  const auto make_room = [&](int64_t books, int64_t num_rows) {
    if (books == 0 || num_rows == 0) return;
    const int64_t padded_rows = ceil_div(num_rows, kTileRows) * kTileRows;
    const int64_t own_items = books * padded_rows * plan.num_ranges(books, num_rows);
    const int64_t groups = ceil_div(padded_rows, kRowsOfItem), blocks = plan.compare_blocks(books);
    const int64_t own_parts = books * (groups > blocks ? groups : blocks) * kRowsOfItem;
    items = own_items > items ? own_items : items;
    parts = own_parts > parts ? own_parts : parts;
  };
  make_room(plan.slab_books, args.num_rows < plan.slab_rows ? args.num_rows : plan.slab_rows);
  make_room(plan.slab_books, args.num_rows % plan.slab_rows);
  make_room(num_books % plan.slab_books, args.num_rows);
  const int64_t rows = plan.slab_books * plan.slab_rows;
  Workspace space{};
  space.rows.panel = arrays.next<uint16_t>(rows * padded_channels(args.num_channels));
  space.rows.window = arrays.next<float>(rows);
  space.rows.ratio = arrays.next<float>(rows);
  space.lists.best = arrays.next<float>(items);
  space.lists.count = arrays.next<int32_t>(items);
  space.lists.position = arrays.next<int32_t>(items * kListSize);
  space.lists.score = arrays.next<float>(items * kListSize);
  space.num_undecided = arrays.next<uint32_t>(plan.slab_books);
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
void look_up_slab(const DecideArgs& args, int64_t num_books, const Plan& plan, Launches& launches) {
  const auto books = static_cast<unsigned>(num_books);
  const int64_t num_rows = args.rows.num_rows, tiles = args.rows.book_rows / kTileRows;
  const RowsArgs rows{args.lookup.features, args.lookup.row_stride, four_aligned(args.lookup), args.codes, args.rows};
  const int lanes = lanes_of_row(args.lookup.num_channels);
  launches.start(convert_rows<type>, dim3(ceil_div(args.rows.book_rows * lanes, kBlockThreads), 1, books),
                 kBlockThreads, 0, rows, lanes);
  const auto screen = [&]<int stages>() {
    launches.start(screen_rows<stages>, dim3(tiles, args.num_ranges, books), kScreenThreads,
                   sizeof(ScreenShared<stages>), ScreenArgs{args.codes, args.rows, args.lists});
  };
  kSharedOfTwo<3> <= shared_bytes_of_multiprocessor() ? screen.template operator()<3>()
                                                      : screen.template operator()<2>();
  launches.fill(args.num_undecided, 0, num_books * static_cast<int64_t>(sizeof(uint32_t)));
  launches.start(decide<type>, dim3(ceil_div(num_rows, kBlockWarps), 1, books), kBlockThreads, 0, args);
  const int num_blocks = static_cast<int>(plan.compare_blocks(num_books));
  launches.start(compare_all<type>, dim3(num_blocks, 1, books), kBlockThreads, 0, args);
  launches.start(finish_compared<type>, dim3(ceil_div(num_rows, kBlockDistances), 1, books), kBlockThreads, 0, args,
                 num_blocks);
}

}  // namespace

size_t packed_codebook_bytes_cuda(int64_t num_codes, int64_t num_channels) {
  return static_cast<size_t>(codes_in(nullptr, num_codes, num_channels).block_bytes);
}

size_t pack_codebook_workspace_bytes_cuda(int64_t num_books, int64_t num_codes, int64_t num_channels) {
  Arrays arrays(nullptr);
  table_in(arrays, num_books < kMostBooks ? num_books : kMostBooks, num_codes, num_channels);
  return arrays.used();
}

CudaStatus pack_codebook_cuda(const float* codebook, int64_t num_books, int64_t num_codes, int64_t num_channels,
                              void* packed, void* workspace, CudaStream stream) {
  Launches launches(stream);
  for (int64_t first = 0; first < num_books; first += kMostBooks) {
    const int64_t left = num_books - first;
    const auto books = static_cast<unsigned>(left < kMostBooks ? left : kMostBooks);
    Arrays arrays(workspace);
    const auto block_bytes = static_cast<int64_t>(packed_codebook_bytes_cuda(num_codes, num_channels));
    const PackArgs args{codebook + first * num_codes * num_channels,
                        codes_in(static_cast<char*>(packed) + first * block_bytes, num_codes, num_channels),
                        table_in(arrays, books, num_codes, num_channels)};
    const int64_t warp_blocks = ceil_div(num_codes, kBlockWarps), most_blocks = 8 * num_multiprocessors();
    const dim3 in_turn(warp_blocks < most_blocks ? warp_blocks : most_blocks, 1, books);
    launches.fill(args.table.entries, 0xff, books * args.table.capacity * static_cast<int64_t>(sizeof(kEmpty)));
    launches.start(insert_codes, dim3(warp_blocks, 1, books), kBlockThreads, 0, args);
    const int64_t channel_blocks = num_channels == 0 ? 1 : ceil_div(num_channels, kWarp);
    launches.start(sum_codes, dim3(channel_blocks, args.table.num_parts, books), kBlockThreads, 0, args);
    launches.start(centre_codes, dim3(ceil_div(num_channels, kBlockThreads), 1, books), kBlockThreads, 0, args);
    launches.start(measure_codes, in_turn, kBlockThreads, 0, args);
    launches.start(pack_codes, in_turn, kBlockThreads, 0, args);
  }
  return launches.status();
}

size_t codebook_lookup_workspace_bytes_cuda(const CodebookLookupArgs& args, int64_t num_books) {
  if (args.num_rows == 0 || num_books == 0) return 0;
  Arrays arrays(nullptr);
  workspace_in(arrays, args, num_books, plan_of(args, num_books));
  return arrays.used();
}

CudaStatus codebook_lookup_cuda(const CodebookLookupArgs& args, int64_t num_books, const void* packed, void* workspace,
                                unsigned long long* counts, CudaStream stream) {
  if (args.num_rows == 0 || num_books == 0) return 0;
  Arrays arrays(workspace);
  const Plan plan = plan_of(args, num_books);
  const Workspace space = workspace_in(arrays, args, num_books, plan);
  DecideArgs slab{};
  slab.lookup = args;
  slab.rows = space.rows;
  slab.lists = space.lists;
  slab.num_undecided = space.num_undecided;
  slab.undecided = space.undecided;
  slab.part_distance = space.part_distance;
  slab.part_code = space.part_code;
  slab.counts = counts;
  const CudaCodes first_codes = codes_in(const_cast<void*>(packed), args.num_codes, args.num_channels);
  Launches launches(stream);
  for (int64_t first_book = 0; first_book < num_books; first_book += plan.slab_books) {
    const int64_t books_left = num_books - first_book;
    const int64_t books = books_left < plan.slab_books ? books_left : plan.slab_books;
    slab.codes = codes_in(reinterpret_cast<char*>(first_codes.header) + first_book * first_codes.block_bytes,
                          args.num_codes, args.num_channels);
    slab.lookup.codebook = args.codebook + first_book * args.num_codes * args.num_channels;
    for (int64_t first_row = 0; first_row < args.num_rows; first_row += plan.slab_rows) {
      const int64_t first = first_book * args.num_rows + first_row, left = args.num_rows - first_row;
      slab.lookup.features = row_at(args.features, first, args.row_stride, args.features_type);
      slab.lookup.index = args.index + first;
      slab.lookup.distance = args.distance == nullptr ? nullptr : args.distance + first;
      slab.lookup.num_rows = slab.rows.num_rows = left < plan.slab_rows ? left : plan.slab_rows;
      slab.rows.book_rows = ceil_div(slab.rows.num_rows, kTileRows) * kTileRows;
      slab.num_ranges = static_cast<int32_t>(plan.num_ranges(books, slab.rows.num_rows));
      const int64_t groups = slab.rows.book_rows / kRowsOfItem, blocks = plan.compare_blocks(books);
      slab.book_parts = (groups > blocks ? groups : blocks) * kRowsOfItem;
      for_element(args.features_type, [&]<Element type>() { look_up_slab<type>(slab, books, plan, launches); });
    }
  }
  return launches.status();
}

CudaStatus gather_codes_cuda(const GatherCodesArgs& args, int64_t num_rows, int64_t book_rows, CudaStream stream) {
  const dim3 grid(ceil_div(num_rows, kBlockWarps));
  const uintptr_t bits =
      reinterpret_cast<uintptr_t>(args.codebook) | reinterpret_cast<uintptr_t>(args.output) | args.row_bytes;
  if (bits % sizeof(uint4) == 0)
    return launch(gather_rows<uint4>, grid, dim3(kBlockThreads), 0, stream, args, num_rows, book_rows);
  return launch(gather_rows<uint16_t>, grid, dim3(kBlockThreads), 0, stream, args, num_rows, book_rows);
}

}  // namespace soho
