// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A latent from the distribution that an image encoder gives:
// out[i] = (mean[i] + exp(½·min(max(v[i], -30), 20))·noise[i] − shift)·scale, v being the logarithm of the variance
// (DiagonalGaussianDistribution in Hugging Face's diffusers). A null `noise` gives the mean.
//
// `moments` holds the `len` means of a frame, then its `len` logarithms: [2·C, h, w] with len = C·h·w.
//
// Moves len elements of the encoder's type and 2·len bytes; with noise twice the one and 4·len bytes.

struct PosteriorRow {
    const void *moments;
    const h16 *noise;
    h16 *out;
    float scale;
    float shift;
    u32 len;
    u32 unused;
};

static __device__ __forceinline__ float deviation(float log_variance) {
    // Comparisons, not fminf and fmaxf: these would turn a NaN into a number.
    const float v = log_variance < -30 ? -30 : log_variance > 20 ? 20 : log_variance;
    return expf(0.5f * v);
}

template <typename Moment> static __device__ __forceinline__ void posterior(const PosteriorRow *rows) {
    const PosteriorRow row = rows[blockIdx.y];
    const Moment *means = (const Moment *)row.moments;
    const Moment *logs = means + row.len;
    const bool fits = aligned(means) && aligned(row.out) && (!row.noise || (aligned(logs) && aligned(row.noise)));
    const u32 vectors = fits ? row.len / 8 : 0;
    for (u32 i = first_of_thread(); i < vectors; i += threads_of_row()) {
        float values[8];
        load8(means + 8 * i, values);
        if (row.noise) {
            float noise[8], log_variances[8];
            load8(row.noise + 8 * i, noise);
            load8(logs + 8 * i, log_variances);
#pragma unroll
            for (int k = 0; k < 8; k++)
                values[k] += deviation(log_variances[k]) * noise[k];
        }
#pragma unroll
        for (int k = 0; k < 8; k++)
            values[k] = (values[k] - row.shift) * row.scale;
        store8(row.out + 8 * i, values);
    }
    for (u32 i = 8 * vectors + first_of_thread(); i < row.len; i += threads_of_row()) {
        float value = widen(means[i]);
        if (row.noise)
            value += deviation(widen(logs[i])) * from_half(row.noise[i]);
        row.out[i] = to_half((value - row.shift) * row.scale);
    }
}

KERNEL posterior_f16(const PosteriorRow *rows) { posterior<h16>(rows); }
KERNEL posterior_f32(const PosteriorRow *rows) { posterior<float>(rows); }
