// SPDX-License-Identifier: MIT OR Apache-2.0
//
// All kernels as one translation unit. The plugin's build puts the files in the place of these lines, because NVRTC, which
// compiles them on machines without a CUDA toolkit, has no files to include.

#include "common.cuh"

#include "blend.cu"
#include "combine.cu"
#include "copy.cu"
#include "cosine.cu"
#include "interpolate.cu"
#include "posterior.cu"
#include "slerp.cu"

#include "resample.cuh"

#include "frame_to_tensor.cu"
#include "tensor_to_frame.cu"
