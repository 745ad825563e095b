// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What lies between two texts: of `len` numbers in vectors (tokens) of `width`, each vector of out is at t (0…1) of the way
// from that of a to that of b, and is worked out by itself. `out` is f16 or f32, and overlaps neither a nor b.
//
// Linear: out = (1−t)·a + t·b. Spherical, along the arc: out = (sin((1−t)·θ)·a + sin(t·θ)·b) / sin θ, θ being the angle
// between the two (Shoemake, "Animating rotation with quaternion curves", 1985). Lengths are left as they are. Vectors that
// are parallel or opposite (sin θ ≤ 10⁻⁶), or zero, have no arc of their own and are mixed linearly. At t = 0 and 1 out is
// a and b.
//
// An angle near 0 or π has a cosine that f32 hardly tells from ±1. So its sine is measured too: the length of what is left of
// b when its part along a is taken away, each element of it rounded once. Between nearly opposite vectors the arc is ill
// defined: results are a few 10⁻⁷ / sin θ of the vectors' lengths away from it.
//
// On an arc a block takes a vector at a time, and blocks stride over the vectors; on the straight line all share all elements.
//
// Moves 8 bytes an element, and the size of out. On an arc a and b are read three times, the second and the third time from a
// cache: vectors are some kilobytes long.

struct InterpolateRow {
    const float *a;
    const float *b;
    void *out;
    float t;
    u32 width;
    u32 len;
    u32 spherical;
};

// out = p·a + q·b, for every `step`-th eight elements, or element, from `first` on.
template <typename Out>
static __device__ __forceinline__ void weigh(float p, const float *a, float q, const float *b, Out *out, u32 len, u32 first,
                                             u32 step) {
    const u32 vectors = aligned(a) && aligned(b) && aligned(out) ? len / 8 : 0;
    for (u32 i = first; i < vectors; i += step) {
        float x[8], y[8];
        load8(a + 8 * i, x);
        load8(b + 8 * i, y);
#pragma unroll
        for (int k = 0; k < 8; k++)
            x[k] = p * x[k] + q * y[k];
        store8(out + 8 * i, x);
    }
    for (u32 i = 8 * vectors + first; i < len; i += step)
        narrow(p * a[i] + q * b[i], out + i);
}

// The sum over all threads of a block, in each of them. A block has whole warps, THREADS threads at most.
static __device__ float total(float value) {
    __shared__ float of_warp[THREADS / 32];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_down_sync(0xffffffff, value, distance);
    // Before this, threads may still read what an earlier call left.
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
    for (u32 i = 0; i < blockDim.x / 32; i++)
        sum += of_warp[i];
    return sum;
}

// The factors of two vectors that the threads of a block share.
struct Factors {
    float p;
    float q;
};

static __device__ __forceinline__ Factors on_the_arc(const float *a, const float *b, u32 len, float t) {
    // The ends are the texts themselves, to the bit.
    if (t <= 0 || t >= 1)
        return {t <= 0 ? 1.0f : 0.0f, t <= 0 ? 0.0f : 1.0f};
    const u32 vectors = aligned(a) && aligned(b) ? len / 8 : 0;
    Sums sums = {0, 0, 0};
    for (u32 i = threadIdx.x; i < vectors; i += blockDim.x) {
        float x[8], y[8];
        load8(a + 8 * i, x);
        load8(b + 8 * i, y);
#pragma unroll
        for (int k = 0; k < 8; k++)
            add(sums, x[k], y[k]);
    }
    for (u32 i = 8 * vectors + threadIdx.x; i < len; i += blockDim.x)
        add(sums, a[i], b[i]);
    const float ab = total(sums.ab), aa = total(sums.aa), bb = total(sums.bb);
    // b = along·a + what is across, whose length is |b|·sin θ.
    const float along = ab / aa;
    float across = 0;
    for (u32 i = threadIdx.x; i < vectors; i += blockDim.x) {
        float x[8], y[8];
        load8(a + 8 * i, x);
        load8(b + 8 * i, y);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float rest = fmaf(-along, x[k], y[k]);
            across += rest * rest;
        }
    }
    for (u32 i = 8 * vectors + threadIdx.x; i < len; i += blockDim.x) {
        const float rest = fmaf(-along, a[i], b[i]);
        across += rest * rest;
    }
    const float length = sqrtf(bb), measured = sqrtf(total(across)) / length;
    // Where one is zero, this is no number.
    if (!(measured > 1e-6f))
        return {1 - t, t};
    const float cosine = ab / (sqrtf(aa) * length), angle = atan2f(measured, cosine);
    // Not that of the angle, which has lost digits near π.
    const float sine = measured / sqrtf(measured * measured + cosine * cosine);
    return {sinf((1 - t) * angle) / sine, sinf(t * angle) / sine};
}

template <typename Out> static __device__ __forceinline__ void interpolate(const InterpolateRow *rows) {
    const InterpolateRow row = rows[blockIdx.y];
    Out *out = (Out *)row.out;
    if (!row.spherical) {
        weigh(1 - row.t, row.a, row.t, row.b, out, row.len, first_of_thread(), threads_of_row());
        return;
    }
    for (u32 vector = blockIdx.x; vector < row.len / row.width; vector += gridDim.x) {
        const u32 at = vector * row.width;
        const Factors k = on_the_arc(row.a + at, row.b + at, row.width, row.t);
        weigh(k.p, row.a + at, k.q, row.b + at, out + at, row.width, threadIdx.x, blockDim.x);
    }
}

KERNEL interpolate_f16(const InterpolateRow *rows) { interpolate<h16>(rows); }
KERNEL interpolate_f32(const InterpolateRow *rows) { interpolate<float>(rows); }
