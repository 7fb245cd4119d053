/* SPDX-License-Identifier: Apache-2.0 */
/* The calls of llama.cpp's CUDA backend (ggml-cuda.cu of b8833) for a model's load and its tokens, without its kernels: a plugin on
 * the CUDA runtime and the driver, which ollama_runner.c opens with RTLD_LOCAL as ggml_backend_load does.
 * What it mirrors: one cudaMalloc for all weights, filled tensor by tensor on the per-thread stream, each copy waited for; one for
 * the KV cache, cleared at once; one for the compute buffer; a pool of its own in a large reservation, whose handles are released
 * as soon as they are mapped; a token = a small copy in, one launch of a captured graph, a copy out, one synchronise.
 * What it says on stderr is the text that ollama parses. Every byte that is copied out is compared. */
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ollama_backend.h"

#define EXPORT __attribute__((visibility("default")))
#define MIB ((size_t)1 << 20)
enum { POOL_GIB = 32, LOOK = 4096 };

static struct {
    unsigned char *weights, *kv, *compute;
    size_t tensors; /* of one MiB */
    CUdeviceptr pool;
    size_t pool_bytes;
    cudaStream_t stream;
    cudaGraphExec_t graph;
    unsigned char *host;
    size_t token;
} model;

static int failed(int result, const char *what)
{
    if (result)
        fprintf(stderr, "ggml_cuda: %s: %d\n", what, result);
    return result;
}
#define TRY(call) do { int r_ = (int)(call); if (failed(r_, #call)) return r_; } while (0)

EXPORT int backend_init(void)
{
    int count = 0, vmm = 0;
    CUdevice device;
    struct cudaDeviceProp p;
    TRY(cudaGetDeviceCount(&count));
    fprintf(stderr, "ggml_cuda_init: found %d CUDA devices:\n", count);
    for (int i = 0; i < count; i++) {
        TRY(cuDeviceGet(&device, i));
        TRY(cuDeviceGetAttribute(&vmm, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device));
        TRY(cudaGetDeviceProperties(&p, i));
        fprintf(stderr, "  Device %d: %s, compute capability %d.%d, VMM: %s, VRAM: %zu MiB\n", i, p.name, p.major, p.minor,
                vmm ? "yes" : "no", p.totalGlobalMem / MIB);
    }
    return 0;
}

EXPORT int backend_device(struct backend_device *out)
{
    struct cudaDeviceProp p;
    TRY(cudaGetDeviceProperties(&p, 0));
    TRY(cudaSetDevice(0));
    TRY(cudaMemGetInfo(&out->free, &out->total));
    snprintf(out->name, sizeof out->name, "%s", p.name);
    snprintf(out->pci, sizeof out->pci, "%04x:%02x:%02x.0", p.pciDomainID, p.pciBusID, p.pciDeviceID);
    return 0;
}

static void pattern(unsigned char *to, size_t tensor)
{
    for (size_t i = 0; i < MIB; i++)
        to[i] = (unsigned char)((i * 2654435761u + tensor * 40503u) >> 13);
}

static int buffer(unsigned char **out, size_t mib)
{
    int r = (int)cudaMalloc((void **)out, mib * MIB);
    if (r)
        fprintf(stderr, "ggml_backend_cuda_buffer_type_alloc_buffer: allocating %zu.00 MiB on device 0: cudaMalloc failed: %s\n",
                mib, cudaGetErrorString((cudaError_t)r));
    return r;
}

static int grow_pool(size_t bytes)
{
    CUmemAllocationProp prop = { .type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE } };
    CUmemAccessDesc access = { .location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
    CUmemGenericAllocationHandle handle;
    size_t granularity;
    TRY(cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));
    bytes = (bytes + granularity - 1) / granularity * granularity;
    if (!model.pool)
        TRY(cuMemAddressReserve(&model.pool, POOL_GIB * 1024 * MIB, 0, 0, 0));
    TRY(cuMemCreate(&handle, bytes, &prop, 0));
    TRY(cuMemMap(model.pool + model.pool_bytes, bytes, 0, handle, 0));
    TRY(cuMemRelease(handle));
    TRY(cuMemSetAccess(model.pool + model.pool_bytes, bytes, &access, 1));
    model.pool_bytes += bytes;
    return 0;
}

EXPORT int backend_load(size_t weights_mib, size_t kv_mib, size_t compute_mib)
{
    model.tensors = weights_mib;
    model.host = malloc(2 * MIB);
    if (!model.host)
        return 2;
    TRY(buffer(&model.weights, weights_mib));
    fprintf(stderr, "load_tensors: offloaded %zu/%zu layers to GPU\n", weights_mib, weights_mib);
    fprintf(stderr, "load_tensors:        CUDA0 model buffer size = %8.2f MiB\n", (double)weights_mib);
    for (size_t t = 0; t < weights_mib; t++) {
        pattern(model.host, t);
        TRY(cudaMemcpyAsync(model.weights + t * MIB, model.host, MIB, cudaMemcpyHostToDevice, cudaStreamPerThread));
        TRY(cudaStreamSynchronize(cudaStreamPerThread));
    }
    TRY(buffer(&model.kv, kv_mib));
    TRY(cudaMemsetAsync(model.kv, 0, kv_mib * MIB, cudaStreamPerThread));
    TRY(cudaStreamSynchronize(cudaStreamPerThread));
    fprintf(stderr, "llama_kv_cache:      CUDA0 KV buffer size = %8.2f MiB\n", (double)kv_mib);
    TRY(buffer(&model.compute, compute_mib));
    fprintf(stderr, "sched_reserve:      CUDA0 compute buffer size = %8.2f MiB\n", (double)compute_mib);
    TRY(cudaStreamCreateWithFlags(&model.stream, cudaStreamNonBlocking));
    return grow_pool(2 * MIB);
}

/* Copies between weights, KV and compute buffer stand for the kernels. */
static int capture(void)
{
    cudaGraph_t graph;
    TRY(cudaStreamBeginCapture(model.stream, cudaStreamCaptureModeRelaxed));
    TRY(cudaMemcpyAsync(model.kv, model.weights + (model.tensors - 1) * MIB, MIB, cudaMemcpyDeviceToDevice, model.stream));
    TRY(cudaMemcpyAsync(model.compute, model.kv, MIB, cudaMemcpyDeviceToDevice, model.stream));
    TRY(cudaStreamEndCapture(model.stream, &graph));
    TRY(cudaGraphInstantiate(&model.graph, graph, 0));
    return cudaGraphDestroy(graph);
}

EXPORT int backend_token(void)
{
    unsigned char want[MIB / 256], *out = model.host + MIB;
    size_t tensor = model.token++ % model.tensors;
    if (!model.graph)
        TRY(capture());
    TRY(cudaMemcpyAsync((void *)model.pool, &tensor, sizeof tensor, cudaMemcpyHostToDevice, cudaStreamPerThread));
    TRY(cudaStreamSynchronize(cudaStreamPerThread));
    TRY(cudaGraphLaunch(model.graph, model.stream));
    TRY(cudaMemcpyAsync(out, model.compute, LOOK, cudaMemcpyDeviceToHost, model.stream));
    TRY(cudaStreamSynchronize(model.stream));
    pattern(model.host, model.tensors - 1);
    if (memcmp(out, model.host, LOOK) != 0)
        return failed(-1, "the graph copied other bytes");
    TRY(cudaMemcpy(want, model.weights + tensor * MIB + MIB / 2, sizeof want, cudaMemcpyDeviceToHost));
    pattern(model.host, tensor);
    return memcmp(want, model.host + MIB / 2, sizeof want) ? failed(-1, "a weight came back with other bytes") : 0;
}

EXPORT int backend_free(void)
{
    TRY(cudaStreamSynchronize(model.stream));
    if (model.graph)
        TRY(cudaGraphExecDestroy(model.graph));
    TRY(cudaStreamDestroy(model.stream));
    TRY(cudaFree(model.weights));
    TRY(cudaFree(model.kv));
    TRY(cudaFree(model.compute));
    TRY(cuMemUnmap(model.pool, model.pool_bytes));
    TRY(cuMemAddressFree(model.pool, POOL_GIB * 1024 * MIB));
    free(model.host);
    return 0;
}
