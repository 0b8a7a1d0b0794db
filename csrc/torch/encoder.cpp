#include "kernels/encoder/encoder.h"

#include <tuple>

#include "torch/tensors.h"
#include "torch/threads.h"

namespace soho {
namespace {

const float* float_data(const Tensor& tensor) {
  if (tensor.scalar_type() != ScalarType::Float || !tensor.is_contiguous())
    throw std::invalid_argument("encoder: expected contiguous float32 tensors");
  return tensor.const_data_ptr<float>();
}

// The plain arguments of a call; `parameters` and `kept` are what they point to.
struct Call {
  std::vector<const float*> parameters;
  std::vector<float*> kept;
  EncoderArgs args{};

  // row_begin (P + 1), read_begin (P + 1), shared_row (N), read_row (M): int64. sizes: layers, channels of the
  // feed-forward network, heads.
  Call(const Tensor& shared, const std::vector<Tensor>& rows, const std::vector<Tensor>& of_layers,
       const std::vector<int64_t>& sizes, double attention_norm_eps, double norm_eps) {
    for (const Tensor& parameter : of_layers) parameters.push_back(float_data(parameter));
    args.rows = {rows[0].numel() - 1,
                 shared.size(0),
                 rows[2].numel(),
                 rows[3].numel(),
                 rows[0].const_data_ptr<int64_t>(),
                 rows[1].const_data_ptr<int64_t>(),
                 rows[2].const_data_ptr<int64_t>(),
                 rows[3].const_data_ptr<int64_t>()};
    args.num_layers = sizes[0], args.num_inner = sizes[1], args.num_heads = sizes[2];
    args.num_channels = shared.size(1);
    args.attention_norm_eps = static_cast<float>(attention_norm_eps);
    args.norm_eps = static_cast<float>(norm_eps);
    args.parameters = parameters.data();
    args.shared = float_data(shared);
  }

  void keep(const std::vector<Tensor>& tensors) {
    for (const Tensor& tensor : tensors) kept.push_back(tensor.mutable_data_ptr<float>());
    args.kept = kept.data();
  }
};

std::tuple<Tensor, std::vector<Tensor>> encoder_forward_cpu(Tensor shared, std::vector<Tensor> rows,
                                                            std::vector<Tensor> parameters, std::vector<int64_t> sizes,
                                                            double attention_norm_eps, double norm_eps) {
  Call call(shared, rows, parameters, sizes, attention_norm_eps, norm_eps);
  std::vector<Tensor> kept;
  for (int64_t layer = 0; layer < sizes[0]; ++layer)
    kept.push_back(empty_cpu({encoder_kept_floats(call.args, layer)}, ScalarType::Float));
  call.keep(kept);
  const Tensor hidden = empty_cpu({call.args.rows.num_reads, call.args.num_channels}, ScalarType::Float);
  encoder_forward(active_cpu_level(), call.args, hidden.mutable_data_ptr<float>(), intra_op_threads);
  return {hidden, kept};
}

std::tuple<Tensor, std::vector<Tensor>> encoder_backward_cpu(Tensor grad_hidden, Tensor shared,
                                                             std::vector<Tensor> rows, std::vector<Tensor> parameters,
                                                             std::vector<Tensor> kept, std::vector<int64_t> sizes,
                                                             double attention_norm_eps, double norm_eps) {
  Call call(shared, rows, parameters, sizes, attention_norm_eps, norm_eps);
  call.keep(kept);
  std::vector<Tensor> grads;
  std::vector<float*> pointers;
  for (const Tensor& parameter : parameters) {
    grads.push_back(empty_cpu(shape_of(parameter), ScalarType::Float));
    pointers.push_back(grads.back().mutable_data_ptr<float>());
  }
  const Tensor grad_shared = empty_cpu(shape_of(shared), ScalarType::Float);
  encoder_backward(active_cpu_level(), call.args, float_data(grad_hidden), pointers.data(),
                   grad_shared.mutable_data_ptr<float>(), intra_op_threads);
  return {grad_shared, grads};
}

STABLE_TORCH_LIBRARY_FRAGMENT(soho_fast, library) {
  library.def(
      "encoder_forward_cpu(Tensor shared, Tensor[] rows, Tensor[] parameters, int[] sizes, float attention_norm_eps, "
      "float norm_eps) -> (Tensor, Tensor[])");
  library.def(
      "encoder_backward_cpu(Tensor grad_hidden, Tensor shared, Tensor[] rows, Tensor[] parameters, Tensor[] kept, "
      "int[] sizes, float attention_norm_eps, float norm_eps) -> (Tensor, Tensor[])");
}

STABLE_TORCH_LIBRARY_IMPL(soho_fast, CPU, library) {
  library.impl("encoder_forward_cpu", TORCH_BOX(&encoder_forward_cpu));
  library.impl("encoder_backward_cpu", TORCH_BOX(&encoder_backward_cpu));
}

}  // namespace
}  // namespace soho
