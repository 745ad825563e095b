// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Enough of CUDA C++ for the kernels of this project to be compiled for the CPU, and tested there: see launch.h.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads, blocks)
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

static inline float __shfl_up_sync(unsigned mask, float value, unsigned distance) {
    if (mask != 0xffffffffu)
        __builtin_trap();
    const unsigned lane = threadIdx.x % 32;
    // A lane that has none above gets its own back.
    return exchange(value, lane >= distance ? lane - distance : lane);
}

// Threads take turns, so what one has written the next one sees.
static inline void __threadfence() {}
static inline unsigned atomicAdd(unsigned *at, unsigned value) {
    const unsigned before = *at;
    *at += value;
    return before;
}

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Between IEEE 754 binary16 (5 bits of exponent, biased by 15, 10 of fraction) and binary32 (8, 127, 23).
static inline float from_half(unsigned short bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) {
        const float size = (float)fraction * 0x1p-24f;
        return sign ? -size : size;
    }
    return float_of(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

static inline float reciprocal(float value) { return 1 / value; }

// To 0…1; what is no number becomes 0.
static inline float saturate(float value) { return fminf(fmaxf(value, 0), 1); }

// Bytes 0…3 of a and 4…7 of b, as the four lowest hexadecimal digits of `selector` say, the last digit's byte first.
static inline uint32_t bytes_of(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t word = 0;
    for (int i = 0; i < 4; i++)
        word |= (uint32_t)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return word;
}

static inline unsigned short to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const unsigned short sign = bits >> 16 & 0x8000;
    uint32_t size = bits & 0x7fffffff;
    if (size > 0x7f800000)
        return 0x7fff;
    // The largest number is 65504; from half a step above it on, rounding gives infinity.
    if (size >= 0x477ff000)
        return sign | 0x7c00;
    // Below 2^-14 all numbers are multiples of 2^-24. The default rounding is to the nearest, ties to even.
    if (size < 0x38800000)
        return sign | (unsigned short)nearbyintf(float_of(size) * 0x1p24f);
    // The same rounding of the 13 bits that go; a carry may go up to the exponent.
    size += 0xfff + (size >> 13 & 1);
    return sign | (unsigned short)((size - (112u << 23)) >> 13);
}
