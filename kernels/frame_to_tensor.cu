// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A video frame of any format and size as a tensor [1, 3, height, width] of red, green and blue in [-1, 1], f16.
//
// Samples are resized as they are (see resample.cuh), each component from its own grid, whose samples lie in the middle
// of the pixels that they are for or on the first of them (H.273, ChromaLocType), as its axes say; then red, green and
// blue follow by an affine map of the codes (8-bit 0…255, 10-bit 0…1023), which holds matrix, range and normalisation
// (ITU-T H.273); then they are clamped.
//
// blockIdx.y is a row of the tensor, blockIdx.x a piece of it, of `tile` pixels. First all threads of a block walk along
// the rows of the frame that the piece needs, in words of 4 bytes side by side, whatever the format; they add them up with
// the shares of the vertical axis and leave the sums in shared memory. Then each thread makes two pixels at a time of
// their neighbours there.
//
// Moves the frame once (rows that several rows of the tensor need come from the cache again), and 6 bytes a pixel of the
// tensor.

struct FrameToTensor {
    // Three planes at most. `room` is what each gets of the shared memory, in floats: a multiple of four.
    const u8 *planes[3];
    h16 *tensor;
    u32 strides[3];
    u32 room[3];
    Axis down[3];
    // Three components: plane, first byte in a row, bytes from sample to sample.
    u32 plane[3];
    u32 offset[3];
    u32 step[3];
    u32 components;
    // The first component's, and that of the other two.
    Axis across[2];
    // The tensor's.
    u32 width;
    u32 height;
    u32 tile;
    u32 ten_bits;
    float map[3][4];
};

// How samples are stored. Each kind has its bytes, and the values of a word of 4 bytes and of one sample.
struct Byte {
    static const u32 bytes = 1;
    static __device__ __forceinline__ float value(const u8 *at) { return (float)*at; }
    static __device__ __forceinline__ void word(u32 w, float *out) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[i] = (float)(w >> (8 * i) & 0xff);
    }
};

// The upper ten of sixteen bits.
struct TenBits {
    static const u32 bytes = 2;
    static __device__ __forceinline__ float value(const u8 *at) { return (float)(*(const u16 *)at >> 6); }
    static __device__ __forceinline__ void word(u32 w, float *out) {
        out[0] = (float)((w & 0xffff) >> 6);
        out[1] = (float)(w >> 22);
    }
};

// The samples that a piece of a row needs: from first to last.
struct Span {
    u32 first;
    u32 last;
};

static __device__ __forceinline__ Span span(const Axis &axis, u32 begin, u32 end) {
    const Taps head = taps(axis, place(axis, begin)), tail = taps(axis, place(axis, end - 1));
    Span s;
    s.first = inside(axis, head.first);
    s.last = inside(axis, tail.first + tail.count - 1);
    return s;
}

// Adds up one word of each of the rows, the first of which begins at `column` less the rows before it.
template <typename Sample>
static __device__ __forceinline__ void add_word(const u8 *column, u32 stride, const Axis &axis, const Taps &rows,
                                                float *out) {
    const u32 per_word = 4 / Sample::bytes;
    float sum[per_word], values[per_word];
#pragma unroll
    for (u32 j = 0; j < per_word; j++)
        sum[j] = 0;
    // Four at a time, so that as many are under way.
#pragma unroll 1
    for (int k = 0; k < rows.count; k += 4) {
        u32 words[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (k + i < rows.count)
                words[i] = *(const u32 *)(column + (u64)inside(axis, rows.first + k + i) * stride);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (k + i < rows.count) {
                Sample::word(words[i], values);
                const float weight = share(rows, k + i);
#pragma unroll
                for (u32 j = 0; j < per_word; j++)
                    sum[j] += weight * values[j];
            }
        }
    }
#pragma unroll
    for (u32 j = 0; j < per_word; j++)
        out[j] = sum[j];
}

// The same of one sample.
template <typename Sample>
static __device__ __forceinline__ float add_sample(const u8 *column, u32 stride, const Axis &axis, const Taps &rows) {
    float sum = 0;
#pragma unroll 1
    for (int k = 0; k < rows.count; k++)
        sum += share(rows, k) * Sample::value(column + (u64)inside(axis, rows.first + k) * stride);
    return sum;
}

// What N components that share a grid are at one pixel, from their sums; zero[c] is where sample 0 of each would be.
template <int N>
static __device__ __forceinline__ void gather(const float *sums, const int *zero, int step, const Axis &axis,
                                              const Taps &t, float *out) {
    if (grows(axis)) {
#pragma unroll
        for (int c = 0; c < N; c++)
            out[c] = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int at = (int)inside(axis, t.first + k) * step;
#pragma unroll
            for (int c = 0; c < N; c++)
                out[c] += t.share[k] * sums[zero[c] + at];
        }
        return;
    }
    // Those between the first and the last have one share.
    const int first = t.first * step, last = (int)inside(axis, t.first + t.count - 1) * step;
    float between[N];
#pragma unroll
    for (int c = 0; c < N; c++)
        between[c] = 0;
#pragma unroll 4
    for (int k = 1; k < t.count - 1; k++)
#pragma unroll
        for (int c = 0; c < N; c++)
            between[c] += sums[zero[c] + first + k * step];
#pragma unroll
    for (int c = 0; c < N; c++) {
        out[c] = t.share[0] * sums[zero[c] + first] + t.share[1] * between[c];
        if (t.count > 1)
            out[c] += t.share[3] * sums[zero[c] + last];
    }
}

static __device__ __forceinline__ h16 normalised(const float *map, const float *codes) {
    const float value = map[0] * codes[0] + map[1] * codes[1] + map[2] * codes[2] + map[3];
    return to_half(fminf(fmaxf(value, -1), 1));
}

template <typename Sample>
static __device__ __forceinline__ void frame_to_tensor_of(const FrameToTensor &p, float *sums) {
    const u32 x0 = blockIdx.x * p.tile, y = blockIdx.y;
    const u32 x1 = x0 + p.tile < p.width ? x0 + p.tile : p.width;
    const Span spans[2] = {span(p.across[0], x0, x1), span(p.across[1], x0, x1)};

    // Where sample 0 of each component would be among the sums.
    int zero[3] = {0, 0, 0};
    int used = 0;
    // Threads that one plane has no work for begin with the next one.
    u32 task = threadIdx.x;
#pragma unroll 1
    for (u32 plane = 0; plane < 3; plane++) {
        u32 first = 0xffffffff, end = 0;
#pragma unroll
        for (u32 c = 0; c < 3; c++) {
            if (c < p.components && p.plane[c] == plane) {
                const Span &s = spans[c > 0];
                const u32 from = s.first * p.step[c] + p.offset[c];
                const u32 to = s.last * p.step[c] + p.offset[c] + Sample::bytes;
                first = from < first ? from : first;
                end = to > end ? to : end;
            }
        }
        if (end > 0) {
            const u8 *base = p.planes[plane];
            const u32 stride = p.strides[plane];
            const Axis axis = p.down[plane];
            const Taps rows = taps(axis, place(axis, y));
            // In words, where rows can be read so, and sample by sample what is left.
            const bool aligned = (((u64)base | stride) & 3) == 0;
            const u32 begin = aligned ? first & ~3u : first;
            const u32 words = aligned ? (end - begin) / 4 : 0;
            const u32 tasks = words + (end - begin - 4 * words) / Sample::bytes;
            for (; task < tasks; task += blockDim.x) {
                if (task < words) {
                    add_word<Sample>(base + begin + 4 * task, stride, axis, rows,
                                     sums + used + 4 / Sample::bytes * task);
                } else {
                    const u32 byte = 4 * words + Sample::bytes * (task - words);
                    sums[used + byte / Sample::bytes] = add_sample<Sample>(base + begin + byte, stride, axis, rows);
                }
            }
            task -= tasks;
#pragma unroll
            for (u32 c = 0; c < 3; c++) {
                if (p.plane[c] == plane)
                    zero[c] = used + ((int)p.offset[c] - (int)begin) / (int)Sample::bytes;
            }
        }
        used += (int)p.room[plane];
    }
    __syncthreads();

    const u64 area = (u64)p.width * p.height;
    // Two pixels in one word, where those of every row are.
    const bool pairs = ((u64)p.tensor & 3) == 0 && p.width % 2 == 0;
    const bool one_grid = p.across[0].den == p.across[1].den;
    for (u32 x = x0 + 2 * threadIdx.x; x < x1; x += 2 * blockDim.x) {
        float codes[2][3];
        Place luma = place(p.across[0], x), others = place(p.across[1], x);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            codes[i][0] = codes[i][1] = codes[i][2] = 0;
            if (x + i < x1) {
                const int step = (int)(p.step[0] / Sample::bytes);
                const Taps t = taps(p.across[0], luma);
                if (p.components == 3 && one_grid) {
                    gather<3>(sums, zero, step, p.across[0], t, codes[i]);
                } else {
                    gather<1>(sums, zero, step, p.across[0], t, codes[i]);
                    if (p.components == 3)
                        gather<2>(sums, zero + 1, (int)(p.step[1] / Sample::bytes), p.across[1],
                                  taps(p.across[1], others), codes[i] + 1);
                }
                luma = next(p.across[0], luma);
                others = next(p.across[1], others);
            }
        }
#pragma unroll
        for (u32 c = 0; c < 3; c++) {
            h16 *out = p.tensor + c * area + (u64)y * p.width + x;
            const h16 left = normalised(p.map[c], codes[0]), right = normalised(p.map[c], codes[1]);
            if (pairs) {
                *(u32 *)out = (u32)left | (u32)right << 16;
            } else {
                out[0] = left;
                if (x + 1 < x1)
                    out[1] = right;
            }
        }
    }
}

KERNEL frame_to_tensor(const FrameToTensor p) {
    DYNAMIC_SHARED(sums);
    if (p.ten_bits)
        frame_to_tensor_of<TenBits>(p, sums);
    else
        frame_to_tensor_of<Byte>(p, sums);
}
