/* SPDX-License-Identifier: Apache-2.0 */
/* Calls whose names or layouts differ between the runtimes of CUDA 12 and 13, with their answers checked; compiled once
 * against the headers of each. Prints the runtime's version. Called by test_sim_runtime.py.
 */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what) \
    do { \
        if (!(what)) { \
            printf("line %d: %s\n", __LINE__, #what); \
            exit(1); \
        } \
    } while (0)
#define OK(call) CHECK((call) == cudaSuccess)

enum { BYTES = 1 << 16 };

static void properties(void)
{
    struct cudaDeviceProp p;
    size_t free_bytes, total;
    int value;
    memset(&p, 0xee, sizeof p);
    OK(cudaGetDeviceProperties(&p, 0)); /* the header's name for its own layout */
    OK(cudaMemGetInfo(&free_bytes, &total));
    CHECK(strstr(p.name, "simgpu") && p.totalGlobalMem == total && p.warpSize == 32);
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0));
    CHECK(p.multiProcessorCount == value);
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrMemoryPoolsSupported, 0)); /* far behind in the struct */
    CHECK(p.memoryPoolsSupported == value);
#if CUDART_VERSION < 13000
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrClockRate, 0));
    CHECK(p.clockRate == value);
#endif
}

static void managed(cudaStream_t s)
{
    char *p;
    OK(cudaMallocManaged((void **)&p, BYTES, cudaMemAttachGlobal));
#if CUDART_VERSION < 13000
    OK(cudaMemAdvise(p, BYTES, cudaMemAdviseSetPreferredLocation, cudaCpuDeviceId));
    OK(cudaMemPrefetchAsync(p, BYTES, 0, s));
    OK(cudaMemPrefetchAsync_v2(p, BYTES, (struct cudaMemLocation){.type = cudaMemLocationTypeDevice}, 0, s));
#else
    OK(cudaMemAdvise(p, BYTES, cudaMemAdviseSetPreferredLocation, (struct cudaMemLocation){.type = cudaMemLocationTypeHost}));
    OK(cudaMemPrefetchAsync(p, BYTES, (struct cudaMemLocation){.type = cudaMemLocationTypeDevice}, 0, s));
#endif
    OK(cudaStreamSynchronize(s));
    int where = 77;
    OK(cudaMemRangeGetAttribute(&where, sizeof where, cudaMemRangeAttributePreferredLocation, p, BYTES));
    CHECK(where == cudaCpuDeviceId);
    OK(cudaFree(p));
}

static int edges(cudaGraph_t graph)
{
    cudaGraphNode_t from[8], to[8];
    size_t n = 8;
#if CUDART_VERSION < 13000
    OK(cudaGraphGetEdges(graph, from, to, &n));
#else
    cudaGraphEdgeData data[8];
    OK(cudaGraphGetEdges(graph, from, to, data, &n));
#endif
    return (int)n;
}

static void graphs(cudaStream_t s)
{
    char *p, host[BYTES];
    cudaGraph_t graph, captured;
    cudaGraphNode_t set, copy;
    cudaGraphExec_t exec;
    enum cudaStreamCaptureStatus status;
    unsigned long long id = 0;
    size_t needed;
    const cudaGraphNode_t *needs;
    OK(cudaMalloc((void **)&p, BYTES));
    OK(cudaGraphCreate(&graph, 0));
    struct cudaMemsetParams fill = {.dst = p, .value = 0x5a, .elementSize = 1, .width = BYTES, .height = 1};
    OK(cudaGraphAddMemsetNode(&set, graph, NULL, 0, &fill));
    OK(cudaGraphAddMemcpyNode1D(&copy, graph, &set, 1, host, p, BYTES, cudaMemcpyDeviceToHost));
    CHECK(edges(graph) == 1);
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphLaunch(exec, s));
    OK(cudaStreamSynchronize(s));
    CHECK(host[0] == 0x5a && host[BYTES - 1] == 0x5a);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(graph));

    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
    OK(cudaMemsetAsync(p, 1, BYTES, s));
#if CUDART_VERSION < 13000
    OK(cudaStreamGetCaptureInfo(s, &status, &id, &captured, &needs, &needed)); /* _v2 by the header's macro */
#else
    const cudaGraphEdgeData *data;
    OK(cudaStreamGetCaptureInfo(s, &status, &id, &captured, &needs, &data, &needed));
#endif
    CHECK(status == cudaStreamCaptureStatusActive && id && needed == 1);
    OK(cudaStreamEndCapture(s, &captured));
    OK(cudaGraphDestroy(captured));
    OK(cudaFree(p));
}

static void boxes(void)
{
    struct cudaPitchedPtr box;
    char from[4][3][100], to[4][3][100];
    for (size_t i = 0; i < sizeof from; i++)
        ((char *)from)[i] = (char)(i * 7);
    OK(cudaMalloc3D(&box, (struct cudaExtent){100, 3, 4}));
    CHECK(box.pitch >= 100 && box.ysize == 3);
    struct cudaMemcpy3DParms in = {
        .srcPtr = {from, 100, 100, 3}, .dstPtr = box, .extent = {100, 3, 4}, .kind = cudaMemcpyHostToDevice};
    struct cudaMemcpy3DParms out = {
        .srcPtr = box, .dstPtr = {to, 100, 100, 3}, .extent = {100, 3, 4}, .kind = cudaMemcpyDeviceToHost};
    OK(cudaMemcpy3D(&in));
    OK(cudaMemcpy3D(&out));
    CHECK(!memcmp(from, to, sizeof from));
    OK(cudaFree(box.ptr));
}

static void *other_thread(void *unused)
{
    CHECK(cudaPeekAtLastError() == cudaSuccess);
    CHECK(cudaFree((void *)64) == cudaErrorInvalidValue && cudaGetLastError() == cudaErrorInvalidValue);
    return unused;
}

static void errors(void)
{
    pthread_t thread;
    CHECK(cudaSetDevice(99) == cudaErrorInvalidDevice);
    pthread_create(&thread, NULL, other_thread, NULL);
    pthread_join(thread, NULL);
    CHECK(cudaPeekAtLastError() == cudaErrorInvalidDevice); /* nobody else's errors, and nobody took ours */
    CHECK(cudaGetLastError() == cudaErrorInvalidDevice && cudaGetLastError() == cudaSuccess);
}

static void count(cudaStream_t s, cudaError_t e, void *counter)
{
    (void)s;
    *(int *)counter += e == cudaSuccess;
}

static void streams(cudaStream_t s)
{
    cudaStreamAttrValue value = {0};
    int called = 0;
    unsigned long long id = 0;
    OK(cudaStreamGetId(s, &id));
    CHECK(id);
    OK(cudaStreamGetAttribute(s, cudaStreamAttributeSynchronizationPolicy, &value));
    OK(cudaStreamAddCallback(s, count, &called, 0));
    OK(cudaStreamSynchronize(s));
    CHECK(called == 1);
}

int main(void)
{
    cudaStream_t s;
    int version;
    properties();
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    managed(s);
    graphs(s);
    boxes();
    errors();
    streams(s);
    OK(cudaStreamDestroy(s));
    OK(cudaRuntimeGetVersion(&version));
    CHECK(version == CUDART_VERSION);
    printf("%d\n", version);
    return 0;
}
