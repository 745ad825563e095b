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
// the rows of the frame that the piece needs, in words of 4 or 8 bytes side by side, whatever the format; they add them up
// with the shares of the vertical axis and leave the sums in shared memory. Then each thread makes two pixels at a time of
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
        // A byte as the last one of 2^23 in f32 adds itself to that.
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[i] = bits_to_float(bytes_of(w, 0x4b000000, 0x7440 + i)) - 8388608.0f;
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

// The samples that a piece of a row of `width` needs: from first to last.
struct Span {
    u32 first;
    u32 last;
};

static __device__ __forceinline__ Span span(const Axis &axis, u32 begin, u32 end, u32 width) {
    Span s;
    s.first = 0;
    s.last = axis.size - 1;
    // Without divisions, where one block makes all of a row.
    if (begin == 0 && end == width)
        return s;
    const Taps head = taps(axis, place(axis, begin)), tail = taps(axis, place(axis, end - 1));
    s.first = inside(axis, head.first);
    s.last = inside(axis, tail.first + tail.count - 1);
    return s;
}

// As many words side by side, which are read together.
template <int WORDS> struct alignas(4 * WORDS) Words {
    u32 word[WORDS];
};

// Adds up as many words of each of the rows; `column` is where row 0 has them.
template <typename Sample, int WORDS>
static __device__ __forceinline__ void add_words(const u8 *column, u32 stride, const Axis &axis, const Taps &rows,
                                                 float *out) {
    const int per_word = 4 / (int)Sample::bytes, samples = WORDS * per_word;
    float sum[samples], values[per_word];
#pragma unroll
    for (int j = 0; j < samples; j++)
        sum[j] = 0;
    // Four rows at a time, so that as many are under way.
#pragma unroll 1
    for (int k = 0; k < rows.count; k += 4) {
        Words<WORDS> read[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (k + i < rows.count)
                read[i] = *(const Words<WORDS> *)(column + (u64)inside(axis, rows.first + k + i) * stride);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (k + i < rows.count) {
                const float weight = share(rows, k + i);
#pragma unroll
                for (int w = 0; w < WORDS; w++) {
                    Sample::word(read[i].word[w], values);
#pragma unroll
                    for (int j = 0; j < per_word; j++)
                        sum[per_word * w + j] += weight * values[j];
                }
            }
        }
    }
#pragma unroll
    for (int j = 0; j < samples; j++)
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

// Sums of N components that share a grid; zero[c] is where sample 0 of each would be.
template <int N> struct Apart {
    static const int count = N;
    const float *sums;
    const int *zero;
    int step;

    __device__ __forceinline__ void read(int sample, float *out) const {
#pragma unroll
        for (int c = 0; c < N; c++)
            out[c] = sums[zero[c] + sample * step];
    }
};

// Sums of all bytes of pixels of four; `pixels`, where pixel 0 would be, is at a multiple of 16 bytes.
struct Together {
    static const int count = 4;
    const float *pixels;

    __device__ __forceinline__ void read(int sample, float *out) const {
        const Vector v = *(const Vector *)(pixels + 4 * sample);
#pragma unroll
        for (int c = 0; c < 4; c++)
            out[c] = bits_to_float(v.word[c]);
    }
};

// What they are at one pixel of the tensor.
template <typename Sums>
static __device__ __forceinline__ void gather(const Sums &sums, const Axis &axis, const Taps &t, float *out) {
    float values[Sums::count];
    if (grows(axis)) {
#pragma unroll
        for (int c = 0; c < Sums::count; c++)
            out[c] = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            sums.read((int)inside(axis, t.first + k), values);
#pragma unroll
            for (int c = 0; c < Sums::count; c++)
                out[c] += t.share[k] * values[c];
        }
        return;
    }
    // Those between the first and the last have one share.
    float between[Sums::count];
#pragma unroll
    for (int c = 0; c < Sums::count; c++)
        between[c] = 0;
#pragma unroll 4
    for (int k = 1; k < t.count - 1; k++) {
        sums.read(t.first + k, values);
#pragma unroll
        for (int c = 0; c < Sums::count; c++)
            between[c] += values[c];
    }
    sums.read(t.first, values);
#pragma unroll
    for (int c = 0; c < Sums::count; c++)
        out[c] = t.share[0] * values[c] + t.share[1] * between[c];
    if (t.count > 1) {
        sums.read((int)inside(axis, t.first + t.count - 1), values);
#pragma unroll
        for (int c = 0; c < Sums::count; c++)
            out[c] += t.share[3] * values[c];
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
    const Span spans[2] = {span(p.across[0], x0, x1, p.width), span(p.across[1], x0, x1, p.width)};

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
            // Two words together or one by one, where rows can be read so, and sample by sample what is left.
            const u32 unit = (((u64)base | stride) & 7) == 0 ? 8 : (((u64)base | stride) & 3) == 0 ? 4 : Sample::bytes;
            const u32 begin = first & ~(unit - 1);
            const u32 units = unit > Sample::bytes ? (end - begin) / unit : 0;
            const u32 tasks = units + (end - begin - unit * units) / Sample::bytes;
            for (; task < tasks; task += blockDim.x) {
                const u32 byte = task < units ? unit * task : unit * units + Sample::bytes * (task - units);
                const u8 *column = base + begin + byte;
                float *out = sums + used + byte / Sample::bytes;
                if (task >= units)
                    *out = add_sample<Sample>(column, stride, axis, rows);
                else if (unit == 8)
                    add_words<Sample, 2>(column, stride, axis, rows, out);
                else
                    add_words<Sample, 1>(column, stride, axis, rows, out);
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
    const bool together = Sample::bytes == 1 && p.step[0] == 4 && (zero[0] - (int)p.offset[0]) % 4 == 0;
    for (u32 x = x0 + 2 * threadIdx.x; x < x1; x += 2 * blockDim.x) {
        float codes[2][3];
        Place luma = place(p.across[0], x), others = place(p.across[1], x);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            codes[i][0] = codes[i][1] = codes[i][2] = 0;
            if (x + i < x1) {
                const int step = (int)(p.step[0] / Sample::bytes);
                const Taps t = taps(p.across[0], luma);
                if (together) {
                    float bytes[4];
                    gather(Together{sums + zero[0] - (int)p.offset[0]}, p.across[0], t, bytes);
#pragma unroll
                    for (u32 c = 0; c < 3; c++) {
                        const u32 at = p.offset[c];
                        codes[i][c] = at == 0 ? bytes[0] : at == 1 ? bytes[1] : at == 2 ? bytes[2] : bytes[3];
                    }
                } else if (p.components == 3 && one_grid) {
                    gather(Apart<3>{sums, zero, step}, p.across[0], t, codes[i]);
                } else {
                    gather(Apart<1>{sums, zero, step}, p.across[0], t, codes[i]);
                    if (p.components == 3)
                        gather(Apart<2>{sums, zero + 1, (int)(p.step[1] / Sample::bytes)}, p.across[1],
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
