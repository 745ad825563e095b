// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Resizing, one axis at a time: a block makes a piece of one row (or two) of the output. First all its threads walk
// along the input rows that the piece needs, add them up with the weights of the vertical axis and leave the sums in
// shared memory; then each output pixel adds up its neighbours there. So every input sample is read once for each row of
// the output that it touches, in words of 4 bytes side by side, whatever the format.
//
// Weights: where the input is larger, the mean over the area that an output pixel covers; where it is smaller, cubic
// convolution with a = -½ (Keys, "Cubic convolution interpolation for digital image processing", 1981), edges repeated.
// Positions are ratios of integers, so no rounding creeps in along a row.

// Output sample o of this axis covers [o·num + shift, (o+1)·num + shift) / den of `size` input samples. num and den are
// sides in pixels (den doubled for samples that are for two pixels), so all products below fit into 32 bits. Samples for
// two pixels that lie on the first of them, not between the two, are a quarter of a sample away: then both are doubled
// once more, and shift is den / 4.
struct Axis {
    u32 num;
    u32 den;
    u32 shift;
    u32 size;
};

// What one output sample is made of: `count` samples from `first` on. The first may be before the first sample, and the
// last after the last: they stand for those.
struct Taps {
    int first;
    int count;
    // Cubic: the position between the two samples in the middle. Area: below zero.
    float between;
    u32 begin;
    u32 end;
    float share;
};

static __device__ __forceinline__ Taps taps(const Axis &axis, u32 o) {
    Taps t;
    t.begin = o * axis.num + axis.shift;
    t.end = t.begin + axis.num;
    if (axis.num >= axis.den) {
        t.first = (int)(t.begin / axis.den);
        t.count = (int)((t.end - 1) / axis.den) - t.first + 1;
        t.between = -1;
        t.share = reciprocal((float)axis.num);
    } else {
        // ((o + ½)·num + shift)/den − ½, in units of 1/(2·den) and moved up by a sample, so that it is positive.
        const u32 position = 2 * t.begin + axis.num + axis.den;
        const u32 sample = position / (2 * axis.den);
        t.first = (int)sample - 2;
        t.count = 4;
        t.share = 0;
        t.between = (float)(position - sample * 2 * axis.den) * reciprocal((float)(2 * axis.den));
    }
    return t;
}

// The weight of sample t.first + k.
static __device__ __forceinline__ float weight(const Axis &axis, const Taps &t, int k) {
    if (t.between < 0) {
        if (t.count == 1)
            return 1;
        const u32 from = (u32)(t.first + k) * axis.den, to = from + axis.den;
        const u32 overlap = (to < t.end ? to : t.end) - (from > t.begin ? from : t.begin);
        return (float)overlap * t.share;
    }
    const float x = t.between;
    switch (k) {
    case 0:
        return ((-0.5f * x + 1) * x - 0.5f) * x;
    case 1:
        return (1.5f * x - 2.5f) * x * x + 1;
    case 2:
        return ((-1.5f * x + 2) * x + 0.5f) * x;
    default:
        return (0.5f * x - 0.5f) * x * x;
    }
}

static __device__ __forceinline__ u32 inside(const Axis &axis, int sample) {
    return sample < 0 ? 0 : (u32)sample < axis.size ? (u32)sample : axis.size - 1;
}

// The samples that outputs [begin, end) need: from first to last.
struct Span {
    u32 first;
    u32 last;
};

static __device__ __forceinline__ Span span(const Axis &axis, u32 begin, u32 end) {
    const Taps head = taps(axis, begin), tail = taps(axis, end - 1);
    Span s;
    s.first = inside(axis, head.first);
    s.last = inside(axis, tail.first + tail.count - 1);
    return s;
}

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

struct Half {
    static const u32 bytes = 2;
    static __device__ __forceinline__ float value(const u8 *at) { return from_half(*(const h16 *)at); }
    static __device__ __forceinline__ void word(u32 w, float *out) {
        out[0] = from_half((h16)(w & 0xffff));
        out[1] = from_half((h16)(w >> 16));
    }
};

// Where rows may be read in words: the byte to begin at so that `first` is read too.
static __device__ __forceinline__ u32 begin_at(const u8 *base, u64 stride, u32 first) {
    return (((u64)base | stride) & 3) == 0 ? first & ~3u : first;
}

// How many words there are to read from there to `end`; the samples after them are read one by one.
static __device__ __forceinline__ u32 words_of(const u8 *base, u64 stride, u32 begin, u32 end) {
    return (((u64)(base + begin) | stride) & 3) == 0 ? (end - begin) / 4 : 0;
}

// Adds up word i from byte `begin` on of the rows that `rows` names, each `stride` bytes after the last, into `out`, which
// has one float for a sample.
template <typename Sample>
static __device__ __forceinline__ void add_word(const u8 *base, u64 stride, u32 begin, u32 i, const Axis &axis,
                                                const Taps &rows, float *out) {
    const u32 per_word = 4 / Sample::bytes;
    float sum[per_word], values[per_word];
#pragma unroll
    for (u32 j = 0; j < per_word; j++)
        sum[j] = 0;
#pragma unroll 4
    for (int k = 0; k < rows.count; k++) {
        const u8 *row = base + inside(axis, rows.first + k) * stride;
        Sample::word(*(const u32 *)(row + begin + 4 * i), values);
        const float share = weight(axis, rows, k);
#pragma unroll
        for (u32 j = 0; j < per_word; j++)
            sum[j] += share * values[j];
    }
#pragma unroll
    for (u32 j = 0; j < per_word; j++)
        out[per_word * i + j] = sum[j];
}

// The same for samples after `words` words, until byte `end`. All threads of a block do it together.
template <typename Sample>
static __device__ __forceinline__ void add_samples(const u8 *base, u64 stride, u32 begin, u32 end, u32 words,
                                                   const Axis &axis, const Taps &rows, float *out) {
    const u32 samples = (end - begin) / Sample::bytes;
    for (u32 i = 4 / Sample::bytes * words + threadIdx.x; i < samples; i += blockDim.x) {
        float sum = 0;
#pragma unroll 1
        for (int k = 0; k < rows.count; k++) {
            const u8 *row = base + inside(axis, rows.first + k) * stride;
            sum += weight(axis, rows, k) * Sample::value(row + begin + Sample::bytes * i);
        }
        out[i] = sum;
    }
}
