/* SPDX-License-Identifier: Apache-2.0 */
/* Are the attributes of a launch well-formed, and does the launch fit them? Called by launch.c for cuLaunchKernelEx, for
 * cooperative launches and for kernel nodes. Source: cuda.h, CUlaunchAttributeID and cuLaunchKernelEx.
 * Rules: most attributes say how a GPU should schedule a kernel, which changes nothing here; they are checked all the same. What
 * somebody would wait for in vain is NOT_SUPPORTED.
 */
#include "launch.h"

#include "code.h"
#include "doubt.h"

static int device_attribute(const struct CUfunc_st *f, CUdevice_attribute attribute)
{
    return sim_device_attribute(f->module->context->device, attribute);
}

/* All blocks must be resident at once (cuda.h, cuLaunchCooperativeKernel). */
static CUresult check_cooperative(struct CUfunc_st *f, const CUDA_KERNEL_NODE_PARAMS *p)
{
    uint64_t blocks = (uint64_t)p->gridDimX * p->gridDimY * p->gridDimZ; /* below 2^63: check_shape */
    int threads = (int)(p->blockDimX * p->blockDimY * p->blockDimZ);
    uint64_t room = (uint64_t)sim_active_blocks(f, threads, p->sharedMemBytes) *
                    (uint64_t)device_attribute(f, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    return blocks > room ? CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE : CUDA_SUCCESS;
}

static bool divides(unsigned x, unsigned y, unsigned z, const CUDA_KERNEL_NODE_PARAMS *p)
{
    return x && y && z && p->gridDimX % x == 0 && p->gridDimY % y == 0 && p->gridDimZ % z == 0;
}

static CUresult check_cluster(struct CUfunc_st *f, unsigned x, unsigned y, unsigned z, const CUDA_KERNEL_NODE_PARAMS *p)
{
    uint64_t plane = (uint64_t)x * y, most = sim_settings(f)->non_portable ? SIM_MAX_CLUSTER_ANY : SIM_MAX_CLUSTER;
    if (!divides(x, y, z, p))
        return CUDA_ERROR_INVALID_VALUE;
    return plane > most || plane * z > most ? CUDA_ERROR_INVALID_CLUSTER_SIZE : CUDA_SUCCESS;
}

/* A multiple of the regular cluster, which must be there (cuda.h). */
static CUresult check_preferred(struct CUfunc_st *f, const CUlaunchAttributeValue *v, const CUDA_KERNEL_NODE_PARAMS *p,
                                const CUlaunchAttribute *all, unsigned count)
{
    unsigned x = v->preferredClusterDim.x, y = v->preferredClusterDim.y, z = v->preferredClusterDim.z;
    for (unsigned i = 0; i < count; i++)
        if (all[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
            unsigned rx = all[i].value.clusterDim.x, ry = all[i].value.clusterDim.y, rz = all[i].value.clusterDim.z;
            bool good = !check_cluster(f, rx, ry, rz, p) && divides(x, y, z, p) && x % rx == 0 && y % ry == 0 && z == rz;
            return good ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        }
    return CUDA_SUCCESS; /* without effect */
}

static bool good_window(const CUaccessPolicyWindow *w, int most)
{
    return w->num_bytes <= (size_t)most && w->hitRatio >= 0 && w->hitRatio <= 1 && (unsigned)w->hitProp <= CU_ACCESS_PROPERTY_PERSISTING &&
           (unsigned)w->missProp <= CU_ACCESS_PROPERTY_STREAMING; /* not PERSISTING: cuda.h, CUaccessPolicyWindow */
}

/* Of a hint, which changes nothing here. */
static CUresult valid(bool good)
{
    return good || sim_doubt(SIM_DOUBT_LAUNCH_ATTRIBUTES) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult check(struct CUfunc_st *f, const CUDA_KERNEL_NODE_PARAMS *p, const CUlaunchAttribute *all, unsigned count, unsigned i)
{
    const CUlaunchAttributeValue *v = &all[i].value;
    switch (all[i].id) {
    case CU_LAUNCH_ATTRIBUTE_IGNORE:
    case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
    case CU_LAUNCH_ATTRIBUTE_PRIORITY: /* brought into range, as a stream's is */
        return CUDA_SUCCESS;
    case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
        return v->cooperative ? check_cooperative(f, p) : CUDA_SUCCESS;
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
        return check_cluster(f, v->clusterDim.x, v->clusterDim.y, v->clusterDim.z, p);
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION:
        return check_preferred(f, v, p, all, count);
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        return valid((unsigned)v->clusterSchedulingPolicyPreference <= CU_CLUSTER_SCHEDULING_POLICY_RUBIN_DSMEM_LOCALITY);
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
        return valid(good_window(&v->accessPolicyWindow, device_attribute(f, CU_DEVICE_ATTRIBUTE_MAX_ACCESS_POLICY_WINDOW_SIZE)));
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP: {
        int domains = device_attribute(f, CU_DEVICE_ATTRIBUTE_MEM_SYNC_DOMAIN_COUNT);
        return valid(v->memSyncDomainMap.default_ < domains && v->memSyncDomainMap.remote < domains);
    }
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
        return valid((unsigned)v->memSyncDomain <= CU_LAUNCH_MEM_SYNC_DOMAIN_REMOTE);
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        return valid(v->sharedMemCarveout <= 100 || v->sharedMemCarveout == (unsigned)CU_SHAREDMEM_CARVEOUT_DEFAULT);
    case CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING:
        return valid(v->nvlinkUtilCentricScheduling <= 1);
    case CU_LAUNCH_ATTRIBUTE_PORTABLE_CLUSTER_SIZE_MODE:
        return valid((unsigned)v->portableClusterSizeMode <= CU_LAUNCH_PORTABLE_CLUSTER_MODE_ALLOW_NON_PORTABLE);
    case CU_LAUNCH_ATTRIBUTE_SHARED_MEMORY_MODE:
        return valid((unsigned)v->sharedMemoryMode <= CU_SHARED_MEMORY_MODE_PREFER_OVERSIZED_SHARED_MEMORY);
    case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT:
    case CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT:
        return CUDA_ERROR_NOT_SUPPORTED; /* somebody would wait for an event that nobody records */
    case CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE:
        return v->deviceUpdatableKernelNode.deviceUpdatable == 0 ? CUDA_SUCCESS
               : v->deviceUpdatableKernelNode.deviceUpdatable == 1 ? CUDA_ERROR_NOT_SUPPORTED
                                                                   : CUDA_ERROR_INVALID_VALUE;
    default:
        return CUDA_ERROR_INVALID_VALUE; /* unknown, or for streams only */
    }
}

CUresult sim_launch_check_attributes(struct CUfunc_st *f, const CUDA_KERNEL_NODE_PARAMS *p, const CUlaunchAttribute *attributes,
                                     unsigned count)
{
    const int *required = sim_settings(f)->cluster;
    CUresult r = CUDA_SUCCESS;
    if (required[0])
        r = check_cluster(f, (unsigned)required[0], (unsigned)required[1], (unsigned)required[2], p);
    for (unsigned i = 0; i < count && !r; i++)
        r = check(f, p, attributes, count, i);
    return r;
}
