/* SPDX-License-Identifier: Apache-2.0 */
/* A launch as an operation: what cuLaunchKernel*, a captured launch and a kernel node have in common.
 * Included by launch*.c and by the graph files, which make kernel nodes of it.
 * Rules: an operation never changes once it is made (tasks and instantiated graphs share it); another shape, function,
 * parameter or attribute is another operation. It holds its module, so that the code outlives cuModuleUnload.
 */
#ifndef SIM_LAUNCH_H
#define SIM_LAUNCH_H

#include "state.h"

/* The launch that `p` describes, checked and with its own copy of the parameters (by pointers or as a packed buffer).
 * `p->func` (a CUkernel cast to one is fine), or `p->kern` in `p->ctx` (NULL: the current context). The driver's errors:
 * INVALID_HANDLE, INVALID_VALUE, ... No lock held. */
CUresult sim_launch_op(const CUDA_KERNEL_NODE_PARAMS *p, struct sim_op *out);
/* The same with launch attributes (cuLaunchKernelEx, cuGraphKernelNodeSetAttribute); checked too. */
CUresult sim_launch_op_with(const CUDA_KERNEL_NODE_PARAMS *p, const CUlaunchAttribute *attributes, unsigned count, struct sim_op *out);
/* The context that it runs in: its function's. */
CUcontext sim_launch_context(const struct sim_op *op);
/* What it was made from, as cuGraphKernelNodeGetParams answers: kernelParams is an array in the operation and points to its
 * copy of the parameters, both valid as long as it lives. [no lock needed] */
void sim_launch_params(const struct sim_op *op, CUDA_KERNEL_NODE_PARAMS *out);
/* The same parameters in a copy that a node keeps (*view; NULL at first, free() ends it) and that stays where it is while the
 * node's kernels take parameters of one layout: programs write into it and hand it back (graph.params_stay in BELIEFS.md).
 * out->kernelParams points into it. OUT_OF_MEMORY. [the caller orders calls] */
struct sim_launch_view;
CUresult sim_launch_view_params(struct sim_launch_view **view, const struct sim_op *op, CUDA_KERNEL_NODE_PARAMS *out);
/* The node does something else now: new values for a view of the same layout, the end of another one. */
void sim_launch_view_refresh(struct sim_launch_view **view, const struct sim_op *op);
/* Its attributes; *count of them, in the operation. */
const CUlaunchAttribute *sim_launch_attributes(const struct sim_op *op, unsigned *count);

/* Queue a launch, as cuLaunchKernelEx does; p->func alone says what. */
CUresult sim_launch(const CUDA_KERNEL_NODE_PARAMS *p, const CUlaunchAttribute *attributes, unsigned count, CUstream stream, bool ptsz);
extern const CUlaunchAttribute sim_cooperative;

/* ---- parts of a launch that have files of their own */

struct CUfunc_st;
/* launch_attr.c: INVALID_VALUE for an attribute that is malformed or not for launches, INVALID_CLUSTER_SIZE,
 * COOPERATIVE_LAUNCH_TOO_LARGE, NOT_SUPPORTED for what is not simulated. */
CUresult sim_launch_check_attributes(struct CUfunc_st *f, const CUDA_KERNEL_NODE_PARAMS *p, const CUlaunchAttribute *attributes,
                                     unsigned count);

/* launch_probe.c: what a kernel that no companion holds reads in SIMGPU_UNKNOWN_KERNEL=probe. */
struct sim_range {
    uint64_t base, size;
};
struct sim_probes {
    struct sim_range *ranges; /* malloc'd */
    size_t count;
};
CUresult sim_probe_find(const unsigned char *params, size_t bytes, struct sim_probes *out);
void sim_probe_run(const struct sim_probes *probes); /* inside sim_guarded */

#endif
