// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Runs the kernels on the CPU, as tests/kernels asks for. KERNELS is the file that holds all of them.
//
// The threads of a block are fibres that take turns at barriers and shuffles, first forward, then backward, so what is
// not ordered by a barrier comes out wrong. Blocks run one after the other. Built with AddressSanitizer, buffers are
// allocated to the byte, and so is a block's shared memory, so that nothing out of bounds goes unnoticed.
//
// From standard input, numbers being 8 bytes, little-endian, and a "patch" saying "at byte A there is the address of byte B
// of buffer N" as A, N, B:
//   cases; of each
//     buffers; of each its size, how far from a multiple of 64 it begins, and its bytes
//     patches; of each the buffer it is in, and the patch
//     launches; of each the kernel (length and name), grid x, grid y, block, shared memory in bytes, the argument (size and
//     bytes), and patches of the argument
// To standard output: the bytes of all buffers of all cases.

#include "cuda.h"

#include KERNELS

#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <ucontext.h>
#include <vector>

// AddressSanitizer has to be told of other stacks: before the switch to one, and after it.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
// Each switch clears what is known of a whole stack, so a long one costs time.
static const size_t STACK = 64 * 1024;
static void switching(void **save, const void *stack, size_t size) { __sanitizer_start_switch_fiber(save, stack, size); }
static void switched(void *saved, const void **stack, size_t *size) { __sanitizer_finish_switch_fiber(saved, stack, size); }
#else
static const size_t STACK = 64 * 1024;
static void switching(void **, const void *, size_t) {}
static void switched(void *, const void **, size_t *) {}
#endif

Index threadIdx, blockIdx, blockDim, gridDim;
float *dynamic_shared;

static std::string current;

[[noreturn]] static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", current.c_str(), what);
    exit(2);
}

// ---- Threads

enum Waiting { RUNS, FOR_BLOCK, FOR_WARP, DONE };

struct Fibre {
    ucontext_t context;
    std::vector<char> stack;
    Waiting state;
    // Two by turns, so that one barrier does for a shuffle.
    float handed_over[2];
    bool turn;
    void *fake_stack;
};

typedef void (*Call)(const void *argument);

static std::vector<Fibre> fibres;
static Fibre *running;
static ucontext_t scheduler;
static void *scheduler_fake_stack;
static const void *scheduler_stack;
static size_t scheduler_stack_size;
static Call call;
static const void *argument;

// Back to the scheduler; for good when the thread is done.
static void leave(bool for_good) {
    Fibre *self = running;
    switching(for_good ? nullptr : &self->fake_stack, scheduler_stack, scheduler_stack_size);
    swapcontext(&self->context, &scheduler);
    switched(self->fake_stack, &scheduler_stack, &scheduler_stack_size);
}

static void thread() {
    switched(nullptr, &scheduler_stack, &scheduler_stack_size);
    call(argument);
    running->state = DONE;
    leave(true);
}

static void resume(unsigned i) {
    running = &fibres[i];
    threadIdx = {i, 0, 0};
    switching(&scheduler_fake_stack, running->stack.data(), running->stack.size());
    swapcontext(&scheduler, &running->context);
    switched(scheduler_fake_stack, nullptr, nullptr);
    running = nullptr;
}

void barrier(bool warp) {
    if (!running)
        fail("a barrier in a kernel that is said to have none");
    const Index self = threadIdx;
    running->state = warp ? FOR_WARP : FOR_BLOCK;
    leave(false);
    threadIdx = self;
}

float exchange(float value, unsigned lane) {
    const unsigned first = threadIdx.x / 32 * 32;
    if (first + lane >= blockDim.x)
        fail("a shuffle from a thread that is not there");
    const bool turn = running->turn = !running->turn;
    running->handed_over[turn] = value;
    barrier(true);
    return fibres[first + lane].handed_over[turn];
}

// Lets go on those of fibres [begin, end) that wait for each other, if all that are not done do. Whether any did.
static bool release(unsigned begin, unsigned end, Waiting kind) {
    bool any = false;
    for (unsigned i = begin; i < end; i++) {
        if (fibres[i].state != kind && fibres[i].state != DONE)
            return false;
        any |= fibres[i].state == kind;
    }
    for (unsigned i = begin; i < end; i++)
        if (fibres[i].state == kind)
            fibres[i].state = RUNS;
    return any;
}

static void run_block_of_fibres() {
    const unsigned count = blockDim.x;
    if (fibres.size() < count)
        fibres.resize(count);
    for (unsigned i = 0; i < count; i++) {
        Fibre &fibre = fibres[i];
        fibre.stack.resize(STACK);
        fibre.state = RUNS;
        fibre.fake_stack = nullptr;
        fibre.turn = false;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, thread, 0);
    }
    for (bool backward = false;; backward = !backward) {
        for (unsigned n = 0; n < count; n++) {
            const unsigned i = backward ? count - 1 - n : n;
            if (fibres[i].state == RUNS)
                resume(i);
        }
        bool any = release(0, count, FOR_BLOCK);
        for (unsigned first = 0; first < count; first += 32)
            any |= release(first, first + 32 < count ? first + 32 : count, FOR_WARP);
        if (!any) {
            for (unsigned i = 0; i < count; i++)
                if (fibres[i].state != DONE)
                    fail("threads wait at different barriers");
            return;
        }
    }
}

static void run_block_of_loops() {
    for (unsigned i = 0; i < blockDim.x; i++) {
        threadIdx = {i, 0, 0};
        call(argument);
    }
}

// ---- Kernels

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
    VALUE(frame_to_tensor, FrameToTensor, true),
    VALUE(tensor_to_frame, TensorToFrame, true),
    VALUE(tensor_to_larger_frame, TensorToFrame, true),
};

static void launch(const std::string &name, const std::vector<char> &bytes, size_t shared) {
    for (const auto &kernel : kernels) {
        if (name != kernel.name)
            continue;
        if (bytes.size() != kernel.size)
            fail("its argument has another size");
        call = kernel.call;
        argument = bytes.data();
        for (unsigned y = 0; y < gridDim.y; y++) {
            for (unsigned x = 0; x < gridDim.x; x++) {
                blockIdx = {x, y, 0};
                dynamic_shared = (float *)malloc(shared);
                // No number, so that reading what nobody wrote shows.
                memset(dynamic_shared, 0xff, shared);
                kernel.waits ? run_block_of_fibres() : run_block_of_loops();
                free(dynamic_shared);
            }
        }
        return;
    }
    fail("there is no such kernel");
}

// ---- Input

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
            gridDim = {(unsigned)read_number(), 1, 1};
            gridDim.y = (unsigned)read_number();
            blockDim = {(unsigned)read_number(), 1, 1};
            const uint64_t shared = read_number();
            std::vector<char> bytes(read_number());
            read_bytes(bytes.data(), bytes.size());
            for (uint64_t patches = read_number(); patches > 0; patches--)
                patch(bytes.data(), bytes.size());
            launch(name, bytes, shared);
        }
        for (Buffer &buffer : buffers) {
            if (buffer.size > 0 && fwrite(buffer.begin, 1, buffer.size, stdout) != buffer.size)
                fail("the output is closed");
            free(buffer.memory);
        }
    }
    return 0;
}
