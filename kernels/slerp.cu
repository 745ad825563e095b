// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Spherical interpolation: out = (sin((1−t)·θ)·a + sin(t·θ)·b) / sin θ, θ being the angle between a and b seen as
// vectors (Shoemake, "Animating rotation with quaternion curves", 1985). Their lengths are left as they are. Vectors
// that are almost parallel or opposite, or zero, have no arc of their own and are mixed linearly.
//
// `sums` is what the kernel `cosine` made of a and b. `out` may be a or b.
//
// Moves 6 bytes an element.

struct SlerpRow {
    const h16 *a;
    const h16 *b;
    h16 *out;
    const float *sums;
    float t;
    u32 len;
};

KERNEL slerp(const SlerpRow *rows) {
    const SlerpRow row = rows[blockIdx.y];
    float p = 1 - row.t, q = row.t;
    const float lengths = sqrtf(row.sums[1]) * sqrtf(row.sums[2]);
    if (lengths > 0) {
        const float cosine = fminf(fmaxf(row.sums[0] / lengths, -1), 1);
        const float angle = acosf(cosine), sine = sinf(angle);
        if (sine > 1e-6f) {
            p = sinf((1 - row.t) * angle) / sine;
            q = sinf(row.t * angle) / sine;
        }
    }
    const u32 vectors = aligned(row.a) && aligned(row.b) && aligned(row.out) ? row.len / 8 : 0;
    for (u32 i = first_of_thread(); i < vectors; i += threads_of_row()) {
        float a[8], b[8];
        load8(row.a + 8 * i, a);
        load8(row.b + 8 * i, b);
#pragma unroll
        for (int k = 0; k < 8; k++)
            a[k] = p * a[k] + q * b[k];
        store8(row.out + 8 * i, a);
    }
    for (u32 i = 8 * vectors + first_of_thread(); i < row.len; i += threads_of_row())
        row.out[i] = to_half(p * from_half(row.a[i]) + q * from_half(row.b[i]));
}
