// The kernels without torch: everything a C++ program needs, installed by CMake. examples/kernels_without_torch uses
// it.
#pragma once

#include "common/cpu_level.h"
#include "common/element.h"
#include "common/memory.h"
#include "kernels/codebook_lookup/codebook_lookup.h"
#include "kernels/codebook_lookup/packed_codebook.h"
#include "kernels/codebook_update/codebook_update.h"
#include "kernels/group_mask/group_mask.h"
