/* SPDX-License-Identifier: Apache-2.0 */
/* Copies as the engine runs them: a list of boxes. Included by copy.c, copy_entries.c, memset.c and array.c.
 * Rules: a box is validated against the memory map when it is submitted; what is unmapped later is a device fault.
 */
#ifndef SIM_COPY_H
#define SIM_COPY_H

#include "graph.h"

struct sim_side {
    uint64_t p, pitch, slice; /* first byte; bytes from row to row and from layer to layer */
    enum { SIM_ANY, SIM_DEVICE_SIDE } must; /* SIM_DEVICE_SIDE: pageable host memory is refused */
    CUcontext in; /* who must be granted it, where a copy between devices names that; NULL: the copy's context */
};
struct sim_box {
    struct sim_side dst, src;
    uint64_t width, height, depth; /* bytes, rows, layers */
};
struct sim_job {
    unsigned count;
    uint64_t cost_ns, link_ns; /* inside VRAM; over the link */
    unsigned way;              /* SIM_WAY_* */
    bool pageable;    /* some operand is pageable host memory */
    bool device_only; /* every operand is in VRAM */
    bool mapped_ram;  /* some operand is a RAM mapping (pinned memory is none) */
    bool given;       /* params are what it was made from (a 3D form); else they follow from the only box */
    CUDA_MEMCPY3D params;
    struct sim_box boxes[];
};

struct CUarray_st {
    CUDA_ARRAY3D_DESCRIPTOR desc;
    CUdeviceptr base; /* linear storage */
    uint64_t element, pitch, slice, bytes;
    CUcontext ctx;
    bool level; /* of a mipmapped array, which owns it */
};

struct sim_job *sim_job_new(unsigned boxes); /* NULL: out of memory; free() it */
/* Check every box in the context; *bad (may be NULL) gets the index of the first bad one. Takes the lock. */
CUresult sim_job_check(CUcontext ctx, struct sim_job *job, size_t *bad);
/* [locked] One side of a box: INVALID_VALUE as sim_span, for the whole extent or (copy.rectangle_extent) row by row. */
CUresult sim_side_check(CUcontext ctx, const struct sim_box *b, const struct sim_side *s, bool write, struct sim_span *span);
/* Enqueue a checked job (taken over). `wait`: a synchronous entry. */
CUresult sim_job_submit(struct sim_job *job, CUstream stream, bool pt, bool wait);
/* Bytes from the first to behind the last one that a side touches; 0 on overflow. */
uint64_t sim_box_extent(const struct sim_box *b, const struct sim_side *s);
struct sim_op sim_job_op(struct sim_job *job); /* the operation of a checked job (taken over) */
/* An operand as the 2D and 3D structs describe it. Takes the lock. */
CUresult sim_side_of(CUmemorytype type, uint64_t host, CUdeviceptr device, CUarray array, uint64_t x, uint64_t y, uint64_t z,
                     uint64_t pitch, uint64_t height, const struct sim_box *extent, struct sim_side *out);
struct CUarray_st *sim_array(CUarray a); /* [locked] */

#endif
