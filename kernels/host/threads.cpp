// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Fibres for threads: see threads.h.

#include "threads.h"

#include "cuda.h"

#include <ucontext.h>
#include <vector>

// AddressSanitizer has to be told of other stacks: before the switch to one, and after it.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
static void switching(void **save, const void *stack, size_t size) { __sanitizer_start_switch_fiber(save, stack, size); }
static void switched(void *saved, const void **stack, size_t *size) { __sanitizer_finish_switch_fiber(saved, stack, size); }
#else
static void switching(void **, const void *, size_t) {}
static void switched(void *, const void **, size_t *) {}
#endif
// Each of its switches clears what is known of a whole stack, so a long one costs time.
static const size_t STACK = 64 * 1024;

Index threadIdx, blockIdx, blockDim, gridDim;

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

void run_block(Call kernel, const void *its_argument, bool waits) {
    call = kernel;
    argument = its_argument;
    waits ? run_block_of_fibres() : run_block_of_loops();
}
