#include <cmath>
#include <cstring>
#include <numeric>

#include "check.h"
#include "kernels/encoder/encoder.h"

namespace {

using namespace soho;

// Sizes, rows and weights; all floats in one vector, so that one direction goes through all of them: the parameters of
// each layer, then the shared rows.
struct Problem {
  int64_t num_layers, num_channels, num_inner, num_heads, num_shared;
  std::vector<int64_t> row_begin{0}, read_begin{0}, shared_row{}, read_row{};

  std::vector<int64_t> sizes() const {
    const int64_t D = num_channels, F = num_inner;
    std::vector<int64_t> all;
    for (int64_t layer = 0; layer < num_layers; ++layer)
      all.insert(all.end(), {D * D, D, D * D, D, D * D, D, D * D, D, D, D, F * D, F, D * F, D, D, D});
    all.push_back(num_shared * D);
    return all;
  }
};

// One row of pairs that grow, of which each third is read.
Problem make_problem(int64_t num_layers, int64_t head_channels, int64_t num_inner, int64_t num_heads, int64_t num_pairs,
                     int64_t longest) {
  Problem problem{num_layers, head_channels * num_heads, num_inner, num_heads, longest + 3};
  for (int64_t p = 0; p < num_pairs; ++p) {
    const int64_t length = 1 + (p * 7 + longest - 1) % longest;
    for (int64_t i = 0; i < length; ++i) {
      if (i % 3 == 0) problem.read_row.push_back(static_cast<int64_t>(problem.shared_row.size()));
      problem.shared_row.push_back((i * 5 + p) % problem.num_shared);
    }
    problem.row_begin.push_back(static_cast<int64_t>(problem.shared_row.size()));
    problem.read_begin.push_back(static_cast<int64_t>(problem.read_row.size()));
  }
  return problem;
}

using Rows = std::vector<std::vector<double>>;

Rows linear(const Rows& rows, const double* weight, const double* bias, int64_t num_out) {
  Rows out;
  for (const std::vector<double>& row : rows) {
    out.emplace_back(bias, bias + num_out);
    for (int64_t o = 0; o < num_out; ++o)
      out.back()[o] = std::inner_product(row.begin(), row.end(), weight + o * row.size(), bias[o]);
  }
  return out;
}

// LayerNorm(rows + residual).
Rows norm(Rows rows, const Rows& residual, const double* weight, const double* bias, double eps) {
  for (size_t i = 0; i < rows.size(); ++i) {
    std::vector<double>& row = rows[i];
    double mean = 0, variance = 0;
    for (size_t c = 0; c < row.size(); ++c) mean += (row[c] += residual[i][c]) / static_cast<double>(row.size());
    for (const double value : row) variance += (value - mean) * (value - mean) / static_cast<double>(row.size());
    for (size_t c = 0; c < row.size(); ++c) row[c] = (row[c] - mean) / std::sqrt(variance + eps) * weight[c] + bias[c];
  }
  return rows;
}

// The states that are read, in double and pair by pair.
std::vector<double> reference(const Problem& problem, const std::vector<double>& values) {
  const int64_t D = problem.num_channels, E = D / problem.num_heads;
  std::vector<const double*> at{values.data()};
  for (const int64_t size : problem.sizes()) at.push_back(at.back() + size);
  const double* const shared = at[at.size() - 2];
  std::vector<double> read;
  for (size_t p = 0; p + 1 < problem.row_begin.size(); ++p) {
    Rows rows;
    for (int64_t i = problem.row_begin[p]; i < problem.row_begin[p + 1]; ++i)
      rows.emplace_back(shared + problem.shared_row[i] * D, shared + (problem.shared_row[i] + 1) * D);
    for (int64_t layer = 0; layer < problem.num_layers; ++layer) {
      const double* const* of = at.data() + layer * kEncoderParameters;
      const Rows query = linear(rows, of[kQuery], of[kQuery + 1], D), key = linear(rows, of[kKey], of[kKey + 1], D);
      const Rows value = linear(rows, of[kValue], of[kValue + 1], D);
      Rows context(rows.size(), std::vector<double>(D, 0.0));
      for (size_t i = 0; i < rows.size(); ++i) {
        for (int64_t c = 0; c < D; c += E) {
          std::vector<double> share;
          for (const std::vector<double>& other : key)
            share.push_back(std::exp(std::inner_product(&query[i][c], &query[i][c] + E, &other[c], 0.0) /
                                     std::sqrt(static_cast<double>(E))));
          const double total = std::accumulate(share.begin(), share.end(), 0.0);
          for (size_t j = 0; j < rows.size(); ++j) {
            for (int64_t e = c; e < c + E; ++e) context[i][e] += share[j] / total * value[j][e];
          }
        }
      }
      const Rows attended = norm(linear(context, of[kOutput], of[kOutput + 1], D), rows, of[kAttentionNorm],
                                 of[kAttentionNorm + 1], 1e-5);
      Rows inner = linear(attended, of[kUp], of[kUp + 1], problem.num_inner);
      for (std::vector<double>& row : inner) {
        for (double& x : row) x *= 0.5 * std::erfc(-x * std::sqrt(0.5));
      }
      rows = norm(linear(inner, of[kDown], of[kDown + 1], D), attended, of[kNorm], of[kNorm + 1], 1e-6);
    }
    for (int64_t i = problem.read_begin[p]; i < problem.read_begin[p + 1]; ++i) {
      const std::vector<double>& row = rows[problem.read_row[i] - problem.row_begin[p]];
      read.insert(read.end(), row.begin(), row.end());
    }
  }
  return read;
}

struct Result {
  std::vector<float> hidden, grads;
};

Result run(CpuLevel level, const Problem& problem, const std::vector<float>& values, const std::vector<float>& grad,
           int num_parts) {
  Result result{std::vector<float>(grad.size(), -7.0f), std::vector<float>(values.size(), -7.0f)};
  std::vector<const float*> parameters{values.data()};
  std::vector<float*> grads{result.grads.data()};
  for (const int64_t size : problem.sizes()) {
    parameters.push_back(parameters.back() + size);
    grads.push_back(grads.back() + size);
  }
  const int64_t number = problem.num_layers * kEncoderParameters;
  EncoderArgs args{};
  args.rows = {static_cast<int64_t>(problem.row_begin.size()) - 1,
               problem.num_shared,
               static_cast<int64_t>(problem.shared_row.size()),
               static_cast<int64_t>(problem.read_row.size()),
               problem.row_begin.data(),
               problem.read_begin.data(),
               problem.shared_row.data(),
               problem.read_row.data()};
  args.num_layers = problem.num_layers, args.num_channels = problem.num_channels;
  args.num_inner = problem.num_inner, args.num_heads = problem.num_heads;
  args.attention_norm_eps = 1e-5f, args.norm_eps = 1e-6f;
  args.parameters = parameters.data(), args.shared = parameters[number];
  std::vector<std::vector<float>> memory;
  std::vector<float*> kept;
  for (int64_t layer = 0; layer < problem.num_layers; ++layer) {
    memory.emplace_back(encoder_kept_floats(args, layer));
    kept.push_back(memory.back().data());
  }
  args.kept = kept.data();
  encoder_forward(level, args, result.hidden.data(), parts(num_parts));
  encoder_backward(level, args, grad.data(), grads.data(), grads[number], parts(num_parts));
  return result;
}

// States against double, gradients against the reference's difference along three directions.
void compare(const Problem& problem) {
  const std::vector<int64_t> sizes = problem.sizes();
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  const std::vector<float> values = normal(total, 1, 0.3f);
  const std::vector<float> grad = normal(static_cast<int64_t>(problem.read_row.size()) * problem.num_channels, 2);
  const std::vector<double> expected = reference(problem, {values.begin(), values.end()});
  std::vector<double> slopes;
  for (unsigned seed : {3, 4, 5}) {
    const std::vector<float> direction = normal(total, seed);
    double change = 0;
    for (const double step : {1e-5, -1e-5}) {
      std::vector<double> moved(values.begin(), values.end());
      for (int64_t i = 0; i < total; ++i) moved[i] += step * direction[i];
      const std::vector<double> hidden = reference(problem, moved);
      for (size_t i = 0; i < grad.size(); ++i) change += grad[i] * hidden[i] / (2 * step);
    }
    slopes.push_back(change);
  }
  for (CpuLevel level : available_cpu_levels()) {
    const Result got = run(level, problem, values, grad, 1), again = run(level, problem, values, grad, 3);
    CHECK(got.hidden == again.hidden && got.grads == again.grads);
    for (size_t i = 0; i < expected.size(); ++i) CHECK(std::abs(got.hidden[i] - expected[i]) < 1e-5);
    const double size = std::sqrt(std::inner_product(got.grads.begin(), got.grads.end(), got.grads.begin(), 0.0));
    for (unsigned seed : {3, 4, 5}) {
      const std::vector<float> direction = normal(total, seed);
      const double slope = std::inner_product(direction.begin(), direction.end(), got.grads.begin(), 0.0);
      CHECK(std::abs(slope - slopes[seed - 3]) < 1e-5 * size);
    }
  }
}

}  // namespace

void test_encoder() {
  compare(make_problem(1, 5, 7, 1, 1, 1));
  compare(make_problem(2, 7, 37, 3, 5, 11));
  compare(make_problem(3, 16, 64, 2, 9, 40));
  compare(make_problem(1, 65, 540, 2, 3, 19));
}
