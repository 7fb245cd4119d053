/* SPDX-License-Identifier: Apache-2.0 */
/* Peer access: which device may reach whose memory directly. Called by applications; sim_peer_* by what checks accesses.
 * Rules: access is a context's to the allocations of another context, one way, and ends with either (cuda.h,
 * cuCtxEnablePeerAccess). It is about kernels: copies between devices go through the host where it is missing. VMM memory is
 * granted (cuMemSetAccess), a pool opened (cuMemPoolSetAccess) to devices instead. SIMGPU_PEERS=no is a machine whose devices
 * cannot reach each other at all.
 */
#include "state.h"

bool sim_peer_possible(int device, int peer)
{
    return device != peer && sim_config()->peers == SIM_PEERS_YES;
}

/* [locked] The place of the peer among those that c reaches, or how many there are. */
static unsigned place_of(const struct CUctx_st *c, const struct CUctx_st *peer)
{
    unsigned i = 0;
    while (i < c->peer_count && c->peers[i] != peer)
        i++;
    return i;
}

/* [locked] Those that have ended make room. */
static void forget_dead(CUcontext c)
{
    for (unsigned i = 0; i < c->peer_count;)
        if (atomic_load(&c->peers[i]->dead))
            c->peers[i] = c->peers[--c->peer_count];
        else
            i++;
}

bool sim_peer_enabled(const struct CUctx_st *c, const struct CUctx_st *peer)
{
    return place_of(c, peer) < c->peer_count;
}

CUresult sim_peer_enable(CUcontext c, CUcontext peer)
{
    if (!sim_peer_possible(c->device, peer->device))
        return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    forget_dead(c);
    if (sim_peer_enabled(c, peer))
        return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    if (c->peer_count == SIM_MAX_PEERS)
        return CUDA_ERROR_TOO_MANY_PEERS;
    c->peers[c->peer_count++] = peer;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuCtxEnablePeerAccess(CUcontext peerContext, unsigned int Flags)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (r)
        return r;
    if (Flags)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    CUcontext p = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)peerContext);
    r = !p || p == c ? CUDA_ERROR_INVALID_CONTEXT : sim_peer_enable(c, p);
    sim_give();
    return r;
}

SIM_API CUresult cuCtxDisablePeerAccess(CUcontext peerContext)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (r)
        return r;
    sim_take();
    CUcontext p = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)peerContext);
    unsigned at = p ? place_of(c, p) : 0;
    if (!p)
        r = CUDA_ERROR_INVALID_CONTEXT;
    else if (at == c->peer_count)
        r = CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    else
        c->peers[at] = c->peers[--c->peer_count];
    sim_give();
    return r;
}

SIM_API CUresult cuDeviceCanAccessPeer(int *canAccessPeer, CUdevice dev, CUdevice peerDev)
{
    SIM_ENTRY();
    if (!canAccessPeer)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev) || !sim_device_ok(peerDev))
        return CUDA_ERROR_INVALID_DEVICE;
    *canAccessPeer = sim_peer_possible(dev, peerDev);
    return CUDA_SUCCESS;
}

/* Atomics and arrays work over the link where anything does: they are the CPU's. */
SIM_API CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attrib, CUdevice srcDevice, CUdevice dstDevice)
{
    SIM_ENTRY();
    if (!value || (int)attrib < CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK ||
        attrib > CU_DEVICE_P2P_ATTRIBUTE_ONLY_PARTIAL_NATIVE_ATOMIC_SUPPORTED)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(srcDevice) || !sim_device_ok(dstDevice) || srcDevice == dstDevice)
        return CUDA_ERROR_INVALID_DEVICE;
    *value = sim_peer_possible(srcDevice, dstDevice) && attrib != CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK &&
             attrib != CU_DEVICE_P2P_ATTRIBUTE_ONLY_PARTIAL_NATIVE_ATOMIC_SUPPORTED;
    return CUDA_SUCCESS;
}
