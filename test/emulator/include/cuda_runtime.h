#pragma once
// Stands in for CUDA's header when kernels are compiled as C++: what this project uses of the language and the runtime.
//   -x c++ -std=c++20 -DFAPO_EMULATE_CUDA -fno-strict-aliasing -Wno-unknown-pragmas
// Raw __shared__ does not compile: shared memory comes from cuda/device.cuh.
#include "cuda_emulator/device_functions.h"
#include "cuda_emulator/runtime_api.h"
