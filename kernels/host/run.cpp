// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Runs the kernels on the CPU, as tests/kernels asks for. Buffers are allocated to the byte, so that AddressSanitizer sees
// all that is out of bounds.
//
// From standard input, numbers being 8 bytes, little-endian, and a "patch" saying "at byte A there is the address of byte B
// of buffer N" as A, N, B:
//   cases; of each
//     buffers; of each its size, how far from a multiple of 64 it begins, and its bytes
//     patches; of each the buffer it is in, and the patch
//     launches; of each the kernel (length and name), grid x, grid y, block, shared memory in bytes, the argument (size and
//     bytes), and patches of the argument
// To standard output: the bytes of all buffers of all cases.

#include "launch.h"
#include "threads.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <vector>

static std::string current;

void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", current.c_str(), what);
    exit(2);
}

static void read_bytes(void *to, size_t size) {
    if (size > 0 && fread(to, 1, size, stdin) != size)
        fail("the input ends too early");
}

static uint64_t read_number() {
    uint64_t number;
    read_bytes(&number, sizeof number);
    return number;
}

struct Buffer {
    char *memory;
    char *begin;
    size_t size;
};

static std::vector<Buffer> buffers;

static void patch(char *bytes, size_t size) {
    const uint64_t at = read_number(), buffer = read_number(), offset = read_number();
    if (at + 8 > size || buffer >= buffers.size() || offset > buffers[buffer].size)
        fail("a patch that leads nowhere");
    const char *address = buffers[buffer].begin + offset;
    memcpy(bytes + at, &address, 8);
}

int main() {
    const uint64_t cases = read_number();
    for (uint64_t i = 0; i < cases; i++) {
        current = "case " + std::to_string(i);
        buffers.resize(read_number());
        for (Buffer &buffer : buffers) {
            buffer.size = read_number();
            const uint64_t offset = read_number();
            void *memory = nullptr;
            if (posix_memalign(&memory, 64, offset + buffer.size))
                fail("out of memory");
            buffer.memory = (char *)memory;
            buffer.begin = buffer.memory + offset;
            read_bytes(buffer.begin, buffer.size);
        }
        for (uint64_t patches = read_number(); patches > 0; patches--) {
            const uint64_t buffer = read_number();
            if (buffer >= buffers.size())
                fail("a patch that leads nowhere");
            patch(buffers[buffer].begin, buffers[buffer].size);
        }
        for (uint64_t launches = read_number(); launches > 0; launches--) {
            std::string name(read_number(), ' ');
            read_bytes(&name[0], name.size());
            current = "case " + std::to_string(i) + ", " + name;
            const unsigned grid_x = (unsigned)read_number(), grid_y = (unsigned)read_number();
            const unsigned block = (unsigned)read_number();
            const uint64_t shared = read_number();
            std::vector<char> bytes(read_number());
            read_bytes(bytes.data(), bytes.size());
            for (uint64_t patches = read_number(); patches > 0; patches--)
                patch(bytes.data(), bytes.size());
            launch(name.c_str(), grid_x, grid_y, block, shared, bytes.data(), bytes.size());
        }
        for (Buffer &buffer : buffers) {
            if (buffer.size > 0 && fwrite(buffer.begin, 1, buffer.size, stdout) != buffer.size)
                fail("the output is closed");
            free(buffer.memory);
        }
    }
    return 0;
}
