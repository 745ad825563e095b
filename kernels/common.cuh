// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What all kernels share: half precision, 16-byte vectors, rows.
//
// The files of this folder are one translation unit (kernels.cu), and use nothing but what the compiler has built in.
// kernels/host compiles the same files for the CPU.
//
// Kernels that work on tensors take one argument, an array of rows in device memory, one for each blockIdx.y; the
// blocks along x share a row's elements. So the numbers in the rows may change under a captured graph, and rows of one
// launch may differ in length. Rows are `len` < 2^31 elements long. Where all arrays of a row begin at multiples of 16
// bytes they are read and written in vectors of 16 bytes; other rows take the scalar loop.
//
// "Moves" in a kernel's comment is what it has to read and write. All of them do next to no arithmetic, so the least
// time they can take is that number of bytes divided by the memory's bandwidth.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
// The bits of an IEEE 754 binary16 number.
typedef unsigned short h16;

// Four blocks to a multiprocessor: 64 registers for each thread. Left alone, the compiler goes for five and spills some.
#define THREADS 256
// A kernel that needs more says for how many threads, and how many blocks there shall be.
#define KERNEL_OF(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define KERNEL KERNEL_OF(THREADS, 4)

struct alignas(16) Vector {
    u32 word[4];
};

#ifdef __CUDACC__

static __device__ __forceinline__ float from_half(h16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// Rounds to the nearest, ties to even; what is too large becomes infinite.
static __device__ __forceinline__ h16 to_half(float value) {
    h16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// To one unit in the last place; powers of two exactly. `/` is a call of a dozen instructions.
static __device__ __forceinline__ float reciprocal(float value) {
    float result;
    asm("rcp.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// To 0…1; what is no number becomes 0. Costs nothing after a sum.
static __device__ __forceinline__ float saturate(float value) { return __saturatef(value); }

// Bytes 0…3 of a and 4…7 of b, as the four lowest hexadecimal digits of `selector` say, the last digit's byte first.
static __device__ __forceinline__ u32 bytes_of(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }

#define DYNAMIC_SHARED(name) alignas(16) extern __shared__ float name[]

#endif

static __device__ __forceinline__ bool aligned(const void *pointer) {
    return ((u64)pointer & 15) == 0;
}

static __device__ __forceinline__ float widen(h16 value) { return from_half(value); }
static __device__ __forceinline__ float widen(float value) { return value; }
static __device__ __forceinline__ void narrow(float value, h16 *out) { *out = to_half(value); }
static __device__ __forceinline__ void narrow(float value, float *out) { *out = value; }

// Eight elements from an address that is a multiple of 16 bytes.
static __device__ __forceinline__ void load8(const h16 *from, float *out) {
    const Vector v = *(const Vector *)from;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = from_half((h16)(v.word[i] & 0xffff));
        out[2 * i + 1] = from_half((h16)(v.word[i] >> 16));
    }
}

static __device__ __forceinline__ float bits_to_float(u32 bits) {
    union {
        u32 bits;
        float value;
    } both = {bits};
    return both.value;
}

static __device__ __forceinline__ u32 float_to_bits(float value) {
    union {
        float value;
        u32 bits;
    } both = {value};
    return both.bits;
}

static __device__ __forceinline__ void load8(const float *from, float *out) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const Vector v = ((const Vector *)from)[half];
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[4 * half + i] = bits_to_float(v.word[i]);
    }
}

// Eight elements to an address that is a multiple of 16 bytes.
static __device__ __forceinline__ void store8(h16 *to, const float *values) {
    Vector v;
#pragma unroll
    for (int i = 0; i < 4; i++)
        v.word[i] = (u32)to_half(values[2 * i]) | (u32)to_half(values[2 * i + 1]) << 16;
    *(Vector *)to = v;
}

static __device__ __forceinline__ void store8(float *to, const float *values) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Vector v;
#pragma unroll
        for (int i = 0; i < 4; i++)
            v.word[i] = float_to_bits(values[4 * half + i]);
        ((Vector *)to)[half] = v;
    }
}

static __device__ __forceinline__ u32 first_of_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }
static __device__ __forceinline__ u32 threads_of_row() { return gridDim.x * blockDim.x; }
