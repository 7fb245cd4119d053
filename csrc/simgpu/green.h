/* SPDX-License-Identifier: Apache-2.0 */
/* Green contexts, as streams and events see them. Included by green.c, ctx.c, stream.c, event.c. All [locked].
 * Rules: a green context is its device's primary context with another name: the CUcontext that stands for it (`view`) is in the
 * table of live contexts under its own handle, as the primary one. What runs, faults and is allocated is the primary's.
 */
#ifndef SIM_GREEN_H
#define SIM_GREEN_H

#include "state.h"

struct CUgreenCtx_st {
    CUcontext view, base;
    CUgreenCtx next;
    uint64_t id;
    CUdevResource resource;
    struct sim_task *gate; /* what all later work waits for (cuGreenCtxWaitEvent) */
};

CUgreenCtx sim_green_of(CUgreenCtx handle); /* NULL: not a live one */
CUgreenCtx sim_green_current(void);         /* of the calling thread's current context; NULL: that is none. No lock needed */
/* A new stream belongs to it (NULL: to none). */
CUresult sim_green_join(CUgreenCtx g, CUstream s);
CUresult sim_green_capture(CUgreenCtx g); /* STREAM_CAPTURE_UNSUPPORTED, with the captures of its streams broken, if it has any */
void sim_green_base_gone(CUcontext base); /* its primary context ends */

#endif
