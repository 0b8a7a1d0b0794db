namespace soho {
namespace {
constexpr int kLanes = 4, kTileRows = 6;
}  // namespace
}  // namespace soho

#include "kernels/encoder/layer_loops.h"

namespace soho {

LayerKernels layer_kernels_scalar() { return kLayerKernels; }

}  // namespace soho
