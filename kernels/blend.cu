// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A picture laid over another one: out[i] = share·min(max(a[i], -1), 1) + (1 − share)·b[i], in f32.
//
// a is what an image decoder gives, which may leave [-1, 1] and is clamped as it would be if it were shown alone; no
// number counts as -1 (black), as it is shown. b is the picture that it was made of, in [-1, 1] already. With share 0
// the output is b, with share 1 it is a, clamped. `out` may be an operand.
//
// Wet and dry: one row for each frame of a group, since each has a share of its own.
//
// Moves 6 bytes an element.

struct BlendRow {
    const h16 *a;
    const h16 *b;
    h16 *out;
    float share;
    u32 len;
};

static __device__ __forceinline__ float blended(float share, float a, float b) {
    return share * fminf(fmaxf(a, -1), 1) + (1 - share) * b;
}

KERNEL blend(const BlendRow *rows) {
    const BlendRow row = rows[blockIdx.y];
    const u32 vectors = aligned(row.a) && aligned(row.b) && aligned(row.out) ? row.len / 8 : 0;
    for (u32 i = first_of_thread(); i < vectors; i += threads_of_row()) {
        float a[8], b[8];
        load8(row.a + 8 * i, a);
        load8(row.b + 8 * i, b);
#pragma unroll
        for (int k = 0; k < 8; k++)
            a[k] = blended(row.share, a[k], b[k]);
        store8(row.out + 8 * i, a);
    }
    for (u32 i = 8 * vectors + first_of_thread(); i < row.len; i += threads_of_row())
        row.out[i] = to_half(blended(row.share, from_half(row.a[i]), from_half(row.b[i])));
}
