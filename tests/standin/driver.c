/* A stand-in for NVIDIA's driver and for NVRTC, to see without a GPU in which order things are done. Device memory is main
 * memory. Work on a stream is put off until something waits for it, or is done as early as what it waits for allows, as
 * standin_eager says for each stream; so what is not put in order by events comes out wrong. Kernels are run by
 * standin_launch where that is linked in (kernels.cpp); else they move the first eight bytes of what they are for, by which
 * a frame is known. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_CONTEXT = 201, INVALID_HANDLE = 400, NOT_READY = 600, NOT_SUPPORTED = 801 };
/* Small handles are the driver's own streams. */
enum { STREAMS = 64, HANDLE = 0x100 };

/* Runs a kernel: its name, blocks along x and y, threads of a block, bytes of dynamic shared memory, argument and its size. */
void standin_launch(const char *name, unsigned x, unsigned y, unsigned block, size_t shared, const void *argument,
                    size_t size) __attribute__((weak));

struct operation;
/* `target` is the last thing that was on the stream when the event was recorded there. */
struct event { long life; int stream; long target; int timed, recorded; };
struct operation {
    enum { COPY, KERNEL, CALL, WAIT } kind;
    void *to;
    const void *from;
    /* What was copied from pageable memory. */
    void *own;
    size_t size;
    const char *name;
    int stream;   /* For WAIT: of the event. */
    long target;
    /* A kernel's blocks along x and y, the threads of each, and their shared memory. */
    unsigned x, y, block, shared;
    /* Its argument, as it was at the launch. */
    unsigned char argument[288];
    /* A function of the program's. */
    void (*call)(void *);
    void *data;
    struct operation *next;
};
struct stream {
    long life, queued, done;
    int eager, used, capturing;
    struct operation *first, *last;
};
struct graph { struct operation *first, *last; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct stream streams[STREAMS];
/* The primary context: how often it is held, which one it is, and the error that sticks to it. */
static _Atomic long held, life = 1, live, misused;
static _Atomic int sticking;
static int resets_refused, never_again, version = 13000, eager_after[STREAMS];
static size_t memory = (size_t)1 << 32, taken;
static long resets, made;
/* The thread's context: 0x77 is the primary one. */
static __thread long current;
/* Whether this thread captures: then it may neither wait nor have memory or give it back, as in that mode of capture. */
static __thread int captures;

static int check(void)
{
    if (!current)
        return NO_CONTEXT;
    return sticking;
}

static int valid(long of)
{
    if (of == life)
        return 1;
    misused++;
    return 0;
}

/* Doing. */

static void advance(int index);

static void need(int index, long target)
{
    struct stream *stream = &streams[index];
    /* After an error that sticks nothing is done any more. */
    while (!sticking && stream->done < target && stream->first)
        advance(index);
}

static void stamp(void *to, const void *from)
{
    if (to && from)
        memmove(to, from, 8);
}

/* Of rows it is one address, of frames so many bytes. */
static size_t size_of_argument(const char *name)
{
    return !strcmp(name, "frame_to_tensor") ? 280 : !strncmp(name, "tensor_to_", 10) ? 200 : 8;
}

static void kernel(const struct operation *operation)
{
    const char *name = operation->name;
    void *const *pointer = (void *const *)operation->argument;
    if (standin_launch) {
        standin_launch(name, operation->x, operation->y, operation->block, operation->shared, operation->argument,
                       size_of_argument(name));
        return;
    }
    if (!strcmp(name, "frame_to_tensor")) {
        stamp(pointer[3], pointer[0]);
        return;
    }
    if (!strncmp(name, "tensor_to_", 10)) {
        stamp(pointer[1], pointer[0]);
        return;
    }
    /* Rows: their size, and the places of the addresses of what they read and write. */
    size_t size = 0, from = 0, to = 8;
    if (!strcmp(name, "copy_bytes"))
        size = 24;
    else if (!strncmp(name, "copy_", 5))
        size = 32;
    else if (!strcmp(name, "combine"))
        size = 64, to = 32;
    for (unsigned row = 0; size && row < operation->y; row++) {
        const char *at = (const char *)pointer[0] + row * size;
        stamp(*(void **)(at + to), *(void **)(at + from));
    }
}

/* Does the next thing on a stream, and what that waits for first. */
static void advance(int index)
{
    struct stream *stream = &streams[index];
    struct operation *operation = stream->first;
    stream->first = operation->next;
    if (!stream->first)
        stream->last = NULL;
    if (operation->kind == WAIT)
        need(operation->stream, operation->target);
    else if (operation->kind == COPY)
        memcpy(operation->to, operation->from, operation->size);
    else if (operation->kind == CALL)
        operation->call(operation->data);
    else
        kernel(operation);
    stream->done++;
    free(operation->own);
    free(operation);
}

/* Does on streams that are eager what can be done. */
static void settle(void)
{
    for (int again = 1; again;) {
        again = 0;
        for (int i = 0; i < STREAMS; i++) {
            struct stream *stream = &streams[i];
            while (!sticking && stream->eager && stream->first) {
                struct operation *next = stream->first;
                if (next->kind == WAIT && streams[next->stream].done < next->target)
                    break;
                advance(i);
                again = 1;
            }
        }
    }
}

static struct graph *captured;

static void put(int index, struct operation operation)
{
    struct stream *stream = &streams[index];
    struct operation *copy = malloc(sizeof *copy);
    *copy = operation;
    copy->next = NULL;
    if (stream->capturing) {
        if (captured->last)
            captured->last->next = copy;
        else
            captured->first = copy;
        captured->last = copy;
        return;
    }
    if (stream->last)
        stream->last->next = copy;
    else
        stream->first = copy;
    stream->last = copy;
    stream->queued++;
    settle();
}

/* How often the driver was asked for what costs a frame time. */
static const char *const COUNTED[] = {
    "cuMemAlloc_v2", "cuMemFree_v2", "cuMemHostAlloc", "cuMemFreeHost", "cuCtxSynchronize", "cuStreamSynchronize",
    "cuEventSynchronize", "cuLaunchKernel", "cuGraphLaunch", "cuGraphInstantiateWithFlags", "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
};
enum { KINDS = sizeof COUNTED / sizeof *COUNTED };
static _Atomic long counts[KINDS];

static void count(const char *name)
{
    for (int i = 0; i < KINDS; i++)
        counts[i] += !strcmp(COUNTED[i], name);
}

/* What tests ask. Streams are counted from 0, in the order in which the device made them. */

/* -1 for what is not counted. */
long standin_count(const char *name)
{
    for (int i = 0; i < KINDS; i++)
        if (!strcmp(COUNTED[i], name))
            return counts[i];
    return -1;
}

void standin_eager(int stream, int eager) { pthread_mutex_lock(&lock); eager_after[stream] = eager; for (int i = 0; i < STREAMS; i++) if (streams[i].used == stream + 1) streams[i].eager = eager; settle(); pthread_mutex_unlock(&lock); }
long standin_pending(int stream)
{
    long pending = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < STREAMS; i++)
        if (streams[i].used == stream + 1)
            pending = streams[i].queued - streams[i].done;
    pthread_mutex_unlock(&lock);
    return pending;
}
long standin_live(void) { return live; }
long standin_misused(void) { return misused; }
long standin_resets(void) { return resets; }
long standin_held(void) { return held; }
void standin_fail(int code) { sticking = code; }
void standin_refuse_resets(int refused) { resets_refused = refused; }
/* After an error that sticks there is no other context until this is 0 again. 1: what follows is lost too, whatever is reset.
 * 2: none is given. */
void standin_never_again(int how) { never_again = how; if (!how) sticking = 0; }
void standin_version(int number) { version = number; }
void standin_memory(size_t bytes) { memory = bytes; }

/* The driver. */

static const char *name_of(int error)
{
    switch (error) {
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case NO_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
    case 214: return "CUDA_ERROR_ECC_UNCORRECTABLE";
    case INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
    case 700: return "CUDA_ERROR_ILLEGAL_ADDRESS";
    case 719: return "CUDA_ERROR_LAUNCH_FAILED";
    default: return "STANDIN";
    }
}

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *number) { *number = version; return OK; }
int cuGetErrorName(int error, const char **text) { *text = name_of(error); return OK; }
int cuGetErrorString(int error, const char **text) { *text = "as the stand-in was told"; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : OK; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "stand-in", size); return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    /* 75 and 76 are the compute capability, 8.9. */
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : 512;
    return OK;
}

static void clear(struct stream *stream)
{
    while (stream->first) {
        struct operation *next = stream->first->next;
        free(stream->first->own);
        free(stream->first);
        stream->first = next;
    }
    memset(stream, 0, sizeof *stream);
}

static void forget(void)
{
    life++;
    if (!never_again)
        sticking = 0;
    for (int i = 0; i < STREAMS; i++)
        clear(&streams[i]);
    made = 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device)
{
    if (never_again == 2 && sticking)
        return sticking;
    held++;
    *context = (void *)0x77;
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device)
{
    if (--held == 0)
        forget();
    return OK;
}
int cuDevicePrimaryCtxReset_v2(int device)
{
    resets++;
    if (resets_refused)
        return NOT_SUPPORTED;
    if (never_again == 2 && sticking)
        return sticking;
    forget();
    return OK;
}
int cuCtxGetCurrent(void **context) { *context = (void *)current; return OK; }
int cuCtxSetCurrent(void *context) { current = (long)context; return OK; }
int cuCtxSynchronize(void) { count(__func__); return check(); }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = memory - taken; *total = memory; return check(); }

int cuStreamCreate(void **out, unsigned flags)
{
    int error = check();
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    int i = 1;
    while (i < STREAMS && streams[i].used)
        i++;
    made++;
    streams[i] = (struct stream){.life = life, .used = (int)made, .eager = eager_after[made - 1]};
    *out = (void *)(uintptr_t)(HANDLE + i);
    live++;
    pthread_mutex_unlock(&lock);
    return OK;
}

static int index_of(void *stream)
{
    int i = (int)(uintptr_t)stream - HANDLE;
    return i > 0 && i < STREAMS && streams[i].used && valid(streams[i].life) ? i : 0;
}

int cuStreamDestroy_v2(void *stream)
{
    pthread_mutex_lock(&lock);
    int i = index_of(stream);
    if (i) {
        need(i, streams[i].queued);
        clear(&streams[i]);
        live--;
    }
    pthread_mutex_unlock(&lock);
    return i ? OK : INVALID_HANDLE;
}
int cuStreamSynchronize(void *stream)
{
    count(__func__);
    int error = check();
    /* The default stream has nothing put off. */
    if (error || !stream)
        return error;
    misused += captures;
    pthread_mutex_lock(&lock);
    int i = index_of(stream);
    if (i) {
        need(i, streams[i].queued);
        settle();
    }
    pthread_mutex_unlock(&lock);
    return i ? check() : INVALID_HANDLE;
}
int cuStreamIsCapturing(void *stream, int *status) { *status = streams[index_of(stream)].capturing; return OK; }
int cuStreamBeginCapture_v2(void *stream, int mode)
{
    pthread_mutex_lock(&lock);
    streams[index_of(stream)].capturing = captures = 1;
    captured = calloc(1, sizeof *captured);
    pthread_mutex_unlock(&lock);
    return check();
}
int cuStreamEndCapture(void *stream, void **graph)
{
    pthread_mutex_lock(&lock);
    streams[index_of(stream)].capturing = captures = 0;
    *graph = captured;
    captured = NULL;
    live++;
    pthread_mutex_unlock(&lock);
    return check();
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) { count(__func__); *executable = graph; return check(); }
int cuGraphLaunch(void *graph, void *stream)
{
    count(__func__);
    int error = check();
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    int i = index_of(stream);
    for (struct operation *next = ((struct graph *)graph)->first; i && next; next = next->next) {
        struct operation again = *next;
        if (again.own)
            again.from = again.own = memcpy(malloc(again.size), next->own, again.size);
        put(i, again);
    }
    pthread_mutex_unlock(&lock);
    return i ? OK : INVALID_HANDLE;
}
int cuGraphExecDestroy(void *graph) { return OK; }
int cuGraphDestroy(void *graph)
{
    struct operation *next = ((struct graph *)graph)->first;
    while (next) {
        struct operation *after = next->next;
        free(next->own);
        free(next);
        next = after;
    }
    free(graph);
    live--;
    return OK;
}

int cuEventCreate(void **out, unsigned flags)
{
    int error = check();
    if (error)
        return error;
    struct event *event = calloc(1, sizeof *event);
    event->life = life;
    event->timed = !(flags & 2);
    *out = event;
    live++;
    return OK;
}
int cuEventDestroy_v2(struct event *event)
{
    int right = valid(event->life);
    live--;
    free(event);
    return right ? OK : INVALID_HANDLE;
}
int cuEventRecord(struct event *event, void *stream)
{
    int error = check();
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    int i = index_of(stream);
    /* What is recorded while a stream is captured cannot be waited for outside. */
    if (streams[i].capturing)
        misused++;
    event->stream = i;
    event->target = streams[i].queued;
    event->recorded = 1;
    pthread_mutex_unlock(&lock);
    return i && valid(event->life) ? OK : INVALID_HANDLE;
}
/* 1: as part of a graph, to be seen outside. */
int cuEventRecordWithFlags(struct event *event, void *stream, unsigned flags)
{
    if (flags != 1)
        return cuEventRecord(event, stream);
    event->recorded = 1;
    return check();
}
int cuEventQuery(struct event *event)
{
    int error = check();
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    int ready = streams[event->stream].done >= event->target;
    pthread_mutex_unlock(&lock);
    return valid(event->life) ? ready ? OK : NOT_READY : INVALID_HANDLE;
}
int cuEventSynchronize(struct event *event)
{
    count(__func__);
    int error = check();
    if (error)
        return error;
    misused += captures;
    pthread_mutex_lock(&lock);
    need(event->stream, event->target);
    settle();
    pthread_mutex_unlock(&lock);
    return valid(event->life) ? check() : INVALID_HANDLE;
}
/* Of events that are past, and keep their time. */
int cuEventElapsedTime(float *milliseconds, struct event *from, struct event *to)
{
    int error = check();
    if (error)
        return error;
    struct event *const both[] = {from, to};
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 2 && !error; i++) {
        if (!valid(both[i]->life) || !both[i]->timed || !both[i]->recorded)
            error = INVALID_HANDLE;
        else if (streams[both[i]->stream].done < both[i]->target)
            error = NOT_READY;
    }
    pthread_mutex_unlock(&lock);
    *milliseconds = 1;
    return error;
}
int cuEventElapsedTime_v2(float *milliseconds, struct event *from, struct event *to) { return cuEventElapsedTime(milliseconds, from, to); }
int cuStreamWaitEvent(void *stream, struct event *event, unsigned flags)
{
    int error = check();
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    int i = index_of(stream), right = valid(event->life);
    if (i && right && event->target)
        put(i, (struct operation){.kind = WAIT, .stream = event->stream, .target = event->target});
    pthread_mutex_unlock(&lock);
    return i && right ? OK : INVALID_HANDLE;
}

/* Every piece of memory says how large it is, and of which context it is. */
struct piece { size_t size; long life; int pinned; struct piece *next; };
enum { HEAD = 512 };
static struct piece *pieces;

static int allocate(void **pointer, size_t size, int pinned)
{
    int error = check();
    if (error)
        return error;
    misused += captures;
    pthread_mutex_lock(&lock);
    char *base = taken + size > memory ? NULL : aligned_alloc(HEAD, (HEAD + size + HEAD - 1) / HEAD * HEAD);
    if (base) {
        *(struct piece *)base = (struct piece){size, life, pinned, pieces};
        pieces = (struct piece *)base;
        /* No number, so that reading what nobody wrote shows. */
        memset(base + HEAD, 0xff, size);
        *pointer = base + HEAD;
        taken += size;
        live++;
    }
    pthread_mutex_unlock(&lock);
    return base ? OK : OUT_OF_MEMORY;
}
static int release(void *pointer)
{
    misused += captures;
    pthread_mutex_lock(&lock);
    struct piece *piece = (struct piece *)((char *)pointer - HEAD);
    const char *begin = pointer, *end = begin + piece->size;
    for (int i = 0; i < STREAMS; i++) {
        /* Nothing may be on its way from or to page-locked memory that is freed. */
        for (struct operation *next = streams[i].first; next && piece->pinned && !sticking; next = next->next)
            misused += next->kind == COPY && (((const char *)next->to >= begin && (const char *)next->to < end) ||
                                              ((const char *)next->from >= begin && (const char *)next->from < end));
        /* Of the GPU's own memory, the driver finishes first what is under way. */
        if (!piece->pinned)
            need(i, streams[i].queued);
    }
    int right = valid(piece->life);
    struct piece **at = &pieces;
    while (*at && *at != piece)
        at = &(*at)->next;
    if (*at)
        *at = piece->next;
    taken -= piece->size;
    live--;
    free(piece);
    pthread_mutex_unlock(&lock);
    return right ? OK : INVALID_VALUE;
}
int cuMemAlloc_v2(void **pointer, size_t size) { count(__func__); return allocate(pointer, size, 0); }
int cuMemHostAlloc(void **pointer, size_t size, unsigned flags) { count(__func__); return allocate(pointer, size, 1); }
int cuMemFree_v2(void *pointer) { count(__func__); return release(pointer); }
int cuMemFreeHost(void *pointer) { count(__func__); return release(pointer); }

static int is_pinned(const void *pointer)
{
    const char *at = pointer;
    for (struct piece *piece = pieces; piece; piece = piece->next)
        if (piece->pinned && at >= (char *)piece + HEAD && at < (char *)piece + HEAD + piece->size)
            return 1;
    return 0;
}

static int copy(void *to, const void *from, size_t size, void *stream, const void *host)
{
    int error = check();
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    int i = index_of(stream), pinned = is_pinned(host);
    struct operation operation = {.kind = COPY, .to = to, .from = from, .size = size};
    /* Pageable memory has been read when the call returns, and written. */
    if (!pinned && host == from)
        operation.from = operation.own = memcpy(malloc(size), from, size);
    if (i)
        put(i, operation);
    if (i && !pinned && host == to)
        need(i, streams[i].queued);
    pthread_mutex_unlock(&lock);
    return i ? check() : INVALID_HANDLE;
}
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream) { count(__func__); return copy(to, from, size, stream, from); }
int cuMemcpyDtoHAsync_v2(void *to, void *from, size_t size, void *stream) { count(__func__); return copy(to, from, size, stream, to); }
int cuMemcpyDtoDAsync_v2(void *to, void *from, size_t size, void *stream) { return copy(to, from, size, stream, NULL); }

int cuModuleLoadDataEx(void **module, const void *image, unsigned count, void *options, void *values) { *module = (void *)1; return check(); }
int cuModuleUnload(void *module) { return check(); }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = strdup(name); return check(); }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = 32; return check(); }
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **extra)
{
    count(__func__);
    int error = check();
    if (error)
        return error;
    struct operation operation = {.kind = KERNEL, .name = function, .x = x, .y = y, .block = bx, .shared = shared};
    memcpy(operation.argument, arguments[0], size_of_argument(function));
    pthread_mutex_lock(&lock);
    int i = index_of(stream);
    if (i)
        put(i, operation);
    pthread_mutex_unlock(&lock);
    return i ? OK : INVALID_HANDLE;
}

/* The function must not ask the driver for anything, here as there. */
int cuLaunchHostFunc(void *stream, void (*call)(void *), void *data)
{
    int error = check();
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    int i = index_of(stream);
    if (i)
        put(i, (struct operation){.kind = CALL, .call = call, .data = data});
    pthread_mutex_unlock(&lock);
    return i ? OK : INVALID_HANDLE;
}

/* NVRTC. */

int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return OK; }
const char *nvrtcGetErrorString(int status) { return "stand-in"; }
int nvrtcGetNumSupportedArchs(int *count) { *count = 1; return OK; }
int nvrtcGetSupportedArchs(int *known) { *known = 89; return OK; }
int nvrtcCreateProgram(void **program, const char *source, const char *name, int count, const char *const *headers, const char *const *names) { *program = (void *)1; return OK; }
int nvrtcCompileProgram(void *program, int count, const char *const *options) { return OK; }
int nvrtcGetCUBINSize(void *program, size_t *size) { *size = 1; return OK; }
int nvrtcGetCUBIN(void *program, char *code) { *code = 0; return OK; }
int nvrtcDestroyProgram(void **program) { return OK; }

/* What GStreamer's CUDA library asks for besides. It works on the default stream, which waits for no other one here. */

static __thread struct { int depth; long contexts[16]; } stack;

int cuCtxPushCurrent_v2(void *context)
{
    if (stack.depth == 16)
        return INVALID_VALUE;
    stack.contexts[stack.depth++] = current;
    current = (long)context;
    return OK;
}
int cuCtxPopCurrent_v2(void **context)
{
    if (!stack.depth)
        return NO_CONTEXT;
    if (context)
        *context = (void *)current;
    current = stack.contexts[--stack.depth];
    return OK;
}
/* Other contexts than the primary one. */
int cuCtxCreate_v2(void **context, unsigned flags, int device)
{
    *context = (void *)0x78;
    return cuCtxPushCurrent_v2(*context);
}
int cuCtxDestroy_v2(void *context) { return OK; }
int cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return OK; }
int cuCtxEnablePeerAccess(void *peer, unsigned flags) { return NOT_SUPPORTED; }
int cuCtxDisablePeerAccess(void *peer) { return NOT_SUPPORTED; }

enum { PITCH = 512 };
int cuMemAllocPitch_v2(void **pointer, size_t *pitch, size_t width, size_t height, unsigned element)
{
    *pitch = (width + PITCH - 1) / PITCH * PITCH;
    return cuMemAlloc_v2(pointer, *pitch * height);
}
int cuStreamDestroy(void *stream) { return cuStreamDestroy_v2(stream); }
int cuMemAllocHost_v2(void **pointer, size_t size) { return cuMemHostAlloc(pointer, size, 0); }

/* CUDA_MEMCPY2D, as the driver's interface has it. */
struct side { size_t x, y; int type; void *host, *device, *array; size_t pitch; };
struct rectangle { struct side from, to; size_t width, height; };

static char *row(const struct side *side, size_t y)
{
    /* 1 is the host. */
    return (char *)(side->type == 1 ? side->host : side->device) + (side->y + y) * side->pitch + side->x;
}

int cuMemcpy2DAsync_v2(const struct rectangle *copied, void *stream)
{
    int error = check();
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    int i = index_of(stream);
    for (size_t y = 0; y < copied->height; y++) {
        struct operation operation = {.kind = COPY, .to = row(&copied->to, y), .from = row(&copied->from, y), .size = copied->width};
        if (i)
            put(i, operation);
        else
            memcpy(operation.to, operation.from, operation.size);
    }
    pthread_mutex_unlock(&lock);
    return check();
}
int cuMemcpy2D_v2(const struct rectangle *copied) { return cuMemcpy2DAsync_v2(copied, NULL); }
int cuMemcpyPeerAsync(void *to, void *to_context, void *from, void *from_context, size_t size, void *stream)
{
    return copy(to, from, size, stream, NULL);
}

#define REFUSED(name) int name(void) { return NOT_SUPPORTED; }
REFUSED(cuGLGetDevices_v2)
REFUSED(cuGraphicsGLRegisterBuffer)
REFUSED(cuGraphicsGLRegisterImage)
REFUSED(cuGraphicsMapResources)
REFUSED(cuGraphicsResourceGetMappedPointer_v2)
REFUSED(cuGraphicsResourceSetMapFlags_v2)
REFUSED(cuGraphicsSubResourceGetMappedArray)
REFUSED(cuGraphicsUnmapResources)
REFUSED(cuGraphicsUnregisterResource)
REFUSED(cuModuleLoadData)
REFUSED(cuTexObjectCreate)
REFUSED(cuTexObjectDestroy)
