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
// A thread makes two columns of pixels side by side, down a strip of `rows` rows; a warp's columns are neighbours. It
// resizes across first: a row of the tensor gives it two pixels. These stay in registers while it goes down, the last four
// of them where the frame is higher than the tensor, and every row of the frame is a sum of what is there. So a row of the
// tensor is resized across once for a strip, not once for each row of the frame, and no thread waits for another one.
// What is the same all along a row, its taps, the threads of a block share out and leave in shared memory before.
//
// Where colour differences lie on the first of two pixels, they need the pixel before: the lane before has it, and a
// warp's first lane makes it and nothing else. Rows above a strip are made once more in the same way.
//
// Moves the tensor (6 bytes a pixel; what several rows of the frame need comes from the cache again), and the frame once.

struct TensorToFrame {
    const h16 *tensor;
    u8 *planes[3];
    u32 strides[3];
    // Bytes of a pixel of three or four; 0 where the components are not side by side in bytes.
    u32 packed;
    // Planes of the second and third component, and the bytes from sample to sample.
    u32 plane[2];
    u32 step;
    // What bytes_of is to make: a pixel of four bytes of two components and a third one with 255, or a unit of the second
    // and the third; and then a unit of that and the first component's two samples.
    u32 order;
    u32 unit_order;
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
    // Of a strip; even where colour differences are for two rows.
    u32 rows;
    // Of a block of the launch's size.
    u32 warps;
    u32 ten_bits;
    // From red, green and blue in [0, 1] to codes in [0, 1]; of packed components in the order of their bytes.
    float map[3][4];
};

// A row of the frame: what it is made of, in halves of the shares.
struct alignas(16) Line {
    Taps taps;
    // Half its share in the colour differences of its pair of rows, and in those of the next pair.
    float here;
    float below;
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

// A float whose last bits are the code: the sum is rounded to a multiple of 1.
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

static __device__ __forceinline__ bool multiples(const u8 *at, u32 stride, u32 of) {
    return (((u64)at | stride) & (of - 1)) == 0;
}

// Where the samples of a thread's columns are, in the row that is made next.
struct Cursor {
    u8 *at;
    u32 stride;

    __device__ __forceinline__ Cursor(const TensorToFrame &p, u32 plane, u32 row, u32 byte)
        : at(p.planes[plane] + (u64)row * p.strides[plane] + byte), stride(p.strides[plane]) {}

    __device__ __forceinline__ bool multiples(u32 of) const { return ::multiples(at, stride, of); }
};

// Frames whose components have a sample for each pixel.
struct Full {
    static const bool subsampled = false;

    Cursor rows[3];
    // Whether a row's two pixels are one store.
    bool one_store;
    bool two;

    __device__ __forceinline__ Full(const TensorToFrame &p, u32 x, u32 y, bool two)
        : rows{Cursor(p, 0, y, x * (p.packed > 0 ? p.packed : 1)), Cursor(p, p.plane[0], y, x),
               Cursor(p, p.plane[1], y, x)},
          one_store(two && p.packed == 4 && rows[0].multiples(8)), two(two) {}

    // The next row.
    __device__ __forceinline__ void put_row(const TensorToFrame &p, const Pair &pair) const {
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
            if (one_store) {
                *(u64 *)rows[0].at = (u64)words[1] << 32 | words[0];
                return;
            }
            const bool whole = rows[0].multiples(4);
            put(rows[0].at, words[0], 4, whole);
            if (two)
                put(rows[0].at + 4, words[1], 4, whole);
        } else if (p.packed == 3) {
            const bool whole = two && rows[0].multiples(2);
            put(rows[0].at, bytes_of(codes[0][0], codes[0][1], BYTES), 2, whole);
            if (two) {
                put(rows[0].at + 2, bytes_of(codes[0][2], codes[1][0], BYTES), 2, whole);
                put(rows[0].at + 4, bytes_of(codes[1][1], codes[1][2], BYTES), 2, whole);
            } else {
                put(rows[0].at + 2, codes[0][2], 1, false);
            }
        } else {
#pragma unroll
            for (u32 c = 0; c < 3; c++)
                if (c < p.components)
                    put(rows[c].at, bytes_of(codes[0][c], codes[1][c], BYTES), two ? 2 : 1, rows[c].multiples(2));
        }
    }

    __device__ __forceinline__ void next_row() {
#pragma unroll
        for (int c = 0; c < 3; c++)
            rows[c].at += rows[c].stride;
    }
};

// Frames with one sample of the colour differences for two pixels of a row at least.
struct Subsampled {
    static const bool subsampled = true;

    Cursor luma;
    Cursor differences[2];
    // What is stored how: two samples of a byte in one, in a row of luma and in one of the colour differences.
    bool two;
    bool luma_pairs;
    bool difference_pairs;

    __device__ __forceinline__ Subsampled(const TensorToFrame &p, u32 x, u32 y, bool two)
        : luma(p, 0, y, x << p.ten_bits),
          differences{Cursor(p, p.plane[0], y >> p.sub_y, x / 2 * p.step), Cursor(p, p.plane[1], y >> p.sub_y, x / 2 * p.step)},
          two(two), luma_pairs(two && p.plane[0] != 0 && !p.ten_bits && luma.multiples(2)),
          difference_pairs(p.plane[0] == p.plane[1] && p.step == 2 && differences[0].multiples(2)) {}

    __device__ __forceinline__ void put_luma(const TensorToFrame &p, u32 left, u32 right) const {
        if (luma_pairs) {
            *(u16 *)luma.at = (u16)bytes_of(left, right, BYTES);
        } else if (p.ten_bits) {
            const u32 both = bytes_of(left, right, PAIRS) << 6;
            if (two && luma.multiples(4)) {
                put(luma.at, both, 4, true);
            } else {
                put(luma.at, both, 2, true);
                if (two)
                    put(luma.at + 2, both >> 16, 2, true);
            }
        } else if (p.plane[0] != 0) {
            put(luma.at, bytes_of(left, right, BYTES), two ? 2 : 1, luma.multiples(2));
        }
    }

    // And, where it shares a unit with them, the luma of the two pixels.
    __device__ __forceinline__ void put_differences(const TensorToFrame &p, u32 u, u32 v, u32 left, u32 right) const {
        u8 *at = differences[0].at;
        const u32 both = bytes_of(u, v, p.order);
        if (difference_pairs) {
            *(u16 *)at = (u16)both;
        } else if (p.plane[0] != p.plane[1]) {
            *at = (u8)u;
            *differences[1].at = (u8)v;
        } else if (p.plane[0] == 0) {
            put(at, bytes_of(bytes_of(left, right, BYTES), both, p.unit_order), 4, differences[0].multiples(4));
        } else if (!p.ten_bits) {
            put(at, both, 2, false);
        } else if (differences[0].multiples(4)) {
            put(at, both << 6, 4, true);
        } else {
            put(at, both << 6, 2, true);
            put(at + 2, both >> 10, 2, true);
        }
    }

    __device__ __forceinline__ void next_luma() { luma.at += luma.stride; }

    __device__ __forceinline__ void next_differences() {
        differences[0].at += differences[0].stride;
        differences[1].at += differences[1].stride;
    }
};

// The columns that this warp makes of the strip.
template <Resize ACROSS, bool GROWS, typename Layout>
static __device__ __forceinline__ void strip_of(const TensorToFrame &p, const Line *line, int count, u32 warp) {
    const int on_x = Layout::subsampled ? (int)p.on_x : 0, on_y = Layout::subsampled ? (int)p.on_y : 0;
    const int lane = (int)(threadIdx.x % 32) - on_x;
    const int first = 2 * (int)warp * (32 - on_x), x = first + 2 * lane;
    if (first >= (int)p.width)
        return;
    // All lanes take part in shuffles.
    const int last = (int)p.width - 1;
    const u32 left = (u32)(x < 0 ? 0 : x < last ? x : last), right = (u32)(x + 1 < 0 ? 0 : x + 1 < last ? x + 1 : last);
    const bool live = lane >= 0 && x <= last;
    const Columns<ACROSS> columns(p.across, left, right);
    const u32 y0 = blockIdx.y * p.rows;
    Layout layout(p, left, y0, x < last);
    const float top = Layout::subsampled && p.ten_bits ? 1023 : 255;

    // Rows line->taps.first to `ready` of the tensor, where four are enough for any row of the frame.
    Pair window[4];
    int ready = line->taps.first - 1;
    // For colour differences: sums down a pair of rows.
    Pair sums = {};
#pragma unroll 1
    for (int i = -on_y; i < count; i++, line++) {
        Pair pair;
        if (GROWS) {
            const int needed = line->taps.first + 3;
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
                    sum = line->taps.share[k] * window[k].rgb[j / 3][j % 3] + sum;
                pair.rgb[j / 3][j % 3] = saturate(sum);
            }
        } else {
            const Taps rows = line->taps;
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
        if constexpr (!Layout::subsampled) {
            if (live)
                layout.put_row(p, pair);
            layout.next_row();
        } else {
            // The row before the strip, and one below the frame, are for colour differences alone.
            const bool within = i >= 0;
            const u32 luma[2] = {code(p.map[0], pair.rgb[0], top), code(p.map[0], pair.rgb[1], top)};
            if (live && within && y0 + (u32)i < p.height)
                layout.put_luma(p, luma[0], luma[1]);
            if (within)
                layout.next_luma();
#pragma unroll
            for (int j = 0; j < 6; j++)
                sums.rgb[j / 3][j % 3] += line->here * pair.rgb[j / 3][j % 3];
            if (p.sub_y > 0 && (i & 1) == 0)
                continue;
            float mean[3];
            if (on_x) {
#pragma unroll
                for (int c = 0; c < 3; c++)
                    mean[c] = 0.5f * (sums.rgb[1][c] + __shfl_up_sync(0xffffffff, sums.rgb[1][c], 1)) + sums.rgb[0][c];
            } else {
#pragma unroll
                for (int c = 0; c < 3; c++)
                    mean[c] = sums.rgb[0][c] + sums.rgb[1][c];
            }
            if (within) {
                if (live)
                    layout.put_differences(p, code(p.map[1], mean, top), code(p.map[2], mean, top), luma[0], luma[1]);
                layout.next_differences();
            }
#pragma unroll
            for (int j = 0; j < 6; j++)
                sums.rgb[j / 3][j % 3] = line->below * pair.rgb[j / 3][j % 3];
        }
    }
}

template <typename Layout>
static __device__ __forceinline__ void tensor_to_frame_of(const TensorToFrame &p, const Line *lines, int count) {
    const bool cubic = grows(p.across) && p.across.size >= 5;
    const bool same = p.across.num == p.across.den && p.width % 2 == 0 && ((u64)p.tensor & 3) == 0;
#pragma unroll 1
    for (u32 i = threadIdx.x / 32; i < p.warps; i += blockDim.x / 32) {
        const u32 warp = blockIdx.x * p.warps + i;
        if (grows(p.down)) {
            if (cubic)
                strip_of<CUBIC, true, Layout>(p, lines, count, warp);
            else
                strip_of<ANY, true, Layout>(p, lines, count, warp);
        } else if (cubic) {
            strip_of<CUBIC, false, Layout>(p, lines, count, warp);
        } else if (same) {
            strip_of<SAME, false, Layout>(p, lines, count, warp);
        } else {
            strip_of<ANY, false, Layout>(p, lines, count, warp);
        }
    }
}

KERNEL_OF(128, 4) tensor_to_frame(const TensorToFrame p) {
    DYNAMIC_SHARED(shared);
    Line *lines = (Line *)shared;
    // The strip's rows, the missing one of a pair too, and the one before where colour differences need it.
    const u32 y0 = blockIdx.y * p.rows;
    const u32 rows = p.rows < p.height - y0 ? p.rows : (p.height - y0 + p.sub_y) >> p.sub_y << p.sub_y;
    const u32 count = rows + p.on_y;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        const u32 above = y0 + i > p.on_y ? y0 + i - p.on_y : 0;
        const bool second = p.sub_y > 0 && ((i - p.on_y) & 1) == 1;
        Line line;
        line.taps = taps(p.down, place(p.down, above < p.height ? above : p.height - 1));
#pragma unroll
        for (int k = 0; k < 4; k++)
            line.taps.share[k] *= 0.5f;
        // Across there are two pixels in each, or as much as two, hence half of it.
        line.here = p.sub_y == 0 ? 0.5f : second && p.on_y ? 0.125f : 0.25f;
        line.below = p.on_y ? 0.125f : 0;
        lines[i] = line;
    }
    __syncthreads();
    if (p.sub_x > 0)
        tensor_to_frame_of<Subsampled>(p, lines, (int)rows);
    else
        tensor_to_frame_of<Full>(p, lines, (int)rows);
}
