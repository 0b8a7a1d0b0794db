// The readable level: every distance or similarity in float64, nothing screened.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "common/float_environment.h"
#include "kernels/codebook_lookup/passes.h"

namespace soho {
namespace {

constexpr int kLanes = 8;

// The sum of term(c) over the channels.
template <class Term>
double sum_of(int64_t num_channels, Term term) {
  double sum[kLanes] = {};
  for (int64_t c = 0; c < num_channels; ++c) sum[c % kLanes] += term(c);
  for (int width = kLanes / 2; width >= 1; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  }
  return sum[0];
}

// A row against codes.
class Comparison {
 public:
  Comparison(const CodebookLookupArgs& args, int64_t i)
      : args_(args), row_(row_at(args.features, i, args.row_stride, args.features_type)) {}

  double channel(int64_t c) const { return load_element(row_, c, args_.features_type); }

  // The squared distance of a code, or its similarity; of kCosine the dot product over |d|.
  double with(const float* code) const {
    const auto difference = [&](int64_t c) { return channel(c) - static_cast<double>(code[c]); };
    if (args_.metric == Metric::kEuclidean)
      return sum_of(args_.num_channels, [&](int64_t c) { return difference(c) * difference(c); });
    const double dot = sum_of(args_.num_channels, [&](int64_t c) { return channel(c) * static_cast<double>(code[c]); });
    return args_.metric == Metric::kDot ? dot : dot / norm_of([&](int64_t c) { return static_cast<double>(code[c]); });
  }

  double row_norm() const {
    return norm_of([&](int64_t c) { return channel(c); });
  }

 private:
  template <class Value>
  double norm_of(Value value) const {
    const double square = sum_of(args_.num_channels, [&](int64_t c) { return value(c) * value(c); });
    return square == 0.0 ? 1.0 : std::sqrt(square);
  }

  const CodebookLookupArgs& args_;
  const void* const row_;
};

// The topk nearest codes of row i, of all codes and their copies.
void write_nearest(const CodebookLookupArgs& args, int64_t i) {
  const Comparison row(args, i);
  std::vector<std::pair<double, int64_t>> ranked(args.num_codes);
  for (int64_t j = 0; j < args.num_codes; ++j) {
    const double value = row.with(args.codebook + j * args.num_channels);
    const double cost = args.metric == Metric::kEuclidean ? value : -value;
    ranked[j] = {std::isfinite(cost) ? cost : std::numeric_limits<double>::infinity(), j};
  }
  std::partial_sort(ranked.begin(), ranked.begin() + args.topk, ranked.end());
  args.index[i] = ranked[0].second;
  for (int64_t n = 0; n < args.topk; ++n) {
    const int64_t j = ranked[n].second;
    args.top_index[i * args.topk + n] = j;
    if (args.distance == nullptr) continue;
    const double value = row.with(args.codebook + j * args.num_channels);
    args.distance[i * args.topk + n] =
        static_cast<float>(args.metric == Metric::kCosine ? value / row.row_norm() : value);
  }
}

}  // namespace

LookupCounts compare_all_scalar(const CodebookLookupArgs& args, const ScreenedCodes& screened, int64_t begin,
                                int64_t end) {
  DefaultFloatEnvironment environment;
  LookupCounts counts;
  for (int64_t i = begin; i < end; ++i) {
    if (args.index[i] >= 0) continue;
    const Comparison row(args, i);
    const double sign = args.metric == Metric::kEuclidean ? 1.0 : -1.0;
    const auto code = [&](int64_t j) { return args.codebook + j * args.num_channels; };
    int64_t nearest = 0;
    double smallest = std::numeric_limits<double>::infinity();
    for (int64_t k = 0; args.topk == 1 && k < screened.num_distinct; ++k) {
      const double cost = sign * row.with(code(screened.codes[k]));
      if (std::isfinite(cost) && cost < smallest) {
        smallest = cost;
        nearest = screened.codes[k];
      }
    }
    ++counts.compared;
    if (args.topk > 1) {
      write_nearest(args, i);
      continue;
    }
    args.index[i] = nearest;
    if (args.distance != nullptr) {
      const double value = row.with(code(nearest));
      args.distance[i] = static_cast<float>(args.metric == Metric::kCosine ? value / row.row_norm() : value);
    }
  }
  return counts;
}

}  // namespace soho
