/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel launches. Entries cuLaunchKernel, cuLaunchKernelEx, cuLaunchCooperativeKernel and their _ptsz variants; the graph
 * files make kernel nodes with sim_launch_op.
 * Rules: parameters are copied before the call returns, as the driver does it; the kernel itself runs on the stream's thread,
 * guarded, so that a bad address becomes the context's sticky CUDA_ERROR_ILLEGAL_ADDRESS. A kernel that no companion holds
 * is said once by name, and SIMGPU_UNKNOWN_KERNEL decides what its launch does.
 */
#include "launch.h"

#include "code.h"
#include "doubt.h"

#include <stdlib.h>
#include <string.h>

struct launch {
    struct CUfunc_st *function; /* its module is held */
    CUkernel kernel;            /* when it was given instead of a function */
    struct sim_work work;       /* one malloc less a launch: other threads give back what one takes, which it does worst */
    struct simk_launch shape;
    struct sim_probes probes; /* what an unknown kernel reads */
    void **pointers;          /* to each parameter below */
    CUlaunchAttribute *attributes;
    unsigned attribute_count;
    _Alignas(16) unsigned char params[]; /* a companion reads the parameters where they lie */
};

static pthread_mutex_t mirror_lock = PTHREAD_MUTEX_INITIALIZER;

/* A companion's variables are its own; the host sees the module's copy. So they are copied in before and out after. */
static void mirror(const struct CUmod_st *m, bool in)
{
    for (unsigned i = 0; i < m->image->variable_count; i++) {
        const struct simk_global *g = m->variables[i].companion;
        void *device = (void *)(uintptr_t)m->variables[i].address;
        if (g)
            memcpy(in ? g->address : device, in ? device : g->address, g->size);
    }
}

static void run_body(void *arg)
{
    const struct launch *l = arg;
    const struct simk_kernel *k = l->function->code->companion;
    if (!k) {
        sim_probe_run(&l->probes);
        return;
    }
    const struct CUmod_st *m = l->function->module;
    if (m->mirrored)
        mirror(m, true);
    k->run(&l->shape, l->params);
    if (m->mirrored)
        mirror(m, false);
}

static CUresult run(void *arg)
{
    struct launch *l = arg;
    struct sim_account account;
    bool mirrored = l->function->module->mirrored;
    if (mirrored)
        pthread_mutex_lock(&mirror_lock);
    sim_account_begin(&account, l->function->module->context);
    CUresult r = sim_guarded_kernel(run_body, l);
    sim_account_end(&account);
    if (mirrored)
        pthread_mutex_unlock(&mirror_lock);
    return r;
}

static void drop(void *arg)
{
    struct launch *l = arg;
    sim_module_drop(l->function->module);
    free(l->probes.ranges);
    free(l);
}

/* The packed buffer that `extra` names (cuda.h, cuLaunchKernel). */
static CUresult gather_extra(const struct sim_code *code, void **extra, unsigned char *out)
{
    const void *buffer = NULL;
    const size_t *size = NULL;
    for (unsigned i = 0; extra[i] != CU_LAUNCH_PARAM_END; i += 2) {
        if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER)
            buffer = extra[i + 1];
        else if (extra[i] == CU_LAUNCH_PARAM_BUFFER_SIZE)
            size = extra[i + 1];
        else
            return CUDA_ERROR_INVALID_VALUE;
    }
    if (!code->param_size)
        return CUDA_SUCCESS;
    if (!buffer || !size || *size < code->param_size)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(out, buffer, code->param_size);
    return CUDA_SUCCESS;
}

static CUresult gather(const struct sim_code *code, void **pointers, void **extra, unsigned char *out)
{
    if (pointers && extra)
        return CUDA_ERROR_INVALID_VALUE;
    if (extra)
        return gather_extra(code, extra, out);
    if (code->param_count && !pointers)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < code->param_count; i++) {
        if (!pointers[i])
            return CUDA_ERROR_INVALID_VALUE;
        memcpy(out + code->params[i].offset, pointers[i], code->params[i].size);
    }
    return CUDA_SUCCESS;
}

static CUresult check_shape(struct CUfunc_st *f, const CUDA_KERNEL_NODE_PARAMS *p)
{
    if (!p->gridDimX || !p->gridDimY || !p->gridDimZ || !p->blockDimX || !p->blockDimY || !p->blockDimZ ||
        p->gridDimX > INT32_MAX || p->gridDimY > 65535 || p->gridDimZ > 65535 || p->blockDimX > SIM_MAX_THREADS ||
        p->blockDimY > SIM_MAX_THREADS || p->blockDimZ > 64)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t threads = (uint64_t)p->blockDimX * p->blockDimY * p->blockDimZ;
    if (threads > SIM_MAX_THREADS || p->sharedMemBytes > (unsigned)sim_settings(f)->max_dynamic_shared)
        return CUDA_ERROR_INVALID_VALUE;
    if (threads > (uint64_t)f->code->max_threads)
        return sim_doubt(SIM_DOUBT_LAUNCH_LIMITS) ? CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES : CUDA_ERROR_INVALID_VALUE;
    /* "the kernel launch specifies too many threads for the kernel's register count" (cuda.h) */
    return threads > (uint64_t)sim_code_max_threads(f->code) ? CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES : CUDA_SUCCESS;
}

/* The kernel's companion, looked up at its first launch. What fails here is a build that does not belong together. */
static CUresult find_companion(struct sim_code *code, const char *file)
{
    const struct simk_kernel *k = sim_companion_kernel(code->name, file);
    if (!k)
        return CUDA_ERROR_NOT_FOUND;
    if (k->param_size < code->param_size || k->param_size > sim_round(code->param_size, 16) || k->param_count != code->param_count) {
        sim_complain("kernel %s has %u parameters of %zu bytes in the image and %zu of %zu in the companion: compiled from "
                     "different sources?",
                     code->name, code->param_count, code->param_size, k->param_count, k->param_size);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    code->companion = k;
    return CUDA_SUCCESS;
}

static CUresult unknown(struct launch *l, struct sim_code *code)
{
    static const char *const what[] = {"it does nothing", "it reads what its parameters name", "its launch fails"};
    int choice = sim_config()->unknown_kernel;
    if (!atomic_exchange(&code->said, true))
        sim_complain("no companion holds the kernel %s: %s (SIMGPU_UNKNOWN_KERNEL, SIMGPU_KERNELS)", code->name, what[choice]);
    if (choice == SIM_UNKNOWN_FAIL)
        return CUDA_ERROR_NOT_FOUND;
    return choice == SIM_UNKNOWN_PROBE ? sim_probe_find(l->params, code->param_size, &l->probes) : CUDA_SUCCESS;
}

/* The launch of f, whose held module it takes over. p->func and p->kern are not looked at again. */
static CUresult make(struct CUfunc_st *f, const CUDA_KERNEL_NODE_PARAMS *p, const CUlaunchAttribute *attributes, unsigned count,
                     struct launch **out)
{
    struct sim_code *code = f->code;
    size_t params = sim_round(code->param_size, 16), array = code->param_count * sizeof(void *);
    struct launch *l = NULL;
    CUresult r = check_shape(f, p);
    if (!r && (count || sim_settings(f)->cluster[0]))
        r = sim_launch_check_attributes(f, p, attributes, count);
    if (!r && !(l = malloc(sizeof *l + params + array + count * sizeof *attributes)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r) {
        sim_module_drop(f->module);
        return r;
    }
    memset(l->params, 0, params); /* the gaps too: a probe looks at every word */
    l->function = f;
    l->kernel = p->func ? NULL : p->kern;
    l->shape = (struct simk_launch){{p->gridDimX, p->gridDimY, p->gridDimZ}, {p->blockDimX, p->blockDimY, p->blockDimZ},
                                    p->sharedMemBytes};
    l->probes = (struct sim_probes){0};
    l->pointers = (void **)(l->params + params);
    for (unsigned i = 0; i < code->param_count; i++)
        l->pointers[i] = l->params + code->params[i].offset;
    l->attributes = (CUlaunchAttribute *)(l->params + params + array);
    l->attribute_count = count;
    if (count)
        memcpy(l->attributes, attributes, count * sizeof *attributes);
    r = gather(code, p->kernelParams, p->extra, l->params);
    if (!r && !code->companion) {
        r = find_companion(code, f->module->image->file);
        if (r == CUDA_ERROR_NOT_FOUND)
            r = unknown(l, code);
    }
    if (r)
        drop(l);
    else
        *out = l;
    return r;
}

/* ---- launches as operations, for graphs */

static struct sim_op op_of(struct launch *l)
{
    return (struct sim_op){run, drop, l, CU_GRAPH_NODE_TYPE_KERNEL, &l->work};
}

CUresult sim_launch_op_with(const CUDA_KERNEL_NODE_PARAMS *p, const CUlaunchAttribute *attributes, unsigned count, struct sim_op *out)
{
    CUcontext context;
    struct CUfunc_st *f;
    struct launch *l;
    CUresult r = sim_current(&context);
    if (r)
        return r;
    if (!p || (!p->func && !p->kern))
        return CUDA_ERROR_INVALID_VALUE;
    if (!p->func && p->ctx) {
        sim_take();
        context = sim_object(SIM_CONTEXT, (uintptr_t)p->ctx);
        sim_give();
        if (!context)
            return CUDA_ERROR_INVALID_CONTEXT;
    }
    r = sim_function_hold(p->func ? p->func : (CUfunction)p->kern, context, &f);
    if (!r)
        r = make(f, p, attributes, count, &l);
    if (!r)
        *out = op_of(l);
    return r;
}

CUresult sim_launch_op(const CUDA_KERNEL_NODE_PARAMS *p, struct sim_op *out)
{
    return sim_launch_op_with(p, NULL, 0, out);
}

CUcontext sim_launch_context(const struct sim_op *op)
{
    return ((const struct launch *)op->arg)->function->module->context;
}

void sim_launch_params(const struct sim_op *op, CUDA_KERNEL_NODE_PARAMS *out)
{
    struct launch *l = op->arg;
    *out = (CUDA_KERNEL_NODE_PARAMS){
        .func = l->kernel ? NULL : l->function,
        .gridDimX = l->shape.grid.x, .gridDimY = l->shape.grid.y, .gridDimZ = l->shape.grid.z,
        .blockDimX = l->shape.block.x, .blockDimY = l->shape.block.y, .blockDimZ = l->shape.block.z,
        .sharedMemBytes = (unsigned)l->shape.dynamic_shared,
        .kernelParams = l->function->code->param_count ? l->pointers : NULL,
        .kern = l->kernel,
        .ctx = l->function->module->context,
    };
}

struct sim_launch_view {
    unsigned count;
    size_t size;
    void **pointers;
    _Alignas(16) unsigned char params[];
};

static bool fits(const struct sim_launch_view *v, const struct sim_code *code)
{
    bool same = v->count == code->param_count && v->size == code->param_size;
    for (unsigned i = 0; same && i < v->count; i++)
        same = v->pointers[i] == v->params + code->params[i].offset;
    return same;
}

CUresult sim_launch_view_params(struct sim_launch_view **view, const struct sim_op *op, CUDA_KERNEL_NODE_PARAMS *out)
{
    const struct sim_code *code = ((const struct launch *)op->arg)->function->code;
    size_t params = sim_round(code->param_size, 16);
    sim_launch_view_refresh(view, op);
    if (!*view) {
        struct sim_launch_view *v = malloc(sizeof *v + params + code->param_count * sizeof(void *));
        if (!v)
            return CUDA_ERROR_OUT_OF_MEMORY;
        v->count = code->param_count;
        v->size = code->param_size;
        v->pointers = (void **)(v->params + params);
        for (unsigned i = 0; i < v->count; i++)
            v->pointers[i] = v->params + code->params[i].offset;
        *view = v;
        sim_launch_view_refresh(view, op);
    }
    sim_launch_params(op, out);
    if (out->kernelParams)
        out->kernelParams = (*view)->pointers;
    return CUDA_SUCCESS;
}

void sim_launch_view_refresh(struct sim_launch_view **view, const struct sim_op *op)
{
    const struct launch *l = op->arg;
    if (*view && fits(*view, l->function->code)) {
        memcpy((*view)->params, l->params, l->function->code->param_size);
    } else {
        free(*view);
        *view = NULL;
    }
}

const CUlaunchAttribute *sim_launch_attributes(const struct sim_op *op, unsigned *count)
{
    const struct launch *l = op->arg;
    *count = l->attribute_count;
    return l->attributes;
}

/* ---- entries */

/* The context that a launch on this stream belongs to: the stream's, not the current one (cuda.h, cuLaunchKernel). */
static CUresult context_of(CUstream stream, CUcontext *out)
{
    CUresult r = sim_current(out);
    if (r || !stream || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD)
        return r;
    sim_take();
    CUstream s = sim_object(SIM_STREAM, (uintptr_t)stream);
    if (s)
        *out = s->ctx;
    sim_give();
    return s ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult sim_launch(const CUDA_KERNEL_NODE_PARAMS *p, const CUlaunchAttribute *attributes, unsigned count, CUstream stream, bool ptsz)
{
    struct CUfunc_st *f;
    struct launch *l;
    CUcontext context;
    CUresult r = context_of(stream, &context);
    if (r || (r = sim_function_hold(p->func, context, &f)))
        return r;
    if (f->module->context != context) {
        sim_module_drop(f->module);
        return CUDA_ERROR_INVALID_HANDLE;
    }
    r = make(f, p, attributes, count, &l);
    return r ? r : sim_enqueue(stream, ptsz, op_of(l));
}

static CUresult launch_ex(const CUlaunchConfig *c, CUfunction f, void **pointers, void **extra, bool ptsz)
{
    if (!c || (c->numAttrs && !c->attrs))
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_KERNEL_NODE_PARAMS p = {.func = f,
                                 .gridDimX = c->gridDimX, .gridDimY = c->gridDimY, .gridDimZ = c->gridDimZ,
                                 .blockDimX = c->blockDimX, .blockDimY = c->blockDimY, .blockDimZ = c->blockDimZ,
                                 .sharedMemBytes = c->sharedMemBytes, .kernelParams = pointers, .extra = extra};
    return sim_launch(&p, c->attrs, c->numAttrs, c->hStream, ptsz);
}

/* What the entries with one argument for each dimension were given. */
#define SHAPE(pointers, extras) \
    &(const CUDA_KERNEL_NODE_PARAMS){.func = f, .gridDimX = gridDimX, .gridDimY = gridDimY, .gridDimZ = gridDimZ, \
                                     .blockDimX = blockDimX, .blockDimY = blockDimY, .blockDimZ = blockDimZ, \
                                     .sharedMemBytes = sharedMemBytes, .kernelParams = (pointers), .extra = (extras)}

SIM_API CUresult cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                                unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                                unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra)
{
    SIM_ENTRY();
    return sim_launch(SHAPE(kernelParams, extra), NULL, 0, hStream, false);
}

SIM_API CUresult cuLaunchKernel_ptsz(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                                     unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                                     unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra)
{
    SIM_ENTRY();
    return sim_launch(SHAPE(kernelParams, extra), NULL, 0, hStream, true);
}

/* Blocks run one after the other; what needs them all at once (a grid-wide barrier) does not compile with simk.h. */
const CUlaunchAttribute sim_cooperative = {.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE, .value = {.cooperative = 1}};

SIM_API CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                                           unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                                           unsigned int sharedMemBytes, CUstream hStream, void **kernelParams)
{
    SIM_ENTRY();
    return sim_launch(SHAPE(kernelParams, NULL), &sim_cooperative, 1, hStream, false);
}

SIM_API CUresult cuLaunchCooperativeKernel_ptsz(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                                                unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                                                unsigned int sharedMemBytes, CUstream hStream, void **kernelParams)
{
    SIM_ENTRY();
    return sim_launch(SHAPE(kernelParams, NULL), &sim_cooperative, 1, hStream, true);
}

SIM_API CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **kernelParams, void **extra)
{
    SIM_ENTRY();
    return launch_ex(config, f, kernelParams, extra, false);
}

SIM_API CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction f, void **kernelParams, void **extra)
{
    SIM_ENTRY();
    return launch_ex(config, f, kernelParams, extra, true);
}
