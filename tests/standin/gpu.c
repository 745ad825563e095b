/* A GPU that is there and computes nothing: what the element asks of NVIDIA's driver and of its run-time compiler before it
 * loads a model. Linked before src/element/cuda/standin.c, which has the rest; of what both have, this counts. */
#include <stddef.h>
#include <string.h>

static char context;
static _Thread_local void *current;

/* The error after which this GPU gives no context any more, or 0. */
static int lost;

void standin_lose(int error) { lost = error; }

int cuDevicePrimaryCtxRetain(void **result, int device) { *result = &context; return lost; }
int cuDevicePrimaryCtxReset_v2(int device) { return lost; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxGetCurrent(void **result) { *result = current; return 0; }
int cuCtxSetCurrent(void *wanted) { current = wanted; return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { *available = 1 << 30; *total = 3 << 29; return 0; }
int cuModuleLoadDataEx(void **module, const void *code, unsigned count, int *options, void **values)
{
    *module = &context;
    return 0;
}
int cuModuleUnload(void *module) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = &context; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = 32; return 0; }

int nvrtcVersion(int *major, int *minor) { *major = 12; *minor = 0; return 0; }
int nvrtcGetNumSupportedArchs(int *count) { *count = 1; return 0; }
int nvrtcGetSupportedArchs(int *list) { *list = 89; return 0; }
int nvrtcCreateProgram(void **program, const char *source, const char *name, int count, const char *const *headers,
                       const char *const *names)
{
    *program = &context;
    return 0;
}
int nvrtcCompileProgram(void *program, int count, const char *const *options) { return 0; }
int nvrtcGetCUBINSize(void *program, size_t *size) { *size = 4; return 0; }
int nvrtcGetCUBIN(void *program, char *code) { memcpy(code, "code", 4); return 0; }
int nvrtcDestroyProgram(void **program) { return 0; }
const char *nvrtcGetErrorString(int error) { return "stand-in"; }
