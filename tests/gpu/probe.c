/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment probe: how can RAM be given to the GPU here? Every way is tried in a process of its own (cuMemCreate of host
 * memory is known to crash some drivers), once as we are and once with mbind and its family denied, as a container without
 * SYS_NICE denies them. A way works when memory was created, mapped, opened for the GPU, written and read by a kernel.
 * Decides the order of the backends that spillshim-probe tries, and what `doctor` says.
 * gpu-check: groups=facts order=10 expect=12 limit=80 */
#include "gpu.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/syscall.h>

static const struct {
    const char *name;
    int attribute, since; /* since: version of the driver that first answers; 0: all */
    const char *ask;
} ATTRIBUTES[] = {
    { "probe.attribute_vmm", XP_ATTRIBUTE_VMM, 0, "attribute 102, VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED" },
    { "probe.attribute_host_numa_id", XP_ATTRIBUTE_HOST_NUMA_ID, 12020, "attribute 134, HOST_NUMA_ID (-1: no NUMA)" },
    { "probe.attribute_host_numa_vmm", XP_ATTRIBUTE_HOST_NUMA_VMM, 12090, "attribute 141, HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED" },
    { "probe.attribute_host_vmm", XP_ATTRIBUTE_HOST_VMM, 13000, "attribute 145, HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED" },
};

/* The ways; `expected` as simgpu and the documentation have it. */
enum expected { WORKS, REFUSED, UNKNOWN };
static const struct way {
    const char *of, *row, *ask;
    int type, id; /* id INT_MAX: the device's own node */
    bool exportable, confined, hostalloc;
} WAYS[] = {
    { "numa", "probe.create_host_numa", "cuMemCreate at HOST_NUMA, the node of attribute 134", XP_HOST_NUMA, INT_MAX, false, false, false },
    { "host", "probe.create_host", "cuMemCreate at HOST", XP_HOST, 0, false, false, false },
    { "current", "probe.create_host_numa_current", "cuMemCreate at HOST_NUMA_CURRENT", XP_HOST_NUMA_CURRENT, 0, false, false, false },
    { "minus", "probe.create_host_numa_minus_1", "cuMemCreate at HOST_NUMA, id -1", XP_HOST_NUMA, -1, false, false, false },
    { "numafd", "probe.create_host_numa_exportable", "cuMemCreate at HOST_NUMA, exportable as a file descriptor", XP_HOST_NUMA, INT_MAX, true, false, false },
    { "hostfd", "probe.create_host_exportable", "cuMemCreate at HOST, exportable as a file descriptor", XP_HOST, 0, true, false, false },
    { "alloc", "probe.hostalloc", "cuMemHostAlloc, used by a kernel through its device pointer", 0, 0, false, false, true },
    { "numa2", "probe.confined_host_numa", "HOST_NUMA with mbind and its family denied (a container without SYS_NICE)", XP_HOST_NUMA, INT_MAX, false, true, false },
    { "host2", "probe.confined_host", "HOST with mbind and its family denied", XP_HOST, 0, false, true, false },
    { "alloc2", "probe.confined_hostalloc", "cuMemHostAlloc with mbind and its family denied", 0, 0, false, true, true },
};
enum { WAYS_COUNT = sizeof WAYS / sizeof WAYS[0], ATTRIBUTES_COUNT = sizeof ATTRIBUTES / sizeof ATTRIBUTES[0] };

static void declare(void)
{
    const char *order = "order of the backends host-numa, host, hostalloc";
    xp_row("facts", "probe.driver_version", "cuDriverGetVersion", "version", NULL, "which entries and locations may be expected");
    for (int i = 0; i < ATTRIBUTES_COUNT; i++)
        xp_row("facts", ATTRIBUTES[i].name, ATTRIBUTES[i].ask, "value", ATTRIBUTES[i].since ? "vmm.attributes_by_version" : NULL, order);
    xp_row("facts", "probe.granularity_vram", "granularity of VRAM, recommended", "bytes", "vmm.granularity_2mib", "unit of chunks");
    xp_row("facts", "probe.granularity_ram", "granularity of RAM, recommended", "bytes", "vmm.granularity_2mib", "unit of chunks");
    xp_row_may_die(XP_CORRECTS);
    for (int i = 0; i < WAYS_COUNT; i++) {
        xp_row(WAYS[i].of, WAYS[i].row, WAYS[i].ask, "bool",
               WAYS[i].hostalloc ? "alloc.host_pointer_is_device_pointer" : "vmm.host_locations", order);
        if (!WAYS[i].hostalloc)
            xp_row_may_die(XP_MEASURED); /* a crash is one of the answers that are feared here */
    }
}

/* ---- attributes ---- */

static void granularity(const char *row, CUmemAllocationProp p)
{
    size_t least = 0, advised = 0;
    char raw[120];
    if (!xp_begin(row, 10))
        return;
    if (!XP(cuMemGetAllocationGranularity(&least, &p, CU_MEM_ALLOC_GRANULARITY_MINIMUM)) ||
        !XP(cuMemGetAllocationGranularity(&advised, &p, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED))) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
        return;
    }
    snprintf(raw, sizeof raw, "\"minimum\": %zu, \"recommended\": %zu", least, advised);
    xp_say(row, xp_verdict(row, least == 2 * XP_MIB && advised == 2 * XP_MIB), (double)advised, raw, "minimum %zu KiB, recommended %zu KiB",
           least / 1024, advised / 1024);
}

static void facts(void)
{
    if (!xp_driver()) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    xp_say("probe.driver_version", XP_MEASURED, gpu.driver, NULL, "CUDA %d.%d", gpu.driver / 1000, gpu.driver % 1000 / 10);
    for (int i = 0; i < ATTRIBUTES_COUNT; i++) {
        int v = 0;
        CUresult r = cu.cuDeviceGetAttribute(&v, (CUdevice_attribute)ATTRIBUTES[i].attribute, gpu.device);
        bool known = r == CUDA_SUCCESS;
        if (known)
            xp_say(ATTRIBUTES[i].name, xp_verdict(ATTRIBUTES[i].name, gpu.driver >= ATTRIBUTES[i].since), v, NULL, "%d", v);
        else
            xp_say(ATTRIBUTES[i].name, xp_verdict(ATTRIBUTES[i].name, gpu.driver < ATTRIBUTES[i].since), XP_NAN, NULL,
                   "not known to this driver: %s", xp_error(r));
    }
    granularity("probe.granularity_vram", xp_prop(XP_DEVICE, (int)gpu.device));
    int node = xp_attribute(XP_ATTRIBUTE_HOST_NUMA_ID);
    CUmemAllocationProp numa = xp_prop(XP_HOST_NUMA, node < 0 ? 0 : node), host = xp_prop(XP_HOST, 0);
    size_t any;
    granularity("probe.granularity_ram",
                cu.cuMemGetAllocationGranularity(&any, &numa, CU_MEM_ALLOC_GRANULARITY_MINIMUM) == CUDA_SUCCESS ? numa : host);
}

/* ---- ways ---- */

/* What Docker's default profile denies without CAP_SYS_NICE. False: no filter could be set. */
static bool confine(void)
{
#ifdef __x86_64__
    const unsigned audit = AUDIT_ARCH_X86_64;
#else
    const unsigned audit = AUDIT_ARCH_AARCH64;
#endif
    static const int denied[] = { SYS_mbind, SYS_get_mempolicy, SYS_set_mempolicy, SYS_migrate_pages, SYS_move_pages };
    enum { N = sizeof denied / sizeof denied[0] };
    struct sock_filter code[N + 5];
    int n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, audit, 0, N + 1); /* another ABI: allowed */
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < N; i++)
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)denied[i], (unsigned char)(N - i), 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    struct sock_fprog program = { (unsigned short)n, code };
    int mode;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        snprintf(xp_failure, sizeof xp_failure, "no system call filter: %s", strerror(errno));
        return false;
    }
    if (syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0) == 0) {
        snprintf(xp_failure, sizeof xp_failure, "the system call filter denies nothing");
        return false;
    }
    return true;
}

static bool usable(CUdeviceptr p, size_t n)
{
    uint64_t bad;
    if (!xp_fill(p, n, xp.seed) || !xp_check(p, n, xp.seed, 0, &bad))
        return false;
    if (bad)
        snprintf(xp_failure, sizeof xp_failure, "%llu words written by a kernel came back wrong", (unsigned long long)bad);
    return !bad;
}

static void try_hostalloc(const struct way *w)
{
    void *host;
    CUdeviceptr p;
    if (!XP(cuMemHostAlloc(&host, 2 * XP_MIB, CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE)) ||
        !XP(cuMemHostGetDevicePointer_v2(&p, host, 0)) || !usable(p, 2 * XP_MIB)) {
        xp_say(w->row, XP_CORRECTS, 0, NULL, "%s", xp_failure);
        return;
    }
    bool same = p == (CUdeviceptr)(uintptr_t)host;
    xp_say(w->row, xp_verdict(w->row, same), 1, NULL, "works; the device pointer is %s host pointer", same ? "the" : "not the");
}

/* created: cuMemCreate's own answer. True when it all works. */
static bool try_location(const struct way *w, CUresult *created)
{
    int node = xp_attribute(XP_ATTRIBUTE_HOST_NUMA_ID);
    CUmemAllocationProp p = xp_prop(w->type, w->id == INT_MAX ? (node < 0 ? 0 : node) : w->id);
    if (w->exportable)
        p.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    CUmemAccessDesc g = xp_for_gpu();
    CUmemGenericAllocationHandle h;
    CUdeviceptr at;
    size_t unit = 2 * XP_MIB, n = 0;
    if (cu.cuMemGetAllocationGranularity(&n, &p, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) == CUDA_SUCCESS && n)
        unit = n; /* where it is refused, cuMemCreate is asked all the same */
    *created = cu.cuMemCreate(&h, unit, &p, 0);
    return xp_ok(*created, "cuMemCreate") && XP(cuMemAddressReserve(&at, unit, 0, 0, 0)) && XP(cuMemMap(at, unit, 0, h, 0)) &&
           XP(cuMemSetAccess(at, unit, &g, 1)) && usable(at, unit);
}

static enum expected expect(const struct way *w)
{
    if (w->type == XP_HOST_NUMA_CURRENT || w->id == -1)
        return REFUSED;
    if (w->type == XP_HOST)
        return w->exportable || gpu.driver < 13000 ? REFUSED : UNKNOWN;
    if (w->confined || w->exportable)
        return UNKNOWN;
    return gpu.driver >= 12020 ? WORKS : REFUSED;
}

static void way(void)
{
    const struct way *w = WAYS;
    while (strcmp(w->of, xp.child))
        w++;
    if (!xp_begin(w->row, 20))
        return;
    if ((w->confined && !confine()) || !xp_kernels()) {
        xp_say(w->row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
        return;
    }
    if (w->hostalloc) {
        try_hostalloc(w);
        return;
    }
    CUresult created = CUDA_SUCCESS;
    bool works = try_location(w, &created);
    enum expected e = expect(w);
    if (created == CUDA_ERROR_OUT_OF_MEMORY) /* says nothing about the location */
        xp_say(w->row, XP_UNANSWERED, XP_NAN, NULL, "%s: no memory left to try", xp_failure);
    else if (works)
        xp_say(w->row, e == UNKNOWN ? XP_MEASURED : xp_verdict(w->row, e == WORKS), 1, NULL, "works");
    else
        xp_say(w->row, e == UNKNOWN ? XP_MEASURED : xp_verdict(w->row, e == REFUSED && created != CUDA_SUCCESS), 0, NULL, "%s", xp_failure);
}

int main(int argc, char **argv)
{
    struct xp_case cases[1 + WAYS_COUNT] = { { "facts", facts, 15 } };
    for (int i = 0; i < WAYS_COUNT; i++)
        cases[1 + i] = (struct xp_case){ WAYS[i].of, way, 25 };
    return xp_main(argc, argv, declare, cases, 1 + WAYS_COUNT);
}
