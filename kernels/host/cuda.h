// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Enough of CUDA C++ for the kernels of this project to be compiled for the CPU, and tested there: see run.cpp.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
// Blocks run one after the other.
#define __shared__ static

struct Index {
    unsigned x, y, z;
};

extern Index threadIdx, blockIdx, blockDim, gridDim;

// The block's dynamic shared memory, as long as the launch says.
extern float *dynamic_shared;
#define DYNAMIC_SHARED(name) float *const name = dynamic_shared

// Waits until all threads of the block, or of the warp, have come here.
void barrier(bool warp);
// What the thread of this lane of the warp handed over, after all threads of the warp have handed over something.
float exchange(float value, unsigned lane);

static inline void __syncthreads() { barrier(false); }

static inline float __shfl_down_sync(unsigned mask, float value, unsigned distance) {
    if (mask != 0xffffffffu)
        __builtin_trap();
    const unsigned lane = threadIdx.x % 32;
    // A lane that has none below gets its own back.
    return exchange(value, lane + distance < 32 ? lane + distance : lane);
}

// Threads take turns, so what one has written the next one sees.
static inline void __threadfence() {}
static inline unsigned atomicAdd(unsigned *at, unsigned value) {
    const unsigned before = *at;
    *at += value;
    return before;
}

// Between IEEE 754 binary16 and binary32, by the definitions of the two formats.
static inline float from_half(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31)
        return fraction ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexpf((float)fraction, -24);
    return sign * ldexpf((float)(1024 + fraction), exponent - 25);
}

static inline unsigned short to_half(float value) {
    const unsigned short sign = signbit(value) ? 0x8000 : 0;
    if (isnan(value))
        return 0x7fff;
    const double size = fabs((double)value);
    // The largest number is 65504; from half a step above it on, rounding gives infinity.
    if (size >= 65520.0)
        return sign | 0x7c00;
    int exponent = size > 0 ? ilogb(size) : -14;
    if (exponent < -14)
        exponent = -14;
    // In steps of the last place: an integer of eleven bits, rounded to even (the default rounding).
    const double steps = nearbyint(ldexp(size, 10 - exponent));
    // A carry into the next exponent is what the addition of the two fields does.
    return sign | (unsigned short)(((exponent + 14) << 10) + (int)steps);
}
