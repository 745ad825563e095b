// SPDX-License-Identifier: MIT OR Apache-2.0
//
// All kernels, compiled for the CPU: see launch.h. KERNELS is the file that holds them.
//
// Built with AddressSanitizer, a block's shared memory is allocated to the byte, so that nothing out of bounds goes
// unnoticed.

#include "launch.h"

#include "cuda.h"
#include "threads.h"

#include KERNELS

#include <stdlib.h>

float *dynamic_shared;

#define ROWS(kernel, Row, waits)                                                                                       \
    {                                                                                                                  \
#kernel, waits, sizeof(const Row *), [](const void *a) { kernel(*(const Row *const *)a); }                          \
    }
#define VALUE(kernel, Argument, waits)                                                                                 \
    {                                                                                                                  \
#kernel, waits, sizeof(Argument), [](const void *a) { kernel(*(const Argument *)a); }                               \
    }

// Which kernels there are, whether their threads wait for each other, and the size of their argument.
static const struct {
    const char *name;
    bool waits;
    size_t size;
    Call call;
} kernels[] = {
    ROWS(combine, CombineRow, false),
    ROWS(copy_f16_f16, CopyRow, false),
    ROWS(copy_f16_f32, CopyRow, false),
    ROWS(copy_f32_f16, CopyRow, false),
    ROWS(copy_f32_f32, CopyRow, false),
    ROWS(copy_bytes, CopyBytesRow, false),
    ROWS(posterior_f16, PosteriorRow, false),
    ROWS(posterior_f32, PosteriorRow, false),
    ROWS(cosine, CosineRow, true),
    ROWS(slerp, SlerpRow, false),
    ROWS(blend, BlendRow, false),
    ROWS(interpolate_f16, InterpolateRow, true),
    ROWS(interpolate_f32, InterpolateRow, true),
    VALUE(frame_to_tensor, FrameToTensor, true),
    VALUE(tensor_to_frame, TensorToFrame, true),
    VALUE(tensor_to_larger_frame, TensorToFrame, true),
};

void launch(const char *name, unsigned grid_x, unsigned grid_y, unsigned block, size_t shared, const void *argument,
            size_t argument_size) {
    for (const auto &kernel : kernels) {
        if (strcmp(name, kernel.name) != 0)
            continue;
        if (argument_size != kernel.size)
            fail("its argument has another size");
        gridDim = {grid_x, grid_y, 1};
        blockDim = {block, 1, 1};
        for (unsigned y = 0; y < grid_y; y++) {
            for (unsigned x = 0; x < grid_x; x++) {
                blockIdx = {x, y, 0};
                dynamic_shared = (float *)malloc(shared);
                // No number, so that reading what nobody wrote shows.
                memset(dynamic_shared, 0xff, shared);
                run_block(kernel.call, argument, kernel.waits);
                free(dynamic_shared);
            }
        }
        return;
    }
    fail("there is no such kernel");
}
