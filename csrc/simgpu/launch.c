/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel launches. Entries cuLaunchKernel, cuLaunchKernelEx, cuLaunchCooperativeKernel and their _ptsz variants.
 * Rules: parameters are copied before the call returns, as the driver does it; the kernel itself runs on the stream's thread,
 * guarded, so that a bad address becomes the context's sticky CUDA_ERROR_ILLEGAL_ADDRESS. A kernel that no companion holds
 * is said once by name, and SIMGPU_UNKNOWN_KERNEL decides what its launch does.
 */
#include "code.h"

#include <stdlib.h>
#include <string.h>

#define PAGE 4096u

struct range {
    const volatile char *at;
    size_t size;
};

struct launch {
    struct CUmod_st *module; /* held */
    const struct sim_code *code;
    struct simk_launch shape;
    struct range *probes; /* what an unknown kernel reads */
    size_t probe_count;
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
    const struct simk_kernel *k = l->code->companion;
    if (k && l->module->mirrored)
        mirror(l->module, true);
    if (k)
        k->run(&l->shape, l->params);
    if (k && l->module->mirrored)
        mirror(l->module, false);
    for (size_t i = 0; i < l->probe_count; i++) {
        sim_touch((const void *)l->probes[i].at, l->probes[i].size);
        for (size_t o = 0; o < l->probes[i].size; o += PAGE)
            (void)l->probes[i].at[o];
    }
}

static CUresult run(void *arg)
{
    struct launch *l = arg;
    struct sim_account account;
    if (l->module->mirrored)
        pthread_mutex_lock(&mirror_lock);
    sim_account_begin(&account);
    CUresult r = sim_guarded(run_body, l);
    sim_account_end(&account);
    if (l->module->mirrored)
        pthread_mutex_unlock(&mirror_lock);
    return r;
}

static void drop(void *arg)
{
    struct launch *l = arg;
    sim_module_drop(l->module);
    free(l->probes);
    free(l);
}

/* The parameter buffer from an array of pointers, or from `extra` (cuda.h, cuLaunchKernel). */
static CUresult gather(const struct sim_code *code, void **pointers, void **extra, unsigned char *out)
{
    if (pointers && extra)
        return CUDA_ERROR_INVALID_VALUE;
    if (extra) {
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
    if (code->param_count && !pointers)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < code->param_count; i++) {
        if (!pointers[i])
            return CUDA_ERROR_INVALID_VALUE;
        memcpy(out + code->params[i].offset, pointers[i], code->params[i].size);
    }
    return CUDA_SUCCESS;
}

static CUresult check_shape(struct CUfunc_st *f, const CUlaunchConfig *c)
{
    uint64_t threads = (uint64_t)c->blockDimX * c->blockDimY;
    if (!c->gridDimX || !c->gridDimY || !c->gridDimZ || !c->blockDimX || !c->blockDimY || !c->blockDimZ ||
        c->gridDimX > INT32_MAX || c->gridDimY > 65535 || c->gridDimZ > 65535 || c->blockDimX > SIM_MAX_THREADS ||
        c->blockDimY > SIM_MAX_THREADS || c->blockDimZ > 64)
        return CUDA_ERROR_INVALID_VALUE;
    threads *= c->blockDimZ;
    if (threads > SIM_MAX_THREADS || c->sharedMemBytes > (unsigned)*sim_function_shared(f))
        return CUDA_ERROR_INVALID_VALUE;
    return threads > (uint64_t)f->code->max_threads ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

/* The kernel's companion, looked up at its first launch. What fails here is a build that does not belong together. */
static CUresult find_companion(struct sim_code *code, const char *file)
{
    if (code->companion)
        return CUDA_SUCCESS;
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

/* Every mapping that a word of the parameters points into, for "probe". */
static CUresult find_probes(struct launch *l)
{
    size_t words = l->code->param_size / 8;
    if (words && !(l->probes = calloc(words, sizeof *l->probes)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_take();
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, l->params + 8 * i, sizeof word);
        const struct sim_map *m = sim_map_find(word);
        if (m)
            l->probes[l->probe_count++] = (struct range){(const volatile char *)(uintptr_t)m->base, m->size};
    }
    sim_give();
    return CUDA_SUCCESS;
}

static CUresult unknown(struct launch *l, struct sim_code *code)
{
    static const char *const what[] = {"it does nothing", "it reads what its parameters name", "its launch fails"};
    int choice = sim_config()->unknown_kernel;
    if (!code->said) {
        code->said = true;
        sim_complain("no companion holds the kernel %s: %s (SIMGPU_UNKNOWN_KERNEL, SIMGPU_KERNELS)", code->name, what[choice]);
    }
    if (choice == SIM_UNKNOWN_FAIL)
        return CUDA_ERROR_NOT_FOUND;
    return choice == SIM_UNKNOWN_PROBE ? find_probes(l) : CUDA_SUCCESS;
}

static CUresult launch(CUfunction handle, const CUlaunchConfig *c, void **pointers, void **extra, bool ptsz)
{
    struct CUfunc_st *f;
    CUcontext context;
    CUresult r = sim_current(&context);
    if (r || (r = sim_function_of(handle, &f)) || (r = check_shape(f, c)))
        return r;
    if (f->module->context != context)
        return CUDA_ERROR_INVALID_HANDLE;
    struct launch *l = calloc(1, sizeof *l + f->code->param_size);
    if (!l)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_module_hold(f->module);
    l->module = f->module;
    l->code = f->code;
    l->shape = (struct simk_launch){{c->gridDimX, c->gridDimY, c->gridDimZ}, {c->blockDimX, c->blockDimY, c->blockDimZ},
                                    c->sharedMemBytes};
    r = gather(f->code, pointers, extra, l->params);
    if (!r) {
        r = find_companion(f->code, f->module->image->file);
        if (r == CUDA_ERROR_NOT_FOUND)
            r = unknown(l, f->code);
    }
    if (r) {
        drop(l);
        return r;
    }
    return sim_enqueue(c->hStream, ptsz, (struct sim_op){run, drop, l, CU_GRAPH_NODE_TYPE_KERNEL});
}

static CUresult launch_ex(const CUlaunchConfig *config, CUfunction f, void **pointers, void **extra, bool ptsz)
{
    if (!config || (config->numAttrs && !config->attrs))
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT ||
            config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT)
            return CUDA_ERROR_NOT_SUPPORTED; /* somebody would wait for an event that nobody records */
    return launch(f, config, pointers, extra, ptsz);
}

#define SHAPE() (&(const CUlaunchConfig){gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, hStream, NULL, 0})

SIM_API CUresult cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                                unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                                unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra)
{
    SIM_ENTRY();
    return launch(f, SHAPE(), kernelParams, extra, false);
}

SIM_API CUresult cuLaunchKernel_ptsz(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                                     unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                                     unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra)
{
    SIM_ENTRY();
    return launch(f, SHAPE(), kernelParams, extra, true);
}

/* Blocks run one after the other; what needs them all at once (a grid-wide barrier) does not compile with simk.h. */
SIM_API CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                                           unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                                           unsigned int sharedMemBytes, CUstream hStream, void **kernelParams)
{
    SIM_ENTRY();
    return launch(f, SHAPE(), kernelParams, NULL, false);
}

SIM_API CUresult cuLaunchCooperativeKernel_ptsz(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                                                unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                                                unsigned int sharedMemBytes, CUstream hStream, void **kernelParams)
{
    SIM_ENTRY();
    return launch(f, SHAPE(), kernelParams, NULL, true);
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
