// SPDX-License-Identifier: MIT OR Apache-2.0
//
// out[i] = ka·a[i] + kb·b[i] + kc·c[i] + kd·d[i mod period], in f32.
//
// One row of it is the fused step of a slot: a is the noisy latent, b the model's output, c the output for the negative
// prompt or the anchor latent, d the next step's noise map; the factors hold guidance, the consistency step and the
// noise that is added again (arXiv 2312.12491, eq. 2 to 8, as four numbers). All slots go in one launch. With fewer
// operands it is the noising of a clean latent, or a linear blend of embeddings.
//
// A null operand, and one whose factor is 0, is not read. `out` may be an operand, index by index; not `d` if it
// repeats. `period` is that of d, e.g. one noise map for all frames of a slot; 0 is "does not repeat".
//
// Moves 2 bytes an element for each operand that is read, and 2 for out.

struct CombineRow {
    const h16 *a;
    const h16 *b;
    const h16 *c;
    const h16 *d;
    h16 *out;
    float ka;
    float kb;
    float kc;
    float kd;
    u32 len;
    u32 period;
};

static __device__ __forceinline__ void add8(float *sum, float factor, const h16 *operand) {
    float values[8];
    load8(operand, values);
#pragma unroll
    for (int k = 0; k < 8; k++)
        sum[k] += factor * values[k];
}

KERNEL combine(const CombineRow *rows) {
    const CombineRow row = rows[blockIdx.y];
    const h16 *a = row.ka != 0 ? row.a : nullptr;
    const h16 *b = row.kb != 0 ? row.b : nullptr;
    const h16 *c = row.kc != 0 ? row.c : nullptr;
    const h16 *d = row.kd != 0 ? row.d : nullptr;
    const u32 period = row.period != 0 ? row.period : row.len;
    const bool whole = period >= row.len;
    const bool fits = aligned(a) && aligned(b) && aligned(c) && aligned(d) && aligned(row.out) &&
                      (whole || period % 8 == 0);
    const u32 vectors = fits ? row.len / 8 : 0;
    for (u32 i = first_of_thread(); i < vectors; i += threads_of_row()) {
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (a)
            add8(sum, row.ka, a + 8 * i);
        if (b)
            add8(sum, row.kb, b + 8 * i);
        if (c)
            add8(sum, row.kc, c + 8 * i);
        if (d)
            add8(sum, row.kd, d + (whole ? 8 * i : 8 * i % period));
        store8(row.out + 8 * i, sum);
    }
    for (u32 i = 8 * vectors + first_of_thread(); i < row.len; i += threads_of_row()) {
        float sum = 0;
        if (a)
            sum += row.ka * from_half(a[i]);
        if (b)
            sum += row.kb * from_half(b[i]);
        if (c)
            sum += row.kc * from_half(c[i]);
        if (d)
            sum += row.kd * from_half(d[whole ? i : i % period]);
        row.out[i] = to_half(sum);
    }
}
