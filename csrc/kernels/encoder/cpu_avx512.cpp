namespace soho {
namespace {
constexpr int kLanes = 16, kTileRows = 12;
}  // namespace
}  // namespace soho

#include "kernels/encoder/layer_loops.h"

namespace soho {

LayerKernels layer_kernels_avx512() { return kLayerKernels; }

}  // namespace soho
