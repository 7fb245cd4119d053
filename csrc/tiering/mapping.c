/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's calls that map, unmap and open chunks. Called by engine.c and move.c.
 * Rules: over addresses that were unmapped just before, some drivers answer NOT_READY, and succeed when they are asked again; every
 * other error is the caller's to answer for. */
#include "tiering/moving.h"

enum { AGAIN = 16, ATTEMPTS = 4 };

CUresult spill_map(CUdeviceptr at, uint64_t bytes, CUmemGenericAllocationHandle handle)
{
    CUresult r = CUDA_ERROR_NOT_READY;
    for (int i = 0; i < AGAIN && r == CUDA_ERROR_NOT_READY; i++)
        r = spill_driver()->cuMemMap(at, bytes, 0, handle, 0);
    return r;
}

CUresult spill_unmap(CUdeviceptr at, uint64_t bytes)
{
    CUresult r = CUDA_ERROR_NOT_READY;
    for (int i = 0; i < AGAIN && r == CUDA_ERROR_NOT_READY; i++)
        r = spill_driver()->cuMemUnmap(at, bytes);
    return r;
}

CUresult spill_unmap_surely(CUdeviceptr at, uint64_t bytes)
{
    CUresult r = CUDA_ERROR_UNKNOWN;
    for (int i = 0; i < ATTEMPTS && r != CUDA_SUCCESS; i++)
        r = spill_unmap(at, bytes);
    return r;
}

static CUresult set_access(CUdeviceptr at, uint64_t bytes, const CUmemAccessDesc *to, int count)
{
    CUresult r = CUDA_ERROR_NOT_READY;
    for (int i = 0; i < AGAIN && r == CUDA_ERROR_NOT_READY; i++)
        r = spill_driver()->cuMemSetAccess(at, bytes, to, (size_t)count);
    return r;
}

static CUmemAccessDesc gpu_access(int device)
{
    return (CUmemAccessDesc){ .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device },
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
}

CUresult spill_open(CUdeviceptr at, uint64_t bytes, int device, const struct spill_chunk *chunks, uint32_t count)
{
    const struct spill_device *d = spill_device(device);
    CUmemAccessDesc gpu[SPILL_MAX_DEVICES];
    for (int i = 0; i < d->peer_count; i++)
        gpu[i] = gpu_access(d->peers[i]);
    CUresult r = set_access(at, bytes, gpu, d->peer_count);
    const CUmemAccessDesc cpu = spill_cpu_access();
    for (uint32_t i = 0; i < count && r == CUDA_SUCCESS;) {
        uint64_t run = 0;
        uint32_t first = i;
        for (; i < count && chunks[i].tier == SPILL_RAM; i++)
            run += spill_chunk_bytes(&chunks[i]);
        if (run)
            r = set_access(at + ((uint64_t)(chunks[first].start - chunks[0].start) << SPILL_GRANULE_SHIFT), run, &cpu, 1);
        else
            i++;
    }
    return r;
}
