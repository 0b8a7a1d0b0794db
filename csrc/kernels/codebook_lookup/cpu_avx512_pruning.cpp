// Low-dimensional pruning on processors that have AVX-512 VNNI and BF16: for many channels, projections in bfloat16.
#include "kernels/codebook_lookup/pruning_avx512.h"

namespace soho {

const PruningPass kPruningAvx512Bf16 = pruning_pass<SiftingAvx512<DotBFloat16, ScreeningType::kBFloat16>>();

}  // namespace soho
