/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the simulated driver share: contexts, the stream queue, the memory map, and how code is launched.
 * Included by every file of csrc/simgpu (not by the runtime in cudart/, which reaches the driver as NVIDIA's does).
 * Rules: every entry begins with SIM_ENTRY (trace, init check); errors are the driver's CUresult values; nothing here
 * is called by the shim. Prefix sim_.
 */
#ifndef SIM_H
#define SIM_H

#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_API __attribute__((visibility("default")))

/* One unit of work on a stream. `run` is called on the stream's worker thread (any number of times when the work was
 * captured into a graph), `drop` once when nobody can run it any more. A non-zero result of `run` becomes the context's
 * sticky error. */
struct sim_op {
    CUresult (*run)(void *arg);
    void (*drop)(void *arg);
    void *arg;
    CUgraphNodeType kind; /* what it becomes when the stream is capturing */
};

/* Queue `op` on `stream` (NULL, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD are resolved here; `ptsz` says that the entry was
 * the per-thread-default-stream variant). Adds a graph node instead when the stream is capturing. Takes over `op`
 * (calls drop on failure). Source: cuda.h, stream synchronisation behaviour. */
CUresult sim_enqueue(CUstream stream, bool ptsz, struct sim_op op);

/* True while the calling thread runs a simulated kernel or copy: device memory faults are then answered with
 * CUDA_ERROR_ILLEGAL_ADDRESS instead of killing the process. Runs `body(arg)`; returns 0 or CUDA_ERROR_ILLEGAL_ADDRESS. */
CUresult sim_guarded(void (*body)(void *), void *arg);

/* The calling thread's current context, or CUDA_ERROR_INVALID_CONTEXT / the context's sticky error. */
CUresult sim_current(CUcontext *out);
/* Allocate device memory for module globals (`__device__` variables) in the current context; freed with sim_module_free. */
CUresult sim_module_alloc(size_t bytes, CUdeviceptr *out);
void sim_module_free(CUdeviceptr p);

/* A context is gone, and its memory with it: its modules end, libraries forget what they loaded there (code_module.c). */
void sim_code_context_gone(CUcontext context);

/* Trace one call (SIMGPU_TRACE). Cheap when off. */
void sim_trace(const char *entry);
/* CUDA_SUCCESS after cuInit, CUDA_ERROR_NOT_INITIALIZED before. */
CUresult sim_ready(void);
#define SIM_ENTRY() do { sim_trace(__func__); CUresult r_ = sim_ready(); if (r_) return r_; } while (0)

#endif
