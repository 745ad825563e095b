// SPDX-License-Identifier: MIT OR Apache-2.0
//
// out[i] = in[i]·scale + shift, in f32, between f16 and f32; and plain copies of bytes.
//
// With scale 1 and shift 0 values are not touched, so a copy without conversion keeps every number. What is too large for
// f16 becomes infinite. `in` and `out` must not overlap, unless they are the same array of one type.
//
// Stacks rows into an engine's input, takes its output apart, converts types, scales latents for the image decoder.
//
// Moves the size of in and that of out.

struct CopyRow {
    const void *in;
    void *out;
    float scale;
    float shift;
    u32 len;
    u32 unused;
};

template <typename In, typename Out> static __device__ __forceinline__ void copy(const CopyRow *rows) {
    const CopyRow row = rows[blockIdx.y];
    const In *in = (const In *)row.in;
    Out *out = (Out *)row.out;
    const bool plain = row.scale == 1 && row.shift == 0;
    const u32 vectors = aligned(in) && aligned(out) ? row.len / 8 : 0;
    for (u32 i = first_of_thread(); i < vectors; i += threads_of_row()) {
        float values[8];
        load8(in + 8 * i, values);
        if (!plain) {
#pragma unroll
            for (int k = 0; k < 8; k++)
                values[k] = values[k] * row.scale + row.shift;
        }
        store8(out + 8 * i, values);
    }
    for (u32 i = 8 * vectors + first_of_thread(); i < row.len; i += threads_of_row()) {
        float value = widen(in[i]);
        if (!plain)
            value = value * row.scale + row.shift;
        narrow(value, out + i);
    }
}

KERNEL copy_f16_f16(const CopyRow *rows) { copy<h16, h16>(rows); }
KERNEL copy_f16_f32(const CopyRow *rows) { copy<h16, float>(rows); }
KERNEL copy_f32_f16(const CopyRow *rows) { copy<float, h16>(rows); }
KERNEL copy_f32_f32(const CopyRow *rows) { copy<float, float>(rows); }

struct CopyBytesRow {
    const u8 *in;
    u8 *out;
    u32 bytes;
    u32 unused;
};

KERNEL copy_bytes(const CopyBytesRow *rows) {
    const CopyBytesRow row = rows[blockIdx.y];
    const u32 vectors = aligned(row.in) && aligned(row.out) ? row.bytes / 16 : 0;
    for (u32 i = first_of_thread(); i < vectors; i += threads_of_row())
        ((Vector *)row.out)[i] = ((const Vector *)row.in)[i];
    for (u32 i = 16 * vectors + first_of_thread(); i < row.bytes; i += threads_of_row())
        row.out[i] = row.in[i];
}
