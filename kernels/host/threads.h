// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The threads of a block on the CPU.

#pragma once

// A kernel on its argument, as one thread runs it.
typedef void (*Call)(const void *argument);

// Runs the block that blockIdx, blockDim and gridDim say. Without barriers and shuffles (`waits`), one thread after the
// other; otherwise as fibres that take turns there, first forward, then backward, so what is not ordered by a barrier comes
// out wrong.
void run_block(Call call, const void *argument, bool waits);

// Told what is wrong with a kernel or a launch; ends the program. Whoever links this has it.
[[noreturn]] void fail(const char *what);
