/* A CUDA runtime without a GPU, for LD_PRELOAD: device memory is memory of the host, and kernels do
   nothing, because gpu.py runs every operation on the CPU over the same memory.

   The device is as late as CUDA allows. A copy to pinned memory arrives when the host waits for it;
   pinned memory that is being copied from must stay as it is until then. */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef cudaGetDeviceProperties

struct block { char *start; size_t size; int pinned; struct block *next; };
struct copy { uint64_t time; char *from, *to, *before; size_t size; struct copy *next; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t issued = 1, finished;  /* operations in the order of their issue */
static struct block *blocks;
static struct copy *copies;            /* in flight; `to` is NULL for one to the device */
static size_t used, total = (size_t)8 << 30;
static uint64_t waits, overwritten;
static __thread uint64_t waited;       /* the time of a pageable copy that was waited for */
static void (*waiting)(const char *kind);

/* for gpu.py */
void pretended_on_wait(void (*call)(const char *)) { waiting = call; }
void pretended_total(size_t bytes) { total = bytes; }
uint64_t pretended_waits(void) { return waits; }
uint64_t pretended_overwritten(void) { return overwritten; }

static void finish(uint64_t time) {
  if (time > finished) finished = time;
  for (struct copy **at = &copies; *at;) {
    struct copy *c = *at;
    if (c->time > finished) { at = &c->next; continue; }
    if (c->to) memcpy(c->to, c->before, c->size);
    else if (memcmp(c->from, c->before, c->size)) overwritten++;
    *at = c->next;
    free(c->before);
    free(c);
  }
}

static cudaError_t wait_for(uint64_t time, const char *kind) {
  pthread_mutex_lock(&lock);
  finish(time);
  waits++;
  pthread_mutex_unlock(&lock);
  if (waiting) waiting(kind);
  return cudaSuccess;
}

static struct block *block_of(const void *p) { /* with the lock held */
  struct block *b = blocks;
  while (b && ((char *)p < b->start || (char *)p >= b->start + b->size)) b = b->next;
  return b;
}

static cudaError_t take(void **p, size_t size, int pinned) {
  if (!pinned && used + size > total) return cudaErrorMemoryAllocation;
  struct block *b = malloc(sizeof *b);
  *b = (struct block){aligned_alloc(4096, (size / 4096 + 1) * 4096), size, pinned, NULL};
  pthread_mutex_lock(&lock);
  b->next = blocks;
  blocks = b;
  if (!pinned) used += size;
  pthread_mutex_unlock(&lock);
  *p = b->start;
  return cudaSuccess;
}

static cudaError_t drop(void *p) {
  pthread_mutex_lock(&lock);
  struct block **at = &blocks;
  while (*at && (*at)->start != p) at = &(*at)->next;
  struct block *b = *at;
  if (b) {
    *at = b->next;
    if (!b->pinned) used -= b->size;
    free(b->start);
    free(b);
  }
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t size) { return take(p, size, 0); }
cudaError_t cudaHostAlloc(void **p, size_t size, unsigned flags) { return take(p, size, 1); }
cudaError_t cudaFree(void *p) { return drop(p); }
cudaError_t cudaFreeHost(void *p) { return drop(p); }
cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
  *available = total - used;
  *all = total;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  pthread_mutex_lock(&lock);
  struct block *b = block_of(p);
  a->type = !b ? cudaMemoryTypeUnregistered : b->pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  pthread_mutex_unlock(&lock);
  a->devicePointer = a->hostPointer = (void *)p;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  int down = kind == cudaMemcpyDeviceToHost, up = kind == cudaMemcpyHostToDevice;
  pthread_mutex_lock(&lock);
  uint64_t time = issued++;
  struct block *host = down ? block_of(to) : up ? block_of(from) : NULL;
  int asynchronous = host && host->pinned;
  if (asynchronous) {
    struct copy *c = malloc(sizeof *c);
    *c = (struct copy){time, (char *)from, down ? to : NULL, malloc(size + 1), size, copies};
    memcpy(c->before, from, size);
    copies = c;
  }
  if (!asynchronous || up) memcpy(to, from, size);
  pthread_mutex_unlock(&lock);
  /* of pageable memory only a small copy to the device does not wait (CUDA programming guide) */
  if (asynchronous || !(down || (up && size > 65536))) return cudaSuccess;
  waited = time; /* torch waits for the stream after it, unless it was told not to block */
  return wait_for(time, "pageable copy");
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  memcpy(to, from, size);
  return wait_for(issued, "copy");
}
cudaError_t cudaMemset(void *p, int value, size_t size) { return memset(p, value, size), 0; }
cudaError_t cudaMemsetAsync(void *p, int value, size_t size, cudaStream_t stream) {
  return memset(p, value, size), 0;
}

/* streams and events; an event's memory holds the time of its record */
static char handles[256];
static int streams = 1;
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) {
  *s = (cudaStream_t)&handles[streams++ % 256];
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
  return cudaStreamCreateWithPriority(s, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithPriority(s, 0, 0); }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority) { return *priority = 0; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return finished >= issued ? 0 : cudaErrorNotReady; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  if (waited && waited == issued - 1) return waited = 0, cudaSuccess;
  return wait_for(issued, "stream");
}
cudaError_t cudaDeviceSynchronize(void) { return wait_for(issued, "device"); }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
  return *status = cudaStreamCaptureStatusNone;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
  *e = calloc(1, sizeof(uint64_t));
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return free(e), 0; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  pthread_mutex_lock(&lock);
  *(uint64_t *)e = issued++;
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) {
  return cudaEventRecord(e, s);
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
  return *(uint64_t *)e <= finished ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return wait_for(*(uint64_t *)e, "event"); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { return *ms = 1, 0; }

/* the device, that of an H100 */
static __thread int device;
cudaError_t cudaGetDeviceCount(int *count) {
  const char *visible = getenv("CUDA_VISIBLE_DEVICES"), *given = getenv("PRETENDED_GPUS");
  *count = visible && (!*visible || *visible == '-') ? 0 : given ? atoi(given) : 1;
  return *count ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDevice(int *number) { return *number = device, 0; }
cudaError_t cudaSetDevice(int number) { return device = number, 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int number) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "a pretended GPU");
  p->totalGlobalMem = total;
  p->major = 9;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsPerMultiProcessor = 2048;
  p->regsPerBlock = 65536;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerMultiprocessor = 233472;
  p->sharedMemPerBlockOptin = 232448;
  p->l2CacheSize = 50 << 20;
  p->textureAlignment = 512;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int number) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9
           : attribute == cudaDevAttrMultiProcessorCount ? 132 : 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) {
  *least = 0;
  *most = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int one, int other) { return *can = 0; }
cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int number) {
  return snprintf(id, size, "0000:00:0%d.0", number), 0;
}
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, 0; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, 0; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *count, const void *f, int size, size_t memory, unsigned flags) {
  return *count = 1, 0;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  return memset(a, 0, sizeof *a), 0;
}

/* what always succeeds and does nothing */
#define NOTHING(name, ...) cudaError_t name(__VA_ARGS__) { return cudaSuccess; }
NOTHING(cudaGetLastError, void)
NOTHING(cudaPeekAtLastError, void)
NOTHING(cudaStreamDestroy, cudaStream_t s)
NOTHING(cudaStreamWaitEvent, cudaStream_t s, cudaEvent_t e, unsigned flags)
NOTHING(cudaThreadExchangeStreamCaptureMode, enum cudaStreamCaptureMode *mode)
NOTHING(cudaHostRegister, void *p, size_t size, unsigned flags)
NOTHING(cudaHostUnregister, void *p)
NOTHING(cudaLaunchKernel, const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s)
NOTHING(cudaLaunchKernelExC, const cudaLaunchConfig_t *config, const void *f, void **a)
NOTHING(cudaFuncSetAttribute, const void *f, enum cudaFuncAttribute a, int value)
NOTHING(cudaProfilerStart, void)
NOTHING(cudaProfilerStop, void)
