// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The three sums that the cosine of two tensors is made of: out = {<a, b>, <a, a>, <b, b>}, in f32.
//
// Every thread adds up few elements, and everything after that is added in pairs, so the error does not grow with the
// length. The order is fixed by the size of the grid: the same input gives the same bits. The blocks leave their
// sums in `partial`, and the last block of a row to finish adds those up; it sets `finished` back to 0, so
// that a captured graph can be replayed. `finished` has to be 0 before the first launch; rows of a launch must not
// share `partial` or `finished`.
//
// `partial` has room for 3 floats a block, `finished` is 16 bytes long; `a` may be `b`.
//
// Moves 4 bytes an element.

struct CosineRow {
    const h16 *a;
    const h16 *b;
    float *out;
    float *partial;
    u32 *finished;
    u32 len;
    u32 unused;
};

struct Sums {
    float ab;
    float aa;
    float bb;
};

static __device__ __forceinline__ void add(Sums &sums, float a, float b) {
    sums.ab += a * b;
    sums.aa += a * a;
    sums.bb += b * b;
}

// The sums of all threads of a block, in its thread 0.
static __device__ Sums block_sum(Sums sums) {
    __shared__ Sums of_warp[THREADS / 32];
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        sums.ab += __shfl_down_sync(0xffffffff, sums.ab, distance);
        sums.aa += __shfl_down_sync(0xffffffff, sums.aa, distance);
        sums.bb += __shfl_down_sync(0xffffffff, sums.bb, distance);
    }
    // Before this, threads may still read what an earlier call left.
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = sums;
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll
        for (int distance = THREADS / 64; distance > 0; distance /= 2) {
#pragma unroll
            for (int i = 0; i < distance; i++) {
                of_warp[i].ab += of_warp[i + distance].ab;
                of_warp[i].aa += of_warp[i + distance].aa;
                of_warp[i].bb += of_warp[i + distance].bb;
            }
        }
        sums = of_warp[0];
    }
    return sums;
}

KERNEL cosine(const CosineRow *rows) {
    __shared__ bool last;
    const CosineRow row = rows[blockIdx.y];
    Sums sums = {0, 0, 0};
    const u32 vectors = aligned(row.a) && aligned(row.b) ? row.len / 8 : 0;
    for (u32 i = first_of_thread(); i < vectors; i += threads_of_row()) {
        float a[8], b[8];
        load8(row.a + 8 * i, a);
        load8(row.b + 8 * i, b);
        Sums eight = {0, 0, 0};
#pragma unroll
        for (int k = 0; k < 8; k++)
            add(eight, a[k], b[k]);
        sums.ab += eight.ab;
        sums.aa += eight.aa;
        sums.bb += eight.bb;
    }
    for (u32 i = 8 * vectors + first_of_thread(); i < row.len; i += threads_of_row())
        add(sums, from_half(row.a[i]), from_half(row.b[i]));
    sums = block_sum(sums);
    if (threadIdx.x == 0) {
        float *partial = row.partial + 3 * blockIdx.x;
        partial[0] = sums.ab;
        partial[1] = sums.aa;
        partial[2] = sums.bb;
        // The sums have to be seen by whoever sees the count.
        __threadfence();
        last = atomicAdd(row.finished, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last)
        return;
    __threadfence();
    Sums total = {0, 0, 0};
    for (u32 i = threadIdx.x; i < gridDim.x; i += THREADS) {
        // Volatile: another block wrote it while this one ran, so no cache of this one may answer.
        const volatile float *partial = row.partial + 3 * i;
        total.ab += partial[0];
        total.aa += partial[1];
        total.bb += partial[2];
    }
    total = block_sum(total);
    if (threadIdx.x == 0) {
        row.out[0] = total.ab;
        row.out[1] = total.aa;
        row.out[2] = total.bb;
        *row.finished = 0;
    }
}
