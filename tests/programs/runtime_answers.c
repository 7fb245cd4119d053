/* SPDX-License-Identifier: Apache-2.0 */
/* Answers of the runtime that are not the driver's: what counts as an error, errors with a name of their own, a device after
 * its reset, properties. Compiled against the headers of each version. Called by test_sim_runtime.py.
 */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(what) \
    do { \
        if (!(what)) { \
            printf("line %d: %s\n", __LINE__, #what); \
            exit(1); \
        } \
    } while (0)
#define OK(call) CHECK((call) == cudaSuccess)

static const char ptx[] = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry nothing()\n{\n ret;\n}\n";
static atomic_bool go;

static void wait(void *unused)
{
    (void)unused;
    while (!go)
        usleep(100);
}

/* "Not considered an error and therefore not reported" (CUDA programming guide, error checking). */
static void not_ready(void)
{
    cudaStream_t s;
    cudaEvent_t e;
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    OK(cudaEventCreate(&e));
    OK(cudaLaunchHostFunc(s, wait, NULL));
    OK(cudaEventRecord(e, s));
    CHECK(cudaStreamQuery(s) == cudaErrorNotReady && cudaPeekAtLastError() == cudaSuccess);
    CHECK(cudaSetDevice(99) == cudaErrorInvalidDevice);
    CHECK(cudaEventQuery(e) == cudaErrorNotReady && cudaGetLastError() == cudaErrorInvalidDevice);
    go = true;
    OK(cudaStreamSynchronize(s));
    OK(cudaEventDestroy(e));
    OK(cudaStreamDestroy(s));
}

static void rectangles(void)
{
    char host[64] = {0}, *p;
    struct cudaPitchedPtr box = {0};
    OK(cudaMalloc((void **)&p, 64));
    CHECK(cudaMemcpy2D(p, 8, host, 16, 16, 2, cudaMemcpyHostToDevice) == cudaErrorInvalidPitchValue);
    CHECK(cudaMemcpy2DAsync(p, 16, host, 8, 16, 2, cudaMemcpyHostToDevice, NULL) == cudaErrorInvalidPitchValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidPitchValue);
    OK(cudaMemcpy2D(p, 8, host, 8, 0, 2, cudaMemcpyHostToDevice));
    OK(cudaMemcpy2D(p, 8, host, 8, 8, 0, cudaMemcpyHostToDevice));
    OK(cudaMemset2D(p, 8, 1, 0, 2));
    /* 2^32 rows times 2^32 is not 0 rows */
    CHECK(cudaMalloc3D(&box, (struct cudaExtent){1, (size_t)1 << 32, (size_t)1 << 32}) == cudaErrorMemoryAllocation);
    CHECK(!box.ptr && cudaGetLastError() == cudaErrorMemoryAllocation);
    OK(cudaFree(p));
}

/* Where a host stub is taken, so is a cudaKernel_t. */
static void launches(void)
{
    cudaLibrary_t library;
    cudaKernel_t kernel;
    struct cudaFuncAttributes a;
    int blocks = 0;
    OK(cudaLibraryLoadData(&library, ptx, NULL, NULL, 0, NULL, NULL, 0));
    OK(cudaLibraryGetKernel(&kernel, library, "nothing"));
    const void *f = (const void *)kernel;
    OK(cudaFuncGetAttributes(&a, f));
    CHECK(a.maxThreadsPerBlock > 0);
    OK(cudaFuncSetAttribute(f, cudaFuncAttributePreferredSharedMemoryCarveout, 50));
    OK(cudaFuncGetAttributes(&a, f));
    CHECK(a.preferredShmemCarveout == 50);
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, f, 128, 0));
    CHECK(blocks > 0);
    OK(cudaLaunchKernel(f, (dim3){1, 1, 1}, (dim3){32, 1, 1}, NULL, 0, NULL));
    cudaLaunchConfig_t config = {.gridDim = {1, 1, 1}, .blockDim = {32, 1, 1}};
    OK(cudaLaunchKernelExC(&config, f, NULL));
    OK(cudaDeviceSynchronize());
    /* driver_types.h: too many threads or blocks */
    CHECK(cudaLaunchKernel(f, (dim3){1, 1, 1}, (dim3){2048, 1, 1}, NULL, 0, NULL) == cudaErrorInvalidConfiguration);
    CHECK(cudaLaunchKernel(f, (dim3){1, 1, 1}, (dim3){32, 32, 2}, NULL, 0, NULL) == cudaErrorInvalidConfiguration);
    CHECK(cudaLaunchKernel(f, (dim3){1, 70000, 1}, (dim3){1, 1, 1}, NULL, 0, NULL) == cudaErrorInvalidConfiguration);
    CHECK(cudaLaunchKernel(f, (dim3){0, 1, 1}, (dim3){1, 1, 1}, NULL, 0, NULL) == cudaErrorInvalidConfiguration);
    CHECK(cudaLaunchCooperativeKernel(f, (dim3){1, 1, 1}, (dim3){0, 1, 1}, NULL, 0, NULL) == cudaErrorInvalidConfiguration);
    config.blockDim.z = 100;
    CHECK(cudaLaunchKernelExC(&config, f, NULL) == cudaErrorInvalidConfiguration);
    CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
    CHECK(cudaLaunchKernel((const void *)wait, (dim3){1, 1, 1}, (dim3){1, 1, 1}, NULL, 0, NULL) == cudaErrorInvalidDeviceFunction);
    CHECK(cudaLaunchKernel(NULL, (dim3){1, 1, 1}, (dim3){1, 1, 1}, NULL, 0, NULL) == cudaErrorInvalidDeviceFunction);
    CHECK(cudaGetLastError() == cudaErrorInvalidDeviceFunction);
    OK(cudaLibraryUnload(library));
}

static void properties(void)
{
    struct cudaDeviceProp p;
    int v;
    OK(cudaGetDeviceProperties(&p, 0));
#define SAME(field, attribute) \
    do { \
        OK(cudaDeviceGetAttribute(&v, cudaDevAttr##attribute, 0)); \
        CHECK((long long)p.field == v); \
    } while (0)
    SAME(maxTexture1D, MaxTexture1DWidth);
    SAME(maxTexture2D[1], MaxTexture2DHeight);
    SAME(maxSurface3D[2], MaxSurface3DDepth);
    SAME(tccDriver, TccDriver);
    SAME(persistingL2CacheMaxSize, MaxPersistingL2CacheSize);
    SAME(accessPolicyMaxWindowSize, MaxAccessPolicyWindowSize);
    SAME(gpuDirectRDMAFlushWritesOptions, GPUDirectRDMAFlushWritesOptions);
    SAME(memoryPoolSupportedHandleTypes, MemoryPoolSupportedHandleTypes);
    SAME(hostRegisterReadOnlySupported, HostRegisterReadOnlySupported);
    SAME(sparseCudaArraySupported, SparseCudaArraySupported);
    SAME(deferredMappingCudaArraySupported, DeferredMappingCudaArraySupported);
}

static pthread_barrier_t both;

static void *bystander(void *unused)
{
    char *p;
    OK(cudaMalloc((void **)&p, 16));
    pthread_barrier_wait(&both); /* the reset */
    pthread_barrier_wait(&both);
    OK(cudaMalloc((void **)&p, 16));
    OK(cudaFree(p));
    return unused;
}

/* "Any subsequent API call to this device will reinitialize the device": with nothing of what was there. */
static void reset(void)
{
    char *p, *q, host[16];
    size_t before, after, total;
    OK(cudaDeviceReset());
    OK(cudaFree(NULL));
    OK(cudaMemGetInfo(&before, &total));
    OK(cudaMalloc((void **)&p, 8 << 20));
    OK(cudaDeviceReset());
    OK(cudaMalloc((void **)&q, sizeof host));
    OK(cudaMemset(q, 7, sizeof host));
    OK(cudaMemcpy(host, q, sizeof host, cudaMemcpyDeviceToHost));
    CHECK(host[0] == 7 && host[15] == 7);
    OK(cudaFree(q));
    OK(cudaMemGetInfo(&after, &total));
    CHECK(after == before);
    pthread_t thread;
    pthread_barrier_init(&both, NULL, 2);
    pthread_create(&thread, NULL, bystander, NULL);
    pthread_barrier_wait(&both);
    OK(cudaDeviceReset());
    pthread_barrier_wait(&both);
    pthread_join(thread, NULL);
    OK(cudaSetDevice(0));
    OK(cudaDeviceSynchronize());
    OK(cudaGetLastError());
}

static void flags(void)
{
    unsigned f = 0;
    OK(cudaInitDevice(0, cudaDeviceScheduleYield, cudaInitDeviceFlagsAreValid));
    OK(cudaGetDeviceFlags(&f));
    CHECK((f & cudaDeviceScheduleMask) == cudaDeviceScheduleYield);
    OK(cudaInitDevice(0, cudaDeviceScheduleSpin, 0)); /* not valid, so left as they are */
    OK(cudaGetDeviceFlags(&f));
    CHECK((f & cudaDeviceScheduleMask) == cudaDeviceScheduleYield);
}

int main(void)
{
    flags();
    not_ready();
    rectangles();
    launches();
    properties();
    reset();
    launches();
    puts("ok");
    return 0;
}
