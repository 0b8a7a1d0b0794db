// The CUDA execution model on a CPU: what common/cuda_device.cuh is replaced
// by when a .cu file is compiled by a C++ compiler. A thread is a fiber, a
// block runs alone, its threads in a random order that the seed fixes.
#pragma once

#include "device_words.h"
#include "execution.h"
#include "memory_words.h"
#include "warp_words.h"
