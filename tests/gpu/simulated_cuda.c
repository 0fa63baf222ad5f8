/* SIMULATION of CUDA's runtime and cuBLAS, so that the real ONNX Runtime for CUDA can be driven without a GPU.

   "Device" memory is the host's, copies copy, and a product of float32 matrices is computed; no kernel does anything.
   So graphs can be loaded, placed and bound, and one of nothing but MatMul computes. What else the library links to is
   there and returns 0 (`ort_cuda_drill.py` adds it). `isthmus_count` tells what happened. */

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { LIVE_NBYTES, LAUNCHED, COPIED_IN, COPIED_OUT, WAITED_FOR_ALL, COUNTS };
enum { MOST_BLOCKS = 65536 };
static const long memory_nbytes = 1L << 30;
static atomic_long counts[COUNTS];
static struct { void *at; size_t nbytes; } blocks[MOST_BLOCKS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

long isthmus_count(int what) { return counts[what]; }

static int failing; /* what every wait returns from now on, as after a failed kernel */
void isthmus_fail(int code) { failing = code; }

#define RESULT(name, ...) cudaError_t name(__VA_ARGS__)

/* ---- the device */

RESULT(cudaGetDeviceCount, int *n) { *n = 1; return 0; }
RESULT(cudaGetDevice, int *d) { *d = 0; return 0; }
RESULT(cudaSetDevice, int d) { return d == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
RESULT(cudaDriverGetVersion, int *v) { *v = 13000; return 0; }
RESULT(cudaRuntimeGetVersion, int *v) { *v = 13000; return 0; }
RESULT(cudaDeviceGetAttribute, int *v, enum cudaDeviceAttr a, int d) {
  *v = a == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return 0;
}
RESULT(cudaGetDeviceProperties, struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "Simulated GPU");
  p->totalGlobalMem = memory_nbytes;
  p->major = 9;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 49152;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  return 0;
}
RESULT(cudaDeviceSynchronize, void) { counts[WAITED_FOR_ALL]++; return failing; }
RESULT(cudaStreamSynchronize, cudaStream_t s) { return failing; }
RESULT(cudaGetLastError, void) { return failing; }
RESULT(cudaPeekAtLastError, void) { return failing; }
const char *cudaGetErrorName(cudaError_t e) {
  return e == 2 ? "cudaErrorMemoryAllocation" : e == 700 ? "cudaErrorIllegalAddress" : e == 719 ? "cudaErrorLaunchFailure"
                                                                                               : "cudaErrorUnknown";
}
const char *cudaGetErrorString(cudaError_t e) {
  return e == 2 ? "out of memory" : e == 700 ? "an illegal memory access was encountered"
                                : e == 719   ? "unspecified launch failure"
                                             : "unknown error";
}

/* ---- its memory */

RESULT(cudaMalloc, void **p, size_t n) {
  cudaError_t code = cudaErrorMemoryAllocation;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < MOST_BLOCKS && counts[LIVE_NBYTES] + (long)n <= memory_nbytes; i++) {
    if (blocks[i].at) continue;
    *p = blocks[i].at = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
    memset(*p, 0xee, n);
    blocks[i].nbytes = n;
    counts[LIVE_NBYTES] += n;
    code = cudaSuccess;
    break;
  }
  pthread_mutex_unlock(&lock);
  return code;
}
RESULT(cudaFree, void *p) {
  pthread_mutex_lock(&lock);
  for (int i = 0; p && i < MOST_BLOCKS; i++) {
    if (blocks[i].at != p) continue;
    counts[LIVE_NBYTES] -= blocks[i].nbytes;
    blocks[i].at = NULL;
    free(p);
    break;
  }
  pthread_mutex_unlock(&lock);
  return 0;
}
RESULT(cudaFreeAsync, void *p, cudaStream_t s) { return cudaFree(p); }
RESULT(cudaMallocHost, void **p, size_t n) { *p = malloc(n); return 0; }
RESULT(cudaHostAlloc, void **p, size_t n, unsigned f) { *p = malloc(n); return 0; }
RESULT(cudaFreeHost, void *p) { free(p); return 0; }
RESULT(cudaMemGetInfo, size_t *f, size_t *t) { *t = memory_nbytes; *f = *t - counts[LIVE_NBYTES]; return 0; }
RESULT(cudaMemcpy, void *to, const void *from, size_t n, enum cudaMemcpyKind k) {
  counts[COPIED_IN] += k == cudaMemcpyHostToDevice;
  counts[COPIED_OUT] += k == cudaMemcpyDeviceToHost;
  memmove(to, from, n);
  return 0;
}
RESULT(cudaMemcpyAsync, void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s) {
  return cudaMemcpy(to, from, n, k);
}
RESULT(cudaMemset, void *p, int v, size_t n) { memset(p, v, n); return 0; }
RESULT(cudaMemsetAsync, void *p, int v, size_t n, cudaStream_t s) { memset(p, v, n); return 0; }
RESULT(cudaPointerGetAttributes, struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeDevice;
  return 0;
}

/* ---- streams, events, kernels */

RESULT(cudaStreamCreate, cudaStream_t *s) { *s = malloc(1); return 0; }
RESULT(cudaStreamCreateWithFlags, cudaStream_t *s, unsigned f) { *s = malloc(1); return 0; }
RESULT(cudaStreamIsCapturing, cudaStream_t s, enum cudaStreamCaptureStatus *c) { *c = 0; return 0; }
RESULT(cudaEventCreate, cudaEvent_t *e) { *e = malloc(1); return 0; }
RESULT(cudaEventCreateWithFlags, cudaEvent_t *e, unsigned f) { *e = malloc(1); return 0; }
RESULT(cudaLaunchKernel, const void *k, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s) {
  counts[LAUNCHED]++;
  return 0;
}
RESULT(__cudaLaunchKernel, void *k, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s) {
  counts[LAUNCHED]++;
  return 0;
}
RESULT(__cudaGetKernel, void **k, const void *f) { *k = (void *)f; return 0; }
RESULT(__cudaPopCallConfiguration, dim3 *g, dim3 *b, size_t *n, void *s) {
  *g = *b = (dim3){1, 1, 1};
  *n = 0;
  *(void **)s = NULL;
  return 0;
}
void **__cudaRegisterFatBinary(void *b) { static void *handle[1]; return handle; }

/* ---- cuBLAS */

static void product(int a_turned, int b_turned, int m, int n, int k, float alpha, const float *a, long lda,
                    const float *b, long ldb, float beta, float *c, long ldc) {
  for (int j = 0; j < n; j++)
    for (int i = 0; i < m; i++) {
      double sum = 0;
      for (int l = 0; l < k; l++)
        sum += (double)(a_turned ? a[l + i * lda] : a[i + l * lda]) * (b_turned ? b[j + l * ldb] : b[l + j * ldb]);
      c[i + j * ldc] = alpha * sum + (beta ? beta * c[i + j * ldc] : 0);
    }
}
int cublasCreate_v2(void **h) { static int handle; *h = &handle; return 0; }
int cublasGetMathMode(void *h, int *mode) { *mode = 0; return 0; }
const char *cublasGetStatusName(int e) { return "CUBLAS_STATUS_UNKNOWN"; }
const char *cublasGetStatusString(int e) { return "unknown"; }
int cublasSgemm_v2(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda,
                   const float *b, int ldb, const float *beta, float *c, int ldc) {
  product(ta, tb, m, n, k, *alpha, a, lda, b, ldb, *beta, c, ldc);
  return 0;
}
int cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int type_a, int lda,
                 const float *b, int type_b, int ldb, const float *beta, float *c, int type_c, int ldc, int t, int x) {
  product(ta, tb, m, n, k, *alpha, a, lda, b, ldb, *beta, c, ldc);
  return 0;
}

/* ---- the driver, for our probe */

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuGetErrorName(int e, const char **s) { *s = "CUDA_ERROR_UNKNOWN"; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Simulated GPU", n); return 0; }
int cuDeviceGetUuid(void *u, int d) { memset(u, 7, 16); return 0; }
int cuDeviceGetUuid_v2(void *u, int d) { memset(u, 7, 16); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : 0; return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = memory_nbytes; return 0; }
