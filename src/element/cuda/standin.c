/* A stand-in for NVIDIA's driver, to try GStreamer's CUDA library without a GPU: device memory is main memory, contexts
 * and streams are numbers. What needs a GPU fails. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define OK 0
#define NOT_SUPPORTED 801
#define PITCH 512

static long live;

/* Pieces of memory that have not been freed. */
long standin_live(void) { return live; }

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *version) { *version = 12000; return OK; }
int cuGetErrorName(int error, const char **text) { *text = "STANDIN"; return OK; }
int cuGetErrorString(int error, const char **text) { *text = "stand-in"; return OK; }
int cuDeviceGetCount(int *count) { *count = 2; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return OK; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "stand-in", size); return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) 
{
    /* 75 and 76 are the compute capability, 8.9. */
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : PITCH;
    return OK;
}
int cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return OK; }
int cuCtxCreate_v2(void **context, unsigned flags, int device) { *context = (void *)(uintptr_t)(0x1000 + device); return OK; }
int cuCtxDestroy_v2(void *context) { return OK; }
int cuCtxPushCurrent_v2(void *context) { return OK; }
int cuCtxPopCurrent_v2(void **context) { return OK; }
int cuCtxEnablePeerAccess(void *peer, unsigned flags) { return NOT_SUPPORTED; }
int cuCtxDisablePeerAccess(void *peer) { return NOT_SUPPORTED; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)1; return OK; }
int cuStreamDestroy(void *stream) { return OK; }
int cuStreamSynchronize(void *stream) { return OK; }

static int allocate(void **pointer, size_t size)
{
    *pointer = aligned_alloc(PITCH, (size + PITCH - 1) / PITCH * PITCH);
    live++;
    return *pointer ? OK : 2;
}

int cuMemAlloc_v2(void **pointer, size_t size) { return allocate(pointer, size); }
int cuMemAllocHost_v2(void **pointer, size_t size) { return allocate(pointer, size); }
int cuMemFree_v2(void *pointer) { free(pointer); live--; return OK; }
int cuMemFreeHost(void *pointer) { free(pointer); live--; return OK; }

int cuMemAllocPitch_v2(void **pointer, size_t *pitch, size_t width, size_t height, unsigned element)
{
    *pitch = (width + PITCH - 1) / PITCH * PITCH;
    return allocate(pointer, *pitch * height);
}

/* CUDA_MEMCPY2D, as the driver's interface has it. */
struct side {
    size_t x, y;
    int type;
    void *host, *device, *array;
    size_t pitch;
};
struct copy {
    struct side from, to;
    size_t width, height;
};

static char *row(const struct side *side, size_t y)
{
    /* 1 is the host. */
    char *base = side->type == 1 ? side->host : side->device;
    return base + (side->y + y) * side->pitch + side->x;
}

int cuMemcpy2D_v2(const struct copy *copy)
{
    for (size_t y = 0; y < copy->height; y++)
        memcpy(row(&copy->to, y), row(&copy->from, y), copy->width);
    return OK;
}
int cuMemcpy2DAsync_v2(const struct copy *copy, void *stream) { return cuMemcpy2D_v2(copy); }

#define FAILS(name) int name(void) { return NOT_SUPPORTED; }
FAILS(cuGLGetDevices_v2)
FAILS(cuGraphicsGLRegisterBuffer)
FAILS(cuGraphicsGLRegisterImage)
FAILS(cuGraphicsMapResources)
FAILS(cuGraphicsResourceGetMappedPointer_v2)
FAILS(cuGraphicsResourceSetMapFlags_v2)
FAILS(cuGraphicsSubResourceGetMappedArray)
FAILS(cuGraphicsUnmapResources)
FAILS(cuGraphicsUnregisterResource)
FAILS(cuLaunchKernel)
FAILS(cuModuleGetFunction)
FAILS(cuModuleLoadData)
FAILS(cuModuleUnload)
FAILS(cuTexObjectCreate)
FAILS(cuTexObjectDestroy)
