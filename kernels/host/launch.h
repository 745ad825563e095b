// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The kernels on the CPU.

#pragma once

#include <stddef.h>

// Runs a kernel over a grid, one block after the other. What is wrong with the launch goes to `fail` (threads.h).
void launch(const char *name, unsigned grid_x, unsigned grid_y, unsigned block, size_t shared, const void *argument,
            size_t argument_size);
