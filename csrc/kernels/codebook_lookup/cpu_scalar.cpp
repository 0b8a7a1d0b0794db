// The readable level: every distance in float64, nothing screened.
#include <limits>

#include "common/float_environment.h"
#include "kernels/codebook_lookup/passes.h"

namespace soho {
namespace {

constexpr int kLanes = 8;

double squared_distance(const void* row, Element type, const float* code, int64_t num_channels) {
  double sum[kLanes] = {};
  for (int64_t c = 0; c < num_channels; ++c) {
    const double difference = static_cast<double>(load_element(row, c, type)) - static_cast<double>(code[c]);
    sum[c % kLanes] += difference * difference;
  }
  for (int width = kLanes / 2; width >= 1; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  }
  return sum[0];
}

}  // namespace

LookupCounts compare_all_scalar(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  DefaultFloatEnvironment environment;
  LookupCounts counts;
  for (int64_t i = begin; i < end; ++i) {
    if (args.index[i] >= 0) continue;
    const void* row = row_at(args.features, i, args.row_stride, args.features_type);
    int64_t nearest = 0;
    double smallest = std::numeric_limits<double>::infinity();
    for (int64_t k = 0; k < screened.num_distinct; ++k) {
      const int64_t j = screened.codes[k];
      const float* code = args.codebook + j * args.num_channels;
      const double distance = squared_distance(row, args.features_type, code, args.num_channels);
      if (distance < smallest) {
        smallest = distance;
        nearest = j;
      }
    }
    args.index[i] = nearest;
    ++counts.compared;
    if (args.distance != nullptr) {
      const float* code = args.codebook + nearest * args.num_channels;
      args.distance[i] = static_cast<float>(squared_distance(row, args.features_type, code, args.num_channels));
    }
  }
  return counts;
}

}  // namespace soho
