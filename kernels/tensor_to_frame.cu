// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A tensor [1, 3, height, width] of red, green and blue, nominally in [-1, 1], f16, as a video frame of any format and size.
//
// The tensor is resized (see resample.cuh) and clamped to [-1, 1]; what is no number becomes -1. Codes follow by an affine
// map, which holds matrix and range (ITU-T H.273), and are rounded to the nearest. Colour differences that are for
// several pixels are those of the mean of the area around where they lie, which is as large as these pixels: of the two
// pixels themselves, or, where a sample lies on the first of two, of that one, half of the other and half of the one
// before. At the edges pixels are repeated. Alpha, and the byte that stands in its
// place, is 255. Bytes between rows are not touched; of a unit of two pixels that a frame of odd width has half of, the
// other half repeats it.
//
// blockIdx.y is a row of the frame, or a pair of rows where colour differences are for pairs; blockIdx.x a piece of it, of
// `tile` pixels. `room` is what each of three channels of each row gets of the shared memory, in floats.
//
// Moves the tensor (6 bytes a pixel; rows that several rows of the frame need come from the cache again), and the frame
// once.

struct TensorToFrame {
    const h16 *tensor;
    u8 *planes[3];
    u32 strides[3];
    // Three components: plane, first byte in a row, bytes from sample to sample.
    u32 plane[3];
    u32 offset[3];
    u32 step[3];
    u32 components;
    // log₂ of the pixels across and down for which the second and third component have one sample.
    u32 sub_x;
    u32 sub_y;
    // Whether these lie on the first of the pixels across, and down.
    u32 on_x;
    u32 on_y;
    Axis across;
    Axis down;
    // The frame's.
    u32 width;
    u32 height;
    u32 tile;
    u32 room;
    u32 ten_bits;
    // The byte of a pixel of four that is alpha; 4 stands for none.
    u32 alpha;
    float map[3][4];
};

static __device__ __forceinline__ u32 code(const float *map, const float *rgb, float top) {
    const float value = map[0] * rgb[0] + map[1] * rgb[1] + map[2] * rgb[2] + map[3];
    return (u32)(fminf(fmaxf(value, 0), top) + 0.5f);
}

static __device__ __forceinline__ void put(const TensorToFrame &p, u32 c, u32 sample, u32 row, u32 value) {
    u8 *at = p.planes[p.plane[c]] + (u64)row * p.strides[p.plane[c]] + p.offset[c] + sample * p.step[c];
    if (p.ten_bits)
        *(u16 *)at = (u16)(value << 6);
    else
        *at = (u8)value;
}

// The frame's row that line `line` of a piece is made for; the one before the first is the first.
static __device__ __forceinline__ u32 row_of(const TensorToFrame &p, u32 y0, u32 line) {
    return y0 + line > p.on_y ? y0 + line - p.on_y : 0;
}

// The share of the one before, the first and the second of two pixels or rows in what lies between these or on the first;
// `two` says whether there is a second, which the first stands for otherwise.
static __device__ __forceinline__ float share_of(u32 on, int which, bool two) {
    if (on)
        return which == 0 ? (two ? 0.5f : 0.75f) : 0.25f;
    return which < 0 ? 0 : two ? 0.5f : 1;
}

KERNEL tensor_to_frame(const TensorToFrame p) {
    DYNAMIC_SHARED(sums);
    const u32 x0 = blockIdx.x * p.tile, y0 = blockIdx.y << p.sub_y;
    const u32 x1 = x0 + p.tile < p.width ? x0 + p.tile : p.width;
    const u32 rows = y0 + (1u << p.sub_y) < p.height ? 1u << p.sub_y : p.height - y0;
    // The lines that the piece is made of: its rows, and before them the one that colour differences need too.
    const u32 lines = rows + p.on_y;
    const Span needed = span(p.across, x0 - (x0 > 0 ? p.on_x : 0), x1);
    const u64 stride = 2 * (u64)p.across.size;
    const u64 area = stride * p.down.size;
    // Where rows are aligned, so are those of every channel.
    const u8 *tensor = (const u8 *)p.tensor;
    const u32 begin = begin_at(tensor, stride, 2 * needed.first), end = 2 * needed.last + 2;
    const u32 words = words_of(tensor, stride, begin, end);
    // Of a small piece one channel would not keep all threads busy, so they share out all channels and rows.
    for (u32 i = threadIdx.x; i < 3 * lines * words; i += blockDim.x) {
        const u32 part = i / words;
        add_word<Half>(tensor + part % 3 * area, stride, begin, i - part * words, p.down,
                       taps(p.down, row_of(p, y0, part / 3)), sums + part * p.room);
    }
#pragma unroll 1
    for (u32 part = 0; part < 3 * lines; part++)
        add_samples<Half>(tensor + part % 3 * area, stride, begin, end, words, p.down,
                          taps(p.down, row_of(p, y0, part / 3)), sums + part * p.room);
    // Where sample 0 would be among the sums of a channel.
    const int zero = -(int)(begin / 2);
    __syncthreads();

    const float top = p.ten_bits ? 1023 : 255;
    // Two pixels of each line, and the one before them where colour differences need it.
    for (u32 x = x0 + 2 * threadIdx.x; x < x1; x += 2 * blockDim.x) {
        float mean[3] = {0, 0, 0};
#pragma unroll 1
        for (u32 line = 0; line < lines; line++) {
            // Below zero: the line before the rows.
            const int row = (int)line - (int)p.on_y;
            const float share_down = p.sub_y > 0 ? share_of(p.on_y, row, rows > 1) : 1;
#pragma unroll 1
            for (int i = -(int)p.on_x; i < 2; i++) {
                if (i > 0 && x + 1 >= x1)
                    break;
                const u32 column = i < 0 && x == 0 ? 0 : x + i;
                float rgb[3] = {0, 0, 0};
                const Taps horizontal = taps(p.across, column);
#pragma unroll 2
                for (int k = 0; k < horizontal.count; k++) {
                    const int sample = (int)inside(p.across, horizontal.first + k);
                    const float share = weight(p.across, horizontal, k);
#pragma unroll
                    for (u32 c = 0; c < 3; c++)
                        rgb[c] += share * sums[(int)((3 * line + c) * p.room) + zero + sample];
                }
                const float share = share_down * share_of(p.on_x, i, x + 1 < x1);
#pragma unroll
                for (u32 c = 0; c < 3; c++) {
                    rgb[c] = fminf(fmaxf(rgb[c], -1), 1);
                    mean[c] += share * rgb[c];
                }
                if (row < 0 || i < 0)
                    continue;
                const u32 first = code(p.map[0], rgb, top);
                if (p.alpha < 4) {
                    // A pixel of four bytes: one word where it is aligned, as it is but for odd strides.
                    u8 *at = p.planes[0] + (u64)(y0 + row) * p.strides[0] + 4 * (x + i);
                    const u32 word = first << 8 * p.offset[0] | code(p.map[1], rgb, top) << 8 * p.offset[1] |
                                     code(p.map[2], rgb, top) << 8 * p.offset[2] | 255u << 8 * p.alpha;
                    if (((u64)at & 3) == 0) {
                        *(u32 *)at = word;
                    } else {
#pragma unroll
                        for (u32 byte = 0; byte < 4; byte++)
                            at[byte] = (u8)(word >> 8 * byte);
                    }
                    continue;
                }
                put(p, 0, x + i, y0 + row, first);
                if (p.components == 3 && p.sub_x == 0 && p.sub_y == 0) {
                    put(p, 1, x + i, y0 + row, code(p.map[1], rgb, top));
                    put(p, 2, x + i, y0 + row, code(p.map[2], rgb, top));
                }
                // Half a unit of two pixels.
                if (p.step[0] == 2 && !p.ten_bits && x + i + 1 == p.width && i == 0)
                    put(p, 0, x + 1, y0 + row, first);
            }
        }
        if (p.components == 3 && p.sub_x > 0) {
            put(p, 1, x / 2, y0 >> p.sub_y, code(p.map[1], mean, top));
            put(p, 2, x / 2, y0 >> p.sub_y, code(p.map[2], mean, top));
        }
    }
}
