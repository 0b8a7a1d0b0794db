namespace soho {
namespace {
constexpr int kLanes = 8, kTileRows = 6;
}  // namespace
}  // namespace soho

#include "kernels/encoder/layer_loops.h"

namespace soho {

LayerKernels layer_kernels_avx2() { return kLayerKernels; }

}  // namespace soho
