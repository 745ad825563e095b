// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A video frame of any format and size as a tensor [1, 3, height, width] of red, green and blue in [-1, 1], f16.
//
// Samples are resized as they are (see resample.cuh), each component from its own grid, whose samples lie in the middle
// of the pixels that they are for or on the first of them (H.273, ChromaLocType), as its axes say; then red, green and blue follow by an affine map of the codes (8-bit 0…255, 10-bit
// 0…1023), which holds matrix, range and normalisation (ITU-T H.273); then they are clamped.
//
// blockIdx.y is a row of the tensor, blockIdx.x a piece of it, of `tile` pixels.
//
// Moves the frame once (rows that several rows of the tensor need come from the cache again), and 6 bytes a pixel of the
// tensor.

struct FrameToTensor {
    // Three planes at most. `room` is what each gets of the shared memory, in floats.
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

static __device__ __forceinline__ h16 normalised(const float *map, const float *codes) {
    const float value = map[0] * codes[0] + map[1] * codes[1] + map[2] * codes[2] + map[3];
    return to_half(fminf(fmaxf(value, -1), 1));
}

template <typename Sample>
static __device__ __forceinline__ void frame_to_tensor_of(const FrameToTensor &p, float *sums) {
    const u32 x0 = blockIdx.x * p.tile, y = blockIdx.y;
    const u32 x1 = x0 + p.tile < p.width ? x0 + p.tile : p.width;
    const Span spans[2] = {span(p.across[0], x0, x1), span(p.across[1], x0, x1)};

    // Where sample 0 of each component would be among the sums, and the floats from sample to sample.
    int zero[3] = {0, 0, 0};
    int used = 0;
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
            const u32 begin = begin_at(base, p.strides[plane], first);
            const Axis axis = p.down[plane];
            const Taps rows = taps(axis, y);
            const u32 words = words_of(base, p.strides[plane], begin, end);
            for (u32 i = threadIdx.x; i < words; i += blockDim.x)
                add_word<Sample>(base, p.strides[plane], begin, i, axis, rows, sums + used);
            add_samples<Sample>(base, p.strides[plane], begin, end, words, axis, rows, sums + used);
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
    for (u32 x = x0 + 2 * threadIdx.x; x < x1; x += 2 * blockDim.x) {
        float codes[2][3];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            codes[i][0] = codes[i][1] = codes[i][2] = 0;
            if (x + i < x1) {
                const Taps luma = taps(p.across[0], x + i);
                const int step = (int)(p.step[0] / Sample::bytes);
#pragma unroll 2
                for (int k = 0; k < luma.count; k++) {
                    const int sample = (int)inside(p.across[0], luma.first + k);
                    codes[i][0] += weight(p.across[0], luma, k) * sums[zero[0] + sample * step];
                }
                if (p.components == 3) {
                    const Taps others = taps(p.across[1], x + i);
                    const int step = (int)(p.step[1] / Sample::bytes);
#pragma unroll 2
                    for (int k = 0; k < others.count; k++) {
                        const int sample = (int)inside(p.across[1], others.first + k);
                        const float share = weight(p.across[1], others, k);
                        codes[i][1] += share * sums[zero[1] + sample * step];
                        codes[i][2] += share * sums[zero[2] + sample * step];
                    }
                }
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
