// SPDX-License-Identifier: Apache-2.0
// Calls of the CUDA runtime with their answers checked; prints "ok". With an argument: dlopens that plugin (plugin_kernels.cu)
// and launches from it.
#include "simk.h"

__managed__ int shared_count = 5;
__device__ float table[16];
SIM_GLOBAL(shared_count);
SIM_GLOBAL(table);

__global__ void bump(int by)
{
    shared_count += by;
    table[0] = (float)by;
}
SIM_KERNEL(bump);

__global__ void __launch_bounds__(64) scale(float *p, float by, int n)
{
    __shared__ float s[64];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    s[threadIdx.x] = i < n ? p[i] : 0.0f;
    __syncthreads();
    if (i < n)
        p[i] = by * s[threadIdx.x];
}
SIM_KERNEL(scale);

__global__ void stray(int *p)
{
    *p = 1;
}
SIM_KERNEL(stray);

#ifdef __CUDACC__
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thread>
#include <vector>

#define OK(call) \
    do { \
        cudaError_t e = (call); \
        if (e != cudaSuccess) { \
            printf("%s: %s (line %d)\n", #call, cudaGetErrorName(e), __LINE__); \
            exit(1); \
        } \
    } while (0)
#define EXPECT(condition) \
    do { \
        if (!(condition)) { \
            printf("not true: %s (line %d)\n", #condition, __LINE__); \
            exit(1); \
        } \
    } while (0)

static void errors()
{
    void *p;
    EXPECT(cudaMalloc(&p, (size_t)1 << 50) == cudaErrorMemoryAllocation);
    EXPECT(cudaPeekAtLastError() == cudaErrorMemoryAllocation);
    std::thread([] { EXPECT(cudaGetLastError() == cudaSuccess); }).join(); // each thread has its own
    EXPECT(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
    EXPECT(cudaFree((void *)8) == cudaErrorInvalidValue && cudaGetLastError() == cudaErrorInvalidValue);
    EXPECT(cudaMemcpy(NULL, NULL, 1, (cudaMemcpyKind)9) == cudaErrorInvalidMemcpyDirection);
    EXPECT(cudaSetDevice(99) == cudaErrorInvalidDevice && cudaGetLastError() == cudaErrorInvalidDevice);
    EXPECT(!strcmp(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress"));
    EXPECT(strstr(cudaGetErrorString(cudaErrorMemoryAllocation), "memory"));
    EXPECT(!strcmp(cudaGetErrorName((cudaError_t)12345), "unrecognized error code"));
    cudaFuncAttributes a;
    EXPECT(cudaFuncGetAttributes(&a, (const void *)strlen) == cudaErrorInvalidDeviceFunction);
    EXPECT(cudaGetSymbolAddress(&p, &a) == cudaErrorInvalidSymbol);
    cudaGetLastError();
}

static void devices()
{
    int count = 0, device = -1, major = 0, version = 0;
    char bus[32];
    cudaDeviceProp prop;
    OK(cudaGetDeviceCount(&count));
    OK(cudaGetDevice(&device));
    EXPECT(count >= 1 && device == 0);
    OK(cudaGetDeviceProperties(&prop, 0));
    OK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    EXPECT(prop.major == major && prop.warpSize == 32 && prop.maxThreadsPerBlock == 1024 && prop.name[0]);
    OK(cudaDeviceGetPCIBusId(bus, sizeof bus, 0));
    OK(cudaRuntimeGetVersion(&version));
    EXPECT(version / 1000 == 13);
    OK(cudaDriverGetVersion(&version));
    EXPECT(version >= 13000);
    void *entry = NULL;
    cudaDriverEntryPointQueryResult found;
    OK(cudaGetDriverEntryPointByVersion("cuMemAlloc", &entry, 3020, cudaEnableDefault, &found));
    EXPECT(entry && found == cudaDriverEntryPointSuccess);
    OK(cudaGetDriverEntryPointByVersion("cuNoSuchThing", &entry, 13000, cudaEnableDefault, &found));
    EXPECT(!entry && found == cudaDriverEntryPointSymbolNotFound);
}

static void symbols()
{
    EXPECT(shared_count == 5); // loads the module
    bump<<<1, 1>>>(7);
    OK(cudaDeviceSynchronize());
    EXPECT(shared_count == 12);
    shared_count = 1;
    bump<<<1, 1>>>(2);
    OK(cudaDeviceSynchronize());
    EXPECT(shared_count == 3);
    float *p = NULL, values[4] = {1, 2, 3, 4}, back[16];
    size_t size = 0;
    OK(cudaGetSymbolAddress((void **)&p, table));
    OK(cudaGetSymbolSize(&size, table));
    EXPECT(p && size == sizeof table);
    OK(cudaMemcpyToSymbol(table, values, sizeof values, 4 * sizeof *values));
    OK(cudaMemcpyFromSymbol(back, table, sizeof back));
    EXPECT(back[0] == 2.0f && back[4] == 1.0f && back[7] == 4.0f && back[8] == 0.0f);
    EXPECT(cudaMemcpyToSymbol(table, values, sizeof values, 13 * sizeof *values) == cudaErrorInvalidValue);
    cudaGetLastError();
}

static void launches()
{
    const int n = 1000;
    float *p, by = 3;
    int count = n, blocks = 0;
    std::vector<float> h(n);
    OK(cudaMalloc(&p, n * sizeof *p));
    for (int i = 0; i < n; i++)
        h[i] = (float)i;
    OK(cudaMemcpy(p, h.data(), n * sizeof *p, cudaMemcpyHostToDevice));
    void *args[] = {&p, &by, &count};
    OK(cudaLaunchKernel((const void *)scale, dim3(16), dim3(64), args, 0, 0));
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(16);
    config.blockDim = dim3(64);
    OK(cudaLaunchKernelExC(&config, (const void *)scale, args));
    OK(cudaMemcpy(h.data(), p, n * sizeof *p, cudaMemcpyDeviceToHost));
    for (int i = 0; i < n; i++)
        EXPECT(h[i] == 9.0f * (float)i);
    EXPECT(cudaLaunchKernel((const void *)scale, dim3(16), dim3(65), args, 0, 0) == cudaErrorInvalidValue); // launch bounds
    scale<<<0, 64>>>(p, by, n);
    EXPECT(cudaGetLastError() != cudaSuccess);

    cudaFuncAttributes a;
    OK(cudaFuncGetAttributes(&a, scale));
    EXPECT(a.maxThreadsPerBlock == 64 && a.sharedSizeBytes == 256 && a.numRegs > 0);
    OK(cudaFuncSetAttribute(scale, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536));
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, scale, 64, 0));
    EXPECT(blocks > 1);
    cudaKernel_t kernel;
    size_t offset, size;
    OK(cudaGetKernel(&kernel, (const void *)scale));
    OK(cudaLaunchKernel((const void *)kernel, dim3(1), dim3(64), args, 0, 0));
    OK(cudaFuncGetParamInfo((const void *)scale, 2, &offset, &size));
    EXPECT(offset == 12 && size == 4);

    cudaStream_t s;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cudaStreamCaptureStatus status;
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    OK(cudaDeviceSynchronize());
    OK(cudaMemsetAsync(p, 0, 4, s));
    OK(cudaStreamSynchronize(s));
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
    OK(cudaStreamIsCapturing(s, &status));
    EXPECT(status == cudaStreamCaptureStatusActive);
    scale<<<16, 64, 0, s>>>(p, 2.0f, n);
    OK(cudaStreamEndCapture(s, &graph));
    OK(cudaGraphInstantiate(&executable, graph, 0));
    for (int i = 0; i < 3; i++)
        OK(cudaGraphLaunch(executable, s));
    OK(cudaStreamSynchronize(s));
    OK(cudaMemcpy(h.data(), p, n * sizeof *p, cudaMemcpyDeviceToHost));
    EXPECT(h[0] == 0 && h[1] == 9.0f * 3 * 8 && h[999] == 9.0f * 999 * 8); // the kernel handle's launch met the first 64 only
    OK(cudaGraphExecDestroy(executable));
    OK(cudaGraphDestroy(graph));
    OK(cudaStreamDestroy(s));
    OK(cudaFree(p));
}

static void memory()
{
    void *p, *q = (void *)1, *h;
    size_t pitch;
    cudaPointerAttributes at;
    OK(cudaMalloc(&q, 0));
    EXPECT(q == NULL);
    OK(cudaFree(NULL));
    OK(cudaFreeHost(NULL));
    OK(cudaMallocPitch(&p, &pitch, 100, 10));
    EXPECT(pitch >= 100);
    char in[1000], out[1000];
    for (int i = 0; i < 1000; i++)
        in[i] = (char)(i * 7);
    OK(cudaMemcpy2D(p, pitch, in, 100, 100, 10, cudaMemcpyHostToDevice));
    OK(cudaMemset2D((char *)p + 10, pitch, 0x11, 5, 10));
    OK(cudaMemcpy2D(out, 100, p, pitch, 100, 10, cudaMemcpyDefault));
    for (int i = 0; i < 1000; i++)
        EXPECT(out[i] == (i % 100 >= 10 && i % 100 < 15 ? 0x11 : in[i]));
    OK(cudaFree(p));
    OK(cudaMallocHost(&h, 4096));
    OK(cudaPointerGetAttributes(&at, h));
    EXPECT(at.type == cudaMemoryTypeHost && at.hostPointer == h);
    OK(cudaHostGetDevicePointer(&p, h, 0));
    OK(cudaMemset(p, 3, 4096));
    OK(cudaDeviceSynchronize());
    EXPECT(((char *)h)[4095] == 3);
    OK(cudaFreeHost(h));
    OK(cudaPointerGetAttributes(&at, in));
    EXPECT(at.type == cudaMemoryTypeUnregistered);
    int *m;
    OK(cudaMallocManaged(&m, 4096));
    OK(cudaPointerGetAttributes(&at, m));
    EXPECT(at.type == cudaMemoryTypeManaged);
    m[3] = 9;
    OK(cudaFree(m));
    int *from, *to, there[2] = {4, 5}, back[2] = {0, 0};
    OK(cudaMalloc(&from, 8));
    OK(cudaMalloc(&to, 8));
    OK(cudaMemcpy(from, there, 8, cudaMemcpyHostToDevice));
    OK(cudaMemcpyPeer(to, 0, from, 0, 4));
    OK(cudaMemcpyPeerAsync(to + 1, 0, from + 1, 0, 4, 0));
    OK(cudaMemcpy(back, to, 8, cudaMemcpyDeviceToHost));
    EXPECT(back[0] == 4 && back[1] == 5);
    OK(cudaFree(from));
    OK(cudaFree(to));
    cudaMemPool_t pool;
    unsigned long long threshold = 1 << 20, got = 0;
    OK(cudaDeviceGetDefaultMemPool(&pool, 0));
    OK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold));
    OK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &got));
    EXPECT(got == threshold);
    OK(cudaMallocFromPoolAsync(&p, 1000, pool, 0));
    OK(cudaFreeAsync(p, 0));
    OK(cudaDeviceSynchronize());
    OK(cudaMemPoolTrimTo(pool, 0));
}

static void events()
{
    cudaEvent_t a, b;
    float ms;
    OK(cudaEventCreate(&a));
    OK(cudaEventCreateWithFlags(&b, cudaEventDisableTiming));
    OK(cudaEventRecord(a, 0));
    OK(cudaEventRecord(b, 0));
    OK(cudaEventSynchronize(b));
    OK(cudaEventQuery(a));
    EXPECT(cudaEventElapsedTime(&ms, a, b) == cudaErrorInvalidResourceHandle); // b takes no time
    cudaGetLastError();
    OK(cudaStreamWaitEvent(0, a, 0));
    OK(cudaEventDestroy(a));
    OK(cudaEventDestroy(b));
}

// Kernels and variables are there again after a reset, as the program was linked.
static void after_reset()
{
    float back[2] = {9, 9};
    OK(cudaDeviceReset());
    bump<<<1, 1>>>(3);
    OK(cudaMemcpyFromSymbol(back, table, sizeof back));
    EXPECT(back[0] == 3.0f && back[1] == 0.0f);
    EXPECT(shared_count == 8);
}

// A library with kernels of its own comes and goes.
static void plugin(const char *path)
{
    for (int round = 0; round < 2; round++) {
        void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!handle)
            printf("%s\n", dlerror());
        EXPECT(handle);
        int (*answer)(int) = (int (*)(int))dlsym(handle, "answer");
        EXPECT(answer && answer(20 + round) == 41 + round);
        EXPECT(dlclose(handle) == 0);
    }
}

int main(int argc, char **argv)
{
    errors();
    devices();
    symbols();
    launches();
    memory();
    events();
    after_reset();
    if (argc > 1)
        plugin(argv[1]);
    stray<<<1, 1>>>((int *)4096);
    EXPECT(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
    EXPECT(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
    int *p;
    EXPECT(cudaMalloc(&p, 4) == cudaErrorIllegalAddress); // sticky
    printf("ok\n");
    return 0;
}
#endif
