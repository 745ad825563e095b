// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A tensor [1, 3, height, width] of red, green and blue, nominally in [-1, 1], f16, as a video frame of any format and size.
//
// The tensor is resized (see resample.cuh) and clamped to [-1, 1]; what is no number becomes -1. Codes follow by an affine
// map, which holds matrix and range (ITU-T H.273), and are rounded to the nearest. Colour differences that are for
// several pixels are those of the mean of the area around where they lie, which is as large as these pixels: of the two
// pixels themselves, or, where a sample lies on the first of two, of that one, half of the other and half of the one
// before. At the edges pixels are repeated. Alpha, and the byte that stands in its place, is 255. Bytes between rows are
// not touched; of a unit of two pixels that a frame of odd width has half of, the other half repeats it.
//
// A block is a warp, which makes a strip of `rows` rows and 64 columns of the frame; a thread makes two columns side by
// side, from top to bottom. It resizes across first: each row of the tensor gives it two pixels. Where the frame is higher,
// the last four of these stay in registers, and every row of the frame is a sum of them. So a row of the tensor is resized
// across once for a strip, not once for each row of the frame, and the only thing that lanes wait for is what is the same
// all along a row, its taps, which they work out together before.
//
// Where colour differences lie on the first of two pixels, they need the pixel before: the lane before has it, and a
// warp's first lane makes it and nothing else. Rows above a strip are made once more in the same way.
//
// Moves the tensor (6 bytes a pixel; what several rows of the frame need comes from the cache again), and the frame once.

// Where the second and third component are: in planes of their own; in one plane, in turn; in units of four with the first.
enum Differences { APART, IN_TURN, WITH_LUMA };

struct TensorToFrame {
    const h16 *tensor;
    // Of each component the plane that it is in.
    u8 *planes[3];
    u32 strides[3];
    u32 components;
    // Bytes of a pixel of three or four; 0 where the components are not side by side in bytes.
    u32 packed;
    // Differences, and their bytes from sample to sample.
    u32 differences;
    u32 step;
    // What bytes_of is to make: a pixel of four bytes of two components and a third one with 255, or a unit of the second
    // and the third; and then a unit of the first component's two samples and that.
    u32 order;
    u32 unit_order;
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
    // Of a strip: an even number.
    u32 rows;
    u32 ten_bits;
    // From red, green and blue in [0, 1] to codes in [0, 1]; of packed components in the order of their bytes.
    float map[3][4];
};

// How rows of the tensor become rows of the frame: as they are; by four taps; by any number of them.
enum Resize { SAME, CUBIC, ANY };

// What two columns, side by side or the same, are made of.
template <Resize> struct Columns;

template <> struct Columns<SAME> {
    u32 begin;
    bool two;

    __device__ __forceinline__ Columns(const Axis &, u32 left, u32 right) : begin(left & ~1u), two(right > left) {}

    __device__ __forceinline__ void read(const Axis &, const h16 *row, float *pixels) const {
        const u32 both = *(const u32 *)(row + begin);
        pixels[0] = from_half((h16)(both & 0xffff));
        pixels[1] = two ? from_half((h16)(both >> 16)) : pixels[0];
    }
};

// Of a tensor that is at least five samples wide. Neighbours need the same four samples or all but one: five for both.
template <> struct Columns<CUBIC> {
    u32 begin;
    float shares[2][5];

    __device__ __forceinline__ Columns(const Axis &axis, u32 left, u32 right) {
        const Place at = place(axis, left);
        const Taps a = taps(axis, at), b = taps(axis, right > left ? next(axis, at) : at);
        const bool later = b.first > a.first;
#pragma unroll
        for (int k = 0; k < 5; k++) {
            shares[0][k] = k < 4 ? a.share[k & 3] : 0;
            shares[1][k] = later ? (k > 0 ? b.share[(k - 1) & 3] : 0) : (k < 4 ? b.share[k & 3] : 0);
        }
        int first = a.first;
        // Those before the first and after the last sample stand for it.
        for (; first < 0; first++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                shares[i][0] += shares[i][1];
#pragma unroll
                for (int k = 1; k < 4; k++)
                    shares[i][k] = shares[i][k + 1];
                shares[i][4] = 0;
            }
        }
        for (; first + 5 > (int)axis.size; first--) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                shares[i][4] += shares[i][3];
#pragma unroll
                for (int k = 3; k > 0; k--)
                    shares[i][k] = shares[i][k - 1];
                shares[i][0] = 0;
            }
        }
        begin = (u32)first;
    }

    __device__ __forceinline__ void read(const Axis &, const h16 *row, float *pixels) const {
        const h16 *samples = row + begin;
        pixels[0] = pixels[1] = 0;
#pragma unroll
        for (int k = 0; k < 5; k++) {
            const float sample = from_half(samples[k]);
            pixels[0] += shares[0][k] * sample;
            pixels[1] += shares[1][k] * sample;
        }
    }
};

template <> struct Columns<ANY> {
    Taps columns[2];

    __device__ __forceinline__ Columns(const Axis &axis, u32 left, u32 right) {
        const Place at = place(axis, left);
        columns[0] = taps(axis, at);
        columns[1] = taps(axis, right > left ? next(axis, at) : at);
    }

    __device__ __forceinline__ void read(const Axis &axis, const h16 *row, float *pixels) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            pixels[i] = 0;
#pragma unroll 1
            for (int k = 0; k < columns[i].count; k++)
                pixels[i] += share(columns[i], k) * from_half(row[inside(axis, columns[i].first + k)]);
        }
    }
};

// Red, green and blue of two columns.
struct Pair {
    float rgb[2][3];
};

template <Resize ACROSS>
static __device__ __forceinline__ Pair pair_of(const TensorToFrame &p, const Columns<ACROSS> &columns, int row) {
    const u64 area = (u64)p.across.size * p.down.size;
    const h16 *at = p.tensor + (u64)inside(p.down, row) * p.across.size;
    Pair pair;
#pragma unroll
    for (u32 c = 0; c < 3; c++) {
        float pixels[2];
        columns.read(p.across, at + c * area, pixels);
        pair.rgb[0][c] = pixels[0];
        pair.rgb[1][c] = pixels[1];
    }
    return pair;
}

// The code, 2^23 and more as an f32: that has no bits for fractions, so the sum is rounded to the nearest code, which is in
// its last bits.
static __device__ __forceinline__ u32 code(const float *map, const float *rgb, float top) {
    const float value = saturate(map[2] * rgb[2] + (map[1] * rgb[1] + (map[0] * rgb[0] + map[3])));
    return float_to_bits(value * top + 8388608.0f);
}

// For bytes_of: the lowest byte of each of two words; the lowest two of each.
static const u32 BYTES = 0x0040, PAIRS = 0x5410;

// The `count` low bytes of `word`, in one store where the address is a multiple of `count`, as `whole` says.
static __device__ __forceinline__ void put(u8 *at, u32 word, u32 count, bool whole) {
    if (whole && count == 4) {
        *(u32 *)at = word;
    } else if (whole && count == 2) {
        *(u16 *)at = (u16)word;
    } else {
        for (u32 i = 0; i < count; i++)
            at[i] = (u8)(word >> 8 * i);
    }
}

// Where a component's sample in row `row` is, `byte` bytes after the row's first.
static __device__ __forceinline__ u8 *sample_at(const TensorToFrame &p, u32 component, u32 row, u32 byte) {
    return p.planes[component] + ((u64)row * p.strides[component] + byte);
}

// Whether all rows of a component begin at multiples of that.
static __device__ __forceinline__ bool multiples(const TensorToFrame &p, u32 component, u32 of) {
    return (((u64)p.planes[component] | p.strides[component]) & (of - 1)) == 0;
}

// Frames whose components have a sample for each pixel: pixels x and, if there are `two`, x + 1.
struct Full {
    u32 x;
    bool two;
    // Whether both pixels, or a component of them, are one store.
    bool whole;

    __device__ __forceinline__ Full(const TensorToFrame &p, u32 x, bool two)
        : x(x), two(two), whole(two && multiples(p, 0, p.packed == 4 ? 8 : 2)) {}

    __device__ __forceinline__ void put_row(const TensorToFrame &p, const Pair &pair, u32 y) const {
        u32 codes[2][3];
#pragma unroll
        for (u32 i = 0; i < 2; i++)
#pragma unroll
            for (u32 c = 0; c < 3; c++)
                codes[i][c] = code(p.map[c], pair.rgb[i], 255);
        if (p.packed == 4) {
            u32 words[2];
#pragma unroll
            for (u32 i = 0; i < 2; i++)
                words[i] = bytes_of(bytes_of(codes[i][0], codes[i][1], BYTES), bytes_of(codes[i][2], 255, BYTES), p.order);
            u8 *at = sample_at(p, 0, y, 4 * x);
            if (whole) {
                *(u64 *)at = (u64)words[1] << 32 | words[0];
            } else {
                const bool word = multiples(p, 0, 4);
                put(at, words[0], 4, word);
                if (two)
                    put(at + 4, words[1], 4, word);
            }
        } else if (p.packed == 3) {
            u8 *at = sample_at(p, 0, y, 3 * x);
            put(at, bytes_of(codes[0][0], codes[0][1], BYTES), 2, whole);
            if (two) {
                put(at + 2, bytes_of(codes[0][2], codes[1][0], BYTES), 2, whole);
                put(at + 4, bytes_of(codes[1][1], codes[1][2], BYTES), 2, whole);
            } else {
                put(at + 2, codes[0][2], 1, false);
            }
        } else {
#pragma unroll
            for (u32 c = 0; c < 3; c++)
                if (c < p.components)
                    put(sample_at(p, c, y, x), bytes_of(codes[0][c], codes[1][c], BYTES), two ? 2 : 1,
                        two && multiples(p, c, 2));
        }
    }
};

// Frames with one sample of the colour differences for two pixels of a row at least: x, which is even, and x + 1, from row
// y on.
struct Subsampled {
    bool two;
    // Whether luma has a plane of its own and is of bytes, two at a time; whether the colour differences share a plane that
    // is so.
    bool luma_pairs;
    bool difference_pairs;
    // Where the next row is stored.
    u8 *luma;
    u8 *second;
    u8 *third;

    __device__ __forceinline__ Subsampled(const TensorToFrame &p, u32 x, u32 y, bool two)
        : two(two), luma_pairs(two && p.differences != WITH_LUMA && p.ten_bits == 0 && multiples(p, 0, 2)),
          difference_pairs(p.differences == IN_TURN && p.ten_bits == 0 && multiples(p, 1, 2)),
          luma(sample_at(p, 0, y, x << p.ten_bits)), second(sample_at(p, 1, y >> p.sub_y, x / 2 * p.step)),
          third(sample_at(p, 2, y >> p.sub_y, x / 2 * p.step)) {}

    __device__ __forceinline__ void put_luma(const TensorToFrame &p, const u32 *codes) const {
        if (luma_pairs) {
            *(u16 *)luma = (u16)bytes_of(codes[0], codes[1], BYTES);
        } else if (p.ten_bits) {
            const u32 both = bytes_of(codes[0], codes[1], PAIRS) << 6;
            if (two && multiples(p, 0, 4)) {
                *(u32 *)luma = both;
            } else {
                *(u16 *)luma = (u16)both;
                if (two)
                    *(u16 *)(luma + 2) = (u16)(both >> 16);
            }
        } else if (p.differences != WITH_LUMA) {
            put(luma, bytes_of(codes[0], codes[1], BYTES), two ? 2 : 1, false);
        }
    }

    __device__ __forceinline__ void next_luma(const TensorToFrame &p) { luma += p.strides[0]; }

    // With the luma of the two pixels, where that is in the same unit.
    __device__ __forceinline__ void put_differences(const TensorToFrame &p, u32 u, u32 v, const u32 *codes) const {
        const u32 both = bytes_of(u, v, p.order);
        if (difference_pairs) {
            *(u16 *)second = (u16)both;
        } else if (p.differences == APART) {
            *second = (u8)u;
            *third = (u8)v;
        } else if (p.differences == WITH_LUMA) {
            put(second, bytes_of(bytes_of(codes[0], codes[1], BYTES), both, p.unit_order), 4, multiples(p, 1, 4));
        } else if (p.ten_bits == 0) {
            put(second, both, 2, false);
        } else if (multiples(p, 1, 4)) {
            *(u32 *)second = both << 6;
        } else {
            *(u16 *)second = (u16)(both << 6);
            *(u16 *)(second + 2) = (u16)(both >> 10);
        }
    }

    __device__ __forceinline__ void next_differences(const TensorToFrame &p) {
        second += p.strides[1];
        third += p.strides[2];
    }
};

// Two columns of the frame, row by row.
template <Resize ACROSS, bool GROWS>
struct Walk {
    const Columns<ACROSS> columns;
    // Of the next row: its shares are halved.
    const Taps *line;
    // Where the frame is higher: rows `ready` - 3 to `ready` of the tensor, all that the last row was made of.
    Pair window[4];
    int ready;

    __device__ __forceinline__ Walk(const TensorToFrame &p, const Taps *lines, u32 left, u32 right)
        : columns(p.across, left, right), line(lines), ready(lines->first - 1) {}

    // Red, green and blue in [0, 1].
    __device__ __forceinline__ Pair next(const TensorToFrame &p) {
        Pair pair;
        if (GROWS) {
            const int needed = line->first + 3;
#pragma unroll 1
            while (ready < needed) {
                window[0] = window[1];
                window[1] = window[2];
                window[2] = window[3];
                window[3] = pair_of<ACROSS>(p, columns, ++ready);
            }
#pragma unroll
            for (int j = 0; j < 6; j++) {
                float sum = 0.5f;
#pragma unroll
                for (int k = 0; k < 4; k++)
                    sum = line->share[k] * window[k].rgb[j / 3][j % 3] + sum;
                pair.rgb[j / 3][j % 3] = saturate(sum);
            }
        } else {
            const Taps rows = *line;
#pragma unroll
            for (int j = 0; j < 6; j++)
                pair.rgb[j / 3][j % 3] = 0.5f;
#pragma unroll 1
            for (int k = 0; k < rows.count; k++) {
                const Pair row = pair_of<ACROSS>(p, columns, rows.first + k);
                const float weight = share(rows, k);
#pragma unroll
                for (int j = 0; j < 6; j++)
                    pair.rgb[j / 3][j % 3] += weight * row.rgb[j / 3][j % 3];
            }
#pragma unroll
            for (int j = 0; j < 6; j++)
                pair.rgb[j / 3][j % 3] = saturate(pair.rgb[j / 3][j % 3]);
        }
        line++;
        return pair;
    }
};

// The two columns of a thread: clamped, so that those beside the frame repeat its edge.
struct Side {
    bool live;
    bool two;
    u32 left;
    u32 right;

    __device__ __forceinline__ Side(int lane, int x, int width)
        : live(lane >= 0 && x < width), two(x + 1 < width), left((u32)(x < 0 ? 0 : x < width ? x : width - 1)),
          right((u32)(x < 0 ? 0 : x + 1 < width ? x + 1 : width - 1)) {}
};

template <Resize ACROSS, bool GROWS>
static __device__ __forceinline__ void full_strip(const TensorToFrame &p, const Taps *lines, u32 rows) {
    const int lane = (int)threadIdx.x;
    const Side side(lane, 64 * (int)blockIdx.x + 2 * lane, (int)p.width);
    if (!side.live)
        return;
    Walk<ACROSS, GROWS> walk(p, lines, side.left, side.right);
    const Full out(p, side.left, side.two);
#pragma unroll 1
    for (u32 y = blockIdx.y * p.rows, end = y + rows; y < end; y++)
        out.put_row(p, walk.next(p), y);
}

template <Resize ACROSS, bool GROWS>
static __device__ __forceinline__ void subsampled_strip(const TensorToFrame &p, const Taps *lines, u32 rows) {
    const int lane = (int)threadIdx.x - (int)p.on_x;
    // All lanes take part in shuffles.
    const Side side(lane, 2 * ((int)(blockIdx.x * (32 - p.on_x)) + lane), (int)p.width);
    Walk<ACROSS, GROWS> walk(p, lines, side.left, side.right);
    Subsampled out(p, side.left, blockIdx.y * p.rows, side.two);
    const float top = p.ten_bits ? 1023 : 255;
    // How many rows are to be stored.
    const u32 stored = side.live ? rows : 0;
    // The last row of the pair above.
    Pair above = {};
#pragma unroll 1
    for (u32 i = 0; i < 2 * p.on_y; i++)
        above = walk.next(p);
    // A row, or a pair of rows.
#pragma unroll 1
    for (u32 row = 0; row < rows; row += 1 << p.sub_y) {
        Pair sum = walk.next(p);
        const u32 codes[2] = {code(p.map[0], sum.rgb[0], top), code(p.map[0], sum.rgb[1], top)};
        if (row < stored)
            out.put_luma(p, codes);
        out.next_luma(p);
        if (p.sub_y > 0) {
            const Pair below = walk.next(p);
            if (row + 1 < stored) {
                const u32 codes[2] = {code(p.map[0], below.rgb[0], top), code(p.map[0], below.rgb[1], top)};
                out.put_luma(p, codes);
            }
            out.next_luma(p);
            // The other row, or half of it and half of the one above.
            Pair other = below;
            if (p.on_y) {
#pragma unroll
                for (int j = 0; j < 6; j++)
                    other.rgb[j / 3][j % 3] += 0.5f * (above.rgb[j / 3][j % 3] - other.rgb[j / 3][j % 3]);
                above = below;
            }
#pragma unroll
            for (int j = 0; j < 6; j++)
                sum.rgb[j / 3][j % 3] = 0.5f * (sum.rgb[j / 3][j % 3] + other.rgb[j / 3][j % 3]);
        }
        // Half the first column, and half the second; or a quarter of the second and of the one before the first.
        float left[3], mean[3];
#pragma unroll
        for (int c = 0; c < 3; c++)
            left[c] = sum.rgb[1][c];
        if (p.on_x) {
#pragma unroll
            for (int c = 0; c < 3; c++)
                left[c] = __shfl_up_sync(0xffffffff, left[c], 1);
        }
#pragma unroll
        for (int c = 0; c < 3; c++)
            mean[c] = 0.5f * sum.rgb[0][c] + 0.25f * (left[c] + sum.rgb[1][c]);
        if (row < stored)
            out.put_differences(p, code(p.map[1], mean, top), code(p.map[2], mean, top), codes);
        out.next_differences(p);
    }
}

template <Resize ACROSS, bool GROWS>
static __device__ __forceinline__ void strip_of(const TensorToFrame &p, const Taps *lines, u32 rows) {
    if (p.sub_x > 0)
        subsampled_strip<ACROSS, GROWS>(p, lines, rows);
    else
        full_strip<ACROSS, GROWS>(p, lines, rows);
}

// The rows of a strip, worked out by all threads together.
static __device__ __forceinline__ u32 lines_of(const TensorToFrame &p, Taps *lines) {
    const u32 y0 = blockIdx.y * p.rows;
    const u32 rows = p.rows < p.height - y0 ? p.rows : p.height - y0;
    // With the pair above, where colour differences need it, and a second row for the last pair.
    const int above = 2 * (int)p.on_y, count = above + (int)((rows + p.sub_y) >> p.sub_y << p.sub_y);
    for (int i = (int)threadIdx.x; i < count; i += 32) {
        const int y = (int)y0 + i - above, last = (int)p.height - 1;
        Taps line = taps(p.down, place(p.down, (u32)(y < 0 ? 0 : y < last ? y : last)));
#pragma unroll
        for (int k = 0; k < 4; k++)
            line.share[k] *= 0.5f;
        lines[i] = line;
    }
    __syncthreads();
    return rows;
}

// For frames that are larger than the tensor both ways, which is at least five samples wide.
KERNEL_OF(32, 16) tensor_to_larger_frame(const TensorToFrame p) {
    DYNAMIC_SHARED(shared);
    Taps *lines = (Taps *)shared;
    const u32 rows = lines_of(p, lines);
    strip_of<CUBIC, true>(p, lines, rows);
}

// For all others.
KERNEL_OF(32, 16) tensor_to_frame(const TensorToFrame p) {
    DYNAMIC_SHARED(shared);
    Taps *lines = (Taps *)shared;
    const u32 rows = lines_of(p, lines);
    if (grows(p.down))
        strip_of<ANY, true>(p, lines, rows);
    else if (grows(p.across) && p.across.size >= 5)
        strip_of<CUBIC, false>(p, lines, rows);
    else if (p.across.num == p.across.den && p.width % 2 == 0 && ((u64)p.tensor & 3) == 0)
        strip_of<SAME, false>(p, lines, rows);
    else
        strip_of<ANY, false>(p, lines, rows);
}
