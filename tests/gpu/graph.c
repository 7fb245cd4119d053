/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment graph: graphs over memory that is moved under its address. A graph (a kernel, a memset or a memcpy over chunk A) is
 * captured while A lies in VRAM; A moves to RAM, the graph is launched; A moves back to VRAM, into another handle, and the graph
 * is launched again. Each time the bytes are checked, in A's new backing and in the old one (which must not change). Then the same
 * executable is updated (cuGraphExecUpdate, SetParams) with the same operands, which is believed to be refused for memsets and
 * memcpys; one that is accepted is launched and looked at as well. Each node kind in a child of its own.
 * Decides: which captured operands pin their chunks.
 * gpu-check: groups=facts order=80 expect=10 limit=90 */
#include "gpu.h"

enum node { KERNEL, MEMSET, MEMCPY_IN, MEMCPY_OUT, NODES };
static const char *const NODE[NODES] = { "kernel", "memset", "memcpy_to", "memcpy_from" };
static const char *const WHAT[NODES] = { "a kernel on A", "a memset of A", "a memcpy from other VRAM to A", "a memcpy from A to other VRAM" };

static void declare(void)
{
    char row[96], ask[240];
    for (int k = 0; k < NODES; k++) {
        const char *belief = k == KERNEL ? "graph.kernel_nodes_replay_after_remap" : "graph.copy_nodes_keep_addresses", *pin = "pins for captured operands";
        static const char *const steps[] = { "ram", "vram" };
        for (int i = 0; i < 2; i++) {
            snprintf(row, sizeof row, "graph.%s_in_%s", NODE[k], steps[i]);
            snprintf(ask, sizeof ask, "captured %s, launched after A moved %s: right bytes?", WHAT[k], i ? "back to VRAM, into another handle" : "to RAM");
            xp_row(NODE[k], row, ask, "bool", belief, pin);
            snprintf(row, sizeof row, "graph.%s_update_in_%s", NODE[k], steps[i]);
            snprintf(ask, sizeof ask, "the same captured anew and given to cuGraphExecUpdate, A in %s: %s?", i ? "another VRAM handle" : "RAM",
                     k == KERNEL ? "accepted, and right when launched" : "refused");
            xp_row(NODE[k], row, ask, "bool", k == KERNEL ? belief : "graph.set_params_after_remap", pin);
        }
        if (k == KERNEL)
            continue;
        for (int i = 0; i < 2; i++) {
            snprintf(row, sizeof row, "graph.%s_setparams_in_%s", NODE[k], steps[i]);
            snprintf(ask, sizeof ask, "%s as a node: Exec%sNodeSetParams with the same operands, A in %s: refused?", WHAT[k],
                     k == MEMSET ? "Memset" : "Memcpy", i ? "another VRAM handle" : "RAM");
            char of[32];
            snprintf(of, sizeof of, "set_%s", NODE[k]);
            xp_row(of, row, ask, "bool", "graph.set_params_after_remap", pin);
        }
    }
    xp_row("capture", "graph.map_during_capture", "unmap, map and access of another chunk by another thread's rules (RELAXED) while a stream captures", "bool",
           "capture.unsafe_calls", "allocation during capture");
    xp_row("capture", "graph.vmm_calls_in_global_capture", "while this thread captures in GLOBAL mode: cuMemCreate, cuMemMap, cuMemSetAccess allowed, cuMemUnmap refused?", "bool",
           "capture.vmm_unsafe", "allocation during capture");
}

static struct xp_span a, other; /* A: one chunk; other: plain VRAM of the same size */
static CUmemGenericAllocationHandle handles[3]; /* A's backings: VRAM, RAM, VRAM */
static CUdeviceptr alias;                       /* the backing that A left last, mapped for looking */
static int now;                                 /* which of them A has */
static CUstream stream;

static bool start(void)
{
    CUmemAllocationProp ram, vram;
    if (!xp_kernels() || !xp_find_host())
        return false;
    ram = xp_tier('H');
    vram = xp_tier('D');
    if (!xp_span_make(&a, "D", gpu.unit, false) || !xp_span_make(&other, "D", gpu.unit, false) || !XP(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING)) ||
        !XP(cuMemCreate(&handles[1], gpu.unit, &ram, 0)) || !XP(cuMemCreate(&handles[2], gpu.unit, &vram, 0)) ||
        !XP(cuMemAddressReserve(&alias, gpu.unit, 0, 0, 0)))
        return false;
    handles[0] = a.handles[0];
    return true;
}

/* Give A the backing `to`; the one that it leaves is mapped at the alias, so that stray writes show. */
static bool move(int to)
{
    CUmemAccessDesc g = xp_for_gpu();
    if (!XP(cuCtxSynchronize()))
        return false;
    static bool aliased;
    if (aliased && !XP(cuMemUnmap(alias, gpu.unit)))
        return false;
    aliased = false;
    if (!XP(cuMemUnmap(a.base, gpu.unit)) || !XP(cuMemMap(a.base, gpu.unit, 0, handles[to], 0)) || !XP(cuMemSetAccess(a.base, gpu.unit, &g, 1)) ||
        !XP(cuMemMap(alias, gpu.unit, 0, handles[now], 0)) || !XP(cuMemSetAccess(alias, gpu.unit, &g, 1)))
        return false;
    aliased = true;
    now = to;
    return true;
}

/* ---- the work ---- */

static uint64_t seed_of_a = 11, seed_of_other = 22, seed_written = 33;

static CUresult issue(enum node k, CUstream s)
{
    uint64_t words = gpu.unit / 8;
    void *args[] = { &a.base, &words, &seed_written };
    switch (k) {
    case KERNEL: return xp_launch(gpu.fill, 64, 256, s, args);
    case MEMSET: return cu.cuMemsetD32Async(a.base, 0x5a5a5a5a, gpu.unit / 4, s);
    case MEMCPY_IN: return cu.cuMemcpyDtoDAsync_v2(a.base, other.base, gpu.unit, s);
    default: return cu.cuMemcpyDtoDAsync_v2(other.base, a.base, gpu.unit, s);
    }
}

static CUresult record(enum node k, CUgraph *graph)
{
    CUresult r = cu.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), issued, ended;
    if (r != CUDA_SUCCESS)
        return r;
    issued = issue(k, stream);
    ended = cu.cuStreamEndCapture(stream, graph);
    return issued != CUDA_SUCCESS ? issued : ended;
}

static CUDA_MEMCPY3D copy_params(enum node k)
{
    CUDA_MEMCPY3D p = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = k == MEMCPY_IN ? other.base : a.base, .srcPitch = gpu.unit, .srcHeight = 1,
                        .dstMemoryType = CU_MEMORYTYPE_DEVICE, .dstDevice = k == MEMCPY_IN ? a.base : other.base, .dstPitch = gpu.unit, .dstHeight = 1,
                        .WidthInBytes = gpu.unit, .Height = 1, .Depth = 1 };
    return p;
}

static CUDA_MEMSET_NODE_PARAMS set_params(void)
{
    CUDA_MEMSET_NODE_PARAMS p = { .dst = a.base, .value = 0x5a5a5a5a, .elementSize = 4, .width = gpu.unit / 4, .height = 1 };
    return p;
}

/* Fill A, its old backing and the other memory; launch; look at all three. *right, *why. False: a call failed. */
static bool launch_and_look(enum node k, CUgraphExec exec, bool *right, char *why, size_t size)
{
    uint64_t bad_a = 0, bad_old = 0, bad_other = 0, any;
    if (!xp_fill(a.base, gpu.unit, seed_of_a) || !xp_fill(other.base, gpu.unit, seed_of_other) || !xp_fill(alias, gpu.unit, 44) ||
        !XP(cuGraphLaunch(exec, stream)) || !XP(cuStreamSynchronize(stream)))
        return false;
    bool ok = k == KERNEL   ? xp_check(a.base, gpu.unit, seed_written, 0, &bad_a)
              : k == MEMSET ? xp_differs(a.base, gpu.unit, 0x5a5a5a5a5a5a5a5aull, &bad_a, &any)
                            : xp_check(a.base, gpu.unit, k == MEMCPY_IN ? seed_of_other : seed_of_a, 0, &bad_a);
    ok = ok && xp_check(other.base, gpu.unit, k == MEMCPY_OUT ? seed_of_a : seed_of_other, 0, &bad_other) && xp_check(alias, gpu.unit, 44, 0, &bad_old);
    *right = ok && !bad_a && !bad_other && !bad_old;
    snprintf(why, size, "%s: wrong words in A %llu, in the other memory %llu, in A's former backing %llu", *right ? "right" : "wrong", (unsigned long long)bad_a,
             (unsigned long long)bad_other, (unsigned long long)bad_old);
    return ok;
}

/* Launch and say; a dead context is an answer too. `believed`: that it could be launched at all is as believed. */
static void launched(const char *row, enum node k, CUgraphExec exec, bool believed)
{
    bool right = false;
    char why[300];
    if (launch_and_look(k, exec, &right, why, sizeof why)) {
        xp_say(row, xp_verdict(row, believed && right), right, NULL, "%s%s", believed ? "" : "accepted, and ", why);
        return;
    }
    char failed[256];
    snprintf(failed, sizeof failed, "%s", xp_failure);
    bool alive = xp_alive();
    xp_say(row, xp_verdict(row, false), 0, NULL, "%s%s", failed, alive ? "" : ", and the context is dead");
    if (!alive)
        xp_again();
}

static enum node kind(const char *prefix)
{
    for (int k = 0; k < NODES; k++)
        if (!strcmp(xp.child + strlen(prefix), NODE[k]))
            return (enum node)k;
    return NODES;
}

static void replay(void)
{
    enum node k = kind("");
    CUgraph graph = NULL;
    CUgraphExec exec = NULL;
    char row[96];
    if (!start() || !xp_ok(issue(k, stream), NODE[k]) || !XP(cuStreamSynchronize(stream)) || !xp_ok(record(k, &graph), "capture") ||
        !XP(cuGraphInstantiateWithFlags(&exec, graph, 0)) || !XP(cuGraphLaunch(exec, stream))) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    for (int step = 1; step <= 2; step++) {
        if (!move(step)) {
            xp_rest_unanswered("%s", xp_failure);
            return;
        }
        snprintf(row, sizeof row, "graph.%s_in_%s", NODE[k], step == 1 ? "ram" : "vram");
        if (xp_begin(row, 20))
            launched(row, k, exec, true);
        snprintf(row, sizeof row, "graph.%s_update_in_%s", NODE[k], step == 1 ? "ram" : "vram");
        if (!xp_begin(row, 20))
            continue;
        CUgraph fresh = NULL;
        uint64_t result[8] = { 0 }; /* CUgraphExecUpdateResultInfo: the result comes first */
        CUresult r = record(k, &fresh);
        if (r != CUDA_SUCCESS) {
            xp_say(row, xp_verdict(row, false), 0, NULL, "capture over A: %s", xp_error(r));
            continue;
        }
        if (!cu.cuGraphExecUpdate_v2) {
            xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "this driver has no cuGraphExecUpdate_v2");
            continue;
        }
        r = cu.cuGraphExecUpdate_v2(exec, fresh, result);
        if (r != CUDA_SUCCESS)
            xp_say(row, xp_verdict(row, k != KERNEL && r == CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE), 0, NULL, "%s, result %d", xp_error(r),
                   (int)(uint32_t)result[0]);
        else
            launched(row, k, exec, k == KERNEL);
    }
}

static void set(void)
{
    enum node k = kind("set_");
    CUgraph graph = NULL;
    CUgraphExec exec = NULL;
    CUgraphNode node;
    char row[96];
    if (!start() || !XP(cuGraphCreate(&graph, 0))) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    CUDA_MEMCPY3D copy = copy_params(k);
    CUDA_MEMSET_NODE_PARAMS fill = set_params();
    if (!(k == MEMSET ? XP(cuGraphAddMemsetNode(&node, graph, NULL, 0, &fill, gpu.ctx)) : XP(cuGraphAddMemcpyNode(&node, graph, NULL, 0, &copy, gpu.ctx))) ||
        !XP(cuGraphInstantiateWithFlags(&exec, graph, 0)) || !XP(cuGraphLaunch(exec, stream)) || !XP(cuStreamSynchronize(stream))) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    for (int step = 1; step <= 2; step++) {
        if (!move(step)) {
            xp_rest_unanswered("%s", xp_failure);
            return;
        }
        snprintf(row, sizeof row, "graph.%s_setparams_in_%s", NODE[k], step == 1 ? "ram" : "vram");
        if (!xp_begin(row, 20))
            continue;
        CUresult r = k == MEMSET ? cu.cuGraphExecMemsetNodeSetParams(exec, node, &fill, gpu.ctx) : cu.cuGraphExecMemcpyNodeSetParams(exec, node, &copy, gpu.ctx);
        if (r != CUDA_SUCCESS)
            xp_say(row, xp_verdict(row, r == CUDA_ERROR_INVALID_VALUE), 0, NULL, "%s", xp_error(r));
        else
            launched(row, k, exec, false);
    }
}

/* ---- mapping while something captures ---- */

static void capture(void)
{
    CUmemAllocationProp p;
    CUmemGenericAllocationHandle h = 0;
    CUgraph graph = NULL;
    CUmemAccessDesc g;
    CUdeviceptr at;
    if (!start() || !XP(cuMemAddressReserve(&at, gpu.unit, 0, 0, 0))) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    p = xp_tier('D');
    g = xp_for_gpu();
    for (int relaxed = 1; relaxed >= 0; relaxed--) {
        const char *row = relaxed ? "graph.map_during_capture" : "graph.vmm_calls_in_global_capture";
        CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
        CUresult r[4] = { CUDA_SUCCESS, CUDA_SUCCESS, CUDA_SUCCESS, CUDA_SUCCESS };
        if (!xp_begin(row, 20))
            continue;
        if (!XP(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL))) {
            xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
            continue;
        }
        if (relaxed)
            cu.cuThreadExchangeStreamCaptureMode(&mode);
        r[0] = cu.cuMemCreate(&h, gpu.unit, &p, 0);
        if (r[0] == CUDA_SUCCESS)
            r[1] = cu.cuMemMap(at, gpu.unit, 0, h, 0);
        if (r[0] == CUDA_SUCCESS && r[1] == CUDA_SUCCESS) {
            r[2] = cu.cuMemSetAccess(at, gpu.unit, &g, 1);
            r[3] = cu.cuMemUnmap(at, gpu.unit);
        }
        if (r[0] == CUDA_SUCCESS)
            cu.cuMemRelease(h);
        if (relaxed)
            cu.cuThreadExchangeStreamCaptureMode(&mode);
        CUresult issued = issue(KERNEL, stream), ended = cu.cuStreamEndCapture(stream, &graph);
        if (r[3] != CUDA_SUCCESS)
            XP(cuMemUnmap(at, gpu.unit));
        bool opened = r[0] == CUDA_SUCCESS && r[1] == CUDA_SUCCESS && r[2] == CUDA_SUCCESS;
        bool kept = issued == CUDA_SUCCESS && ended == CUDA_SUCCESS;
        bool ok = opened && (relaxed ? r[3] == CUDA_SUCCESS && kept : r[3] == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED && !kept);
        xp_say(row, xp_verdict(row, ok), ok, NULL, "create: %s; map: %s; access: %s; unmap: %s; the capture %s (%s)", xp_error(r[0]),
               r[0] ? "not tried" : xp_error(r[1]), r[0] || r[1] ? "not tried" : xp_error(r[2]), r[0] || r[1] ? "not tried" : xp_error(r[3]), kept ? "goes on" : "is broken",
               xp_error(ended));
    }
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = {
        { "kernel", replay, 25 },       { "memset", replay, 25 },       { "memcpy_to", replay, 25 },  { "memcpy_from", replay, 25 },
        { "set_memset", set, 25 },      { "set_memcpy_to", set, 25 },   { "set_memcpy_from", set, 25 }, { "capture", capture, 20 },
    };
    return xp_main(argc, argv, declare, cases, 8);
}
