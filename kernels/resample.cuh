// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Resizing, one axis at a time: which input samples an output sample is made of, and in what shares.
//
// Where the input is larger, the mean over the area that an output pixel covers; where it is smaller, cubic convolution
// with a = -½ (Keys, "Cubic convolution interpolation for digital image processing", 1981), edges repeated. Positions are
// ratios of integers, so no rounding creeps in along a row; a division finds the first one, additions the next ones.

// Output sample o of this axis covers [o·num + shift, (o+1)·num + shift) / den of `size` input samples. num and den are
// sides in pixels (den doubled for samples that are for two pixels), so all products below fit into 32 bits. Samples for
// two pixels that lie on the first of them, not between the two, are a quarter of a sample away: then both are doubled
// once more, and shift is den / 4.
struct Axis {
    u32 num;
    u32 den;
    u32 shift;
    u32 size;
    // num / den and num % den.
    u32 whole;
    u32 part;
};

// Where the area of an output sample begins: `rest` / den after the beginning of input sample `sample`.
struct Place {
    u32 sample;
    u32 rest;
};

// What one output sample is made of: `count` samples from `first` on. The first may be before the first sample, and the
// last after the last: they stand for those.
struct alignas(16) Taps {
    // Of four samples each one's. Of another number those of the first, of each one between, that again, and of the last.
    float share[4];
    int first;
    int count;
};

// Whether the output is larger: then it is always made of four samples.
static __device__ __forceinline__ bool grows(const Axis &axis) { return axis.num < axis.den; }

static __device__ __forceinline__ Place place(const Axis &axis, u32 o) {
    const u32 begin = o * axis.num + axis.shift;
    Place at;
    at.sample = begin / axis.den;
    at.rest = begin - at.sample * axis.den;
    return at;
}

// The place of the output sample after the one at `at`.
static __device__ __forceinline__ Place next(const Axis &axis, const Place &at) {
    const u32 rest = at.rest + axis.part;
    const bool over = rest >= axis.den;
    Place after;
    after.sample = at.sample + axis.whole + (over ? 1 : 0);
    after.rest = over ? rest - axis.den : rest;
    return after;
}

static __device__ __forceinline__ Taps taps(const Axis &axis, const Place &at) {
    Taps t;
    if (grows(axis)) {
        // The middle of the output sample, less half an input sample, in units of 1/(2·den) after the sample before.
        const u32 position = 2 * at.rest + axis.num + axis.den;
        const bool over = position >= 2 * axis.den;
        const float x = (float)(over ? position - 2 * axis.den : position) * reciprocal((float)(2 * axis.den));
        t.first = (int)at.sample + (over ? 1 : 0) - 2;
        t.count = 4;
        t.share[0] = ((-0.5f * x + 1) * x - 0.5f) * x;
        t.share[1] = (1.5f * x - 2.5f) * x * x + 1;
        t.share[2] = ((-1.5f * x + 2) * x + 0.5f) * x;
        t.share[3] = (0.5f * x - 0.5f) * x * x;
    } else {
        const Place end = next(axis, at);
        const float unit = reciprocal((float)axis.num);
        t.first = (int)at.sample;
        t.count = (int)(end.sample - at.sample) + (end.rest > 0 ? 1 : 0);
        t.share[0] = t.count == 1 ? 1 : (float)(axis.den - at.rest) * unit;
        t.share[1] = t.share[2] = (float)axis.den * unit;
        t.share[3] = (float)(end.rest > 0 ? end.rest : axis.den) * unit;
    }
    return t;
}

// The share of sample t.first + k.
static __device__ __forceinline__ float share(const Taps &t, int k) {
    return k == 0 ? t.share[0] : k == t.count - 1 ? t.share[3] : k == 1 ? t.share[1] : t.share[2];
}

static __device__ __forceinline__ u32 inside(const Axis &axis, int sample) {
    return sample < 0 ? 0 : (u32)sample < axis.size ? (u32)sample : axis.size - 1;
}
