/* SIMULATION of an NVIDIA driver, so that the real pycuda can be driven without a GPU. It computes nothing.

   gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 simulated_driver.c

   "Device" memory is the host's. What it keeps are laws: a call needs a context that is current on its thread (201
   otherwise), what is made is counted until it is destroyed, and what belongs to a context is destroyed where one is
   current. `isthmus_left` tells the counts, `isthmus_broken` how often a law was broken. Everything else that pycuda
   links to is there and answers 801 (not supported). */

#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int result;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_SUPPORTED = 801 };
enum { RETAINED, PUSHED, BLOCKS, PINNED, STREAMS, EVENTS, COUNTS };

static atomic_int left[COUNTS], broken;
static _Thread_local int depth;
static int context; /* its address is the one primary context */

int isthmus_left(int what) { return left[what]; }
int isthmus_broken(void) { return broken; }

#define NEEDS_CONTEXT if (depth == 0) { broken++; return INVALID_CONTEXT; }

/* Calls that a real driver may hold up: for what runs, or while it loads code or makes a context. */
static atomic_int watching, ticks, stopped;
void isthmus_watch(int on) { watching = on; }
void isthmus_tick(void) { ticks++; }
int isthmus_stopped(void) { return stopped; }
static void let_others_run(void) { /* they call isthmus_tick; who keeps them from it is found out after 5 s */
  int from = ticks;
  for (int ms = 0; watching && ms < 5000; ms++) {
    if (ticks > from + 2) return;
    usleep(1000);
  }
  stopped += watching;
}
#define WAITS let_others_run();

result cuInit(unsigned flags) { return OK; }
result cuDriverGetVersion(int *v) { *v = 13000; return OK; }
result cuGetErrorName(int e, const char **s) { *s = "CUDA_ERROR_SIMULATED"; return OK; }
result cuGetErrorString(int e, const char **s) { *s = "simulated error"; return OK; }
result cuDeviceGetCount(int *n) { *n = 1; return OK; }
result cuDeviceGet(int *d, int i) { *d = i; return i == 0 ? OK : INVALID_VALUE; }
result cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Simulated GPU", n); return OK; }
result cuDeviceGetUuid(void *u, int d) { memset(u, 7, 16); return OK; }
result cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : 0; return OK; }
result cuDeviceTotalMem_v2(size_t *n, int d) { *n = (size_t)1 << 30; return OK; }

result cuDevicePrimaryCtxRetain(void **c, int d) { if (left[RETAINED]++ == 0) WAITS *c = &context; return OK; }
result cuDevicePrimaryCtxRelease_v2(int d) { if (--left[RETAINED] == 0) WAITS return OK; }
result cuCtxPushCurrent_v2(void *c) { depth++; left[PUSHED]++; return OK; }
result cuCtxPopCurrent_v2(void **c) { NEEDS_CONTEXT depth--; left[PUSHED]--; if (c) *c = &context; return OK; }
result cuCtxGetDevice(int *d) { NEEDS_CONTEXT *d = 0; return OK; }
result cuCtxGetApiVersion(void *c, unsigned *v) { *v = 3020; return OK; }
result cuCtxSynchronize(void) { NEEDS_CONTEXT WAITS return OK; }

result cuMemGetInfo_v2(size_t *f, size_t *t) { NEEDS_CONTEXT WAITS *f = *t = (size_t)1 << 30; return OK; }
result cuMemAlloc_v2(void **p, size_t n) {
  NEEDS_CONTEXT
  WAITS
  if (n > (size_t)1 << 30) return OUT_OF_MEMORY;
  left[BLOCKS]++;
  *p = malloc(n);
  return OK;
}
result cuMemFree_v2(void *p) { NEEDS_CONTEXT WAITS left[BLOCKS]--; free(p); return OK; }
result cuMemHostRegister_v2(void *p, size_t n, unsigned f) { NEEDS_CONTEXT WAITS left[PINNED]++; return OK; }
result cuMemHostUnregister(void *p) { NEEDS_CONTEXT WAITS left[PINNED]--; return OK; }
result cuMemcpyHtoDAsync_v2(void *d, const void *s, size_t n, void *q) {
  NEEDS_CONTEXT
  WAITS
  memcpy(d, s, n);
  return OK;
}
result cuMemcpyDtoHAsync_v2(void *d, const void *s, size_t n, void *q) {
  NEEDS_CONTEXT
  WAITS
  memcpy(d, s, n);
  return OK;
}

result cuStreamCreate(void **s, unsigned f) { NEEDS_CONTEXT left[STREAMS]++; *s = malloc(1); return OK; }
result cuStreamDestroy_v2(void *s) { NEEDS_CONTEXT left[STREAMS]--; free(s); return OK; }
result cuStreamSynchronize(void *s) { NEEDS_CONTEXT return OK; }
result cuEventCreate(void **e, unsigned f) { NEEDS_CONTEXT left[EVENTS]++; *e = malloc(1); return OK; }
result cuEventDestroy_v2(void *e) { NEEDS_CONTEXT left[EVENTS]--; free(e); return OK; }
result cuEventRecord(void *e, void *s) { NEEDS_CONTEXT WAITS return OK; }
result cuEventSynchronize(void *e) { NEEDS_CONTEXT WAITS return OK; }

#include "simulated_driver_rest.h" /* generated: int NAME(void) { return 801; } for every other symbol */
