/* SPDX-License-Identifier: Apache-2.0 */
/* Modules: an image loaded into a context, its functions and its variables. Entries cuModule*; also called by code_library.c.
 * Rules: a module lives while its handle or a queued launch holds it; its handle dies at unload.
 */
#include "code.h"

#include <stdlib.h>
#include <string.h>

#define VARIABLE_ALIGN 256 /* bytes between a module's variables in their common allocation */

void sim_module_hold(struct CUmod_st *module)
{
    module->refs++;
}

void sim_module_drop(struct CUmod_st *module)
{
    if (--module->refs)
        return;
    sim_image_drop(module->image);
    free(module->variables);
    free(module->functions);
    free(module);
}

/* One allocation holds all variables, as the driver does it. */
static CUresult place_variables(struct CUmod_st *m)
{
    const struct sim_image *image = m->image;
    uint64_t bytes = 0;
    for (unsigned i = 0; i < image->variable_count; i++) {
        bytes += sim_round(image->variables[i].size, VARIABLE_ALIGN);
        if (bytes > SIM_MAX_VARIABLE) /* each is at most that: no sum overflows */
            return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!bytes)
        return CUDA_SUCCESS;
    CUdeviceptr base;
    CUresult r = sim_module_alloc(bytes, &base);
    if (r)
        return r;
    for (unsigned i = 0; i < image->variable_count; i++) {
        const struct sim_variable *v = &image->variables[i];
        m->variables[i].address = base;
        m->variables[i].companion = sim_companion_global(v->name, image->file);
        if (m->variables[i].companion && m->variables[i].companion->size != v->size) {
            sim_complain("variable %s has %zu bytes in the image and %zu in the companion: compiled from different sources?",
                         v->name, v->size, m->variables[i].companion->size);
            m->variables[i].companion = NULL;
        }
        m->mirrored |= m->variables[i].companion != NULL;
        if (v->init)
            memcpy((void *)(uintptr_t)base, v->init, v->size);
        else
            memset((void *)(uintptr_t)base, 0, v->size);
        base += sim_round(v->size, VARIABLE_ALIGN);
    }
    return CUDA_SUCCESS;
}

CUresult sim_module_make(struct sim_image *image, CUcontext context, struct CUmod_st **out)
{
    struct CUmod_st *m = calloc(1, sizeof *m);
    if (!m)
        return CUDA_ERROR_OUT_OF_MEMORY;
    m->refs = 1;
    m->context = context;
    m->image = image;
    sim_image_hold(image);
    m->variables = calloc(image->variable_count + 1u, sizeof *m->variables);
    m->functions = calloc(image->code_count + 1u, sizeof *m->functions);
    CUresult r = m->variables && m->functions ? place_variables(m) : CUDA_ERROR_OUT_OF_MEMORY;
    if (!r) {
        sim_take();
        if (!sim_object_add(SIM_MODULE, (uintptr_t)m, m))
            r = CUDA_ERROR_OUT_OF_MEMORY;
        sim_give();
    }
    if (r) {
        if (m->variables && m->variables[0].address)
            sim_module_free(m->variables[0].address);
        sim_module_drop(m);
        return r;
    }
    *out = m;
    return CUDA_SUCCESS;
}

/* [locked] Its handles are dead from here on. */
static void forget(struct CUmod_st *m)
{
    sim_object_drop(SIM_MODULE, (uintptr_t)m);
    for (unsigned i = 0; i < m->image->code_count; i++)
        if (m->functions[i].module)
            sim_object_drop(SIM_FUNCTION, (uintptr_t)&m->functions[i]);
}

void sim_module_end(struct CUmod_st *m)
{
    sim_take();
    forget(m);
    sim_give();
    if (m->image->variable_count && m->variables[0].address) {
        sim_drain(m->context); /* launches that are under way use the variables */
        sim_module_free(m->variables[0].address);
    }
    sim_module_drop(m);
}

CUresult sim_module_function(struct CUmod_st *m, struct sim_code *code, CUfunction *out)
{
    struct CUfunc_st *f = &m->functions[code - m->image->codes];
    CUresult r = CUDA_SUCCESS;
    sim_take();
    if (!f->module) {
        *f = (struct CUfunc_st){.module = m, .code = code, .settings = sim_settings_of(code)};
        if (!sim_object_add(SIM_FUNCTION, (uintptr_t)f, f)) {
            f->module = NULL;
            r = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    sim_give();
    *out = f;
    return r;
}

/* The live module behind a handle, held. */
static CUresult module_of(CUmodule handle, struct CUmod_st **out)
{
    sim_take();
    *out = sim_object(SIM_MODULE, (uintptr_t)handle);
    if (*out)
        sim_module_hold(*out);
    sim_give();
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* From memory (path NULL) or from a file. */
static CUresult load(CUmodule *module, const void *data, const char *path)
{
    struct sim_image *image;
    CUcontext context;
    if (!module)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_current(&context);
    if (!r)
        r = path ? sim_image_load_file(path, &image) : sim_image_load(data, &image);
    if (r)
        return r;
    r = sim_module_make(image, context, module);
    sim_image_drop(image);
    return r;
}

SIM_API CUresult cuModuleLoad(CUmodule *module, const char *fname)
{
    SIM_ENTRY();
    return fname ? load(module, NULL, fname) : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    SIM_ENTRY();
    return load(module, image, NULL);
}

CUresult sim_jit_options(unsigned count, const CUjit_option *options, void **values)
{
    if (count && (!options || !values))
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < count; i++)
        if ((unsigned)options[i] >= CU_JIT_NUM_OPTIONS)
            return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < count; i++)
        if (options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES || options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES ||
            options[i] == CU_JIT_WALL_TIME)
            values[i] = NULL; /* bytes written; milliseconds */
    return CUDA_SUCCESS;
}

SIM_API CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int numOptions, CUjit_option *options,
                                    void **optionValues)
{
    SIM_ENTRY();
    CUresult r = sim_jit_options(numOptions, options, optionValues);
    return r ? r : load(module, image, NULL);
}

SIM_API CUresult cuModuleLoadFatBinary(CUmodule *module, const void *fatCubin)
{
    SIM_ENTRY();
    return load(module, fatCubin, NULL);
}

SIM_API CUresult cuModuleUnload(CUmodule hmod)
{
    SIM_ENTRY();
    struct CUmod_st *m;
    CUresult r = module_of(hmod, &m);
    if (r)
        return r;
    sim_module_end(m);
    sim_module_drop(m);
    return CUDA_SUCCESS;
}

SIM_API CUresult cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name)
{
    SIM_ENTRY();
    struct CUmod_st *m;
    if (!hfunc || !name)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = module_of(hmod, &m);
    if (r)
        return r;
    struct sim_code *code = sim_image_code(m->image, name);
    r = code ? sim_module_function(m, code, hfunc) : CUDA_ERROR_NOT_FOUND;
    sim_module_drop(m);
    return r;
}

CUresult sim_module_global(struct CUmod_st *m, const char *name, CUdeviceptr *dptr, size_t *bytes)
{
    struct sim_variable *v = sim_image_variable(m->image, name);
    if (!v)
        return CUDA_ERROR_NOT_FOUND;
    if (dptr)
        *dptr = m->variables[v - m->image->variables].address;
    if (bytes)
        *bytes = v->size;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule hmod, const char *name)
{
    SIM_ENTRY();
    struct CUmod_st *m;
    if (!name || (!dptr && !bytes))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = module_of(hmod, &m);
    if (r)
        return r;
    r = sim_module_global(m, name, dptr, bytes);
    sim_module_drop(m);
    return r;
}

SIM_API CUresult cuModuleGetFunctionCount(unsigned int *count, CUmodule mod)
{
    SIM_ENTRY();
    struct CUmod_st *m;
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = module_of(mod, &m);
    if (r)
        return r;
    *count = m->image->code_count;
    sim_module_drop(m);
    return CUDA_SUCCESS;
}

SIM_API CUresult cuModuleEnumerateFunctions(CUfunction *functions, unsigned int numFunctions, CUmodule mod)
{
    SIM_ENTRY();
    struct CUmod_st *m;
    if (!functions || !numFunctions)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = module_of(mod, &m);
    if (r)
        return r;
    for (unsigned i = 0; i < numFunctions && i < m->image->code_count && !r; i++)
        r = sim_module_function(m, &m->image->codes[i], &functions[i]);
    sim_module_drop(m);
    return r;
}

SIM_API CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode *mode)
{
    SIM_ENTRY();
    if (!mode)
        return CUDA_ERROR_INVALID_VALUE;
    *mode = CU_MODULE_LAZY_LOADING;
    return CUDA_SUCCESS;
}

struct gone {
    CUcontext context;
    struct CUmod_st *one;
};

static void pick_module(void *object, void *arg)
{
    struct gone *g = arg;
    struct CUmod_st *m = object;
    if (m->context == g->context)
        g->one = m;
}

static void forget_in_library(void *object, void *arg)
{
    struct CUlib_st *lib = object;
    struct gone *g = arg;
    for (struct sim_library_module **p = &lib->modules, *x; (x = *p);) {
        if (x->context == g->context) {
            *p = x->next;
            free(x);
        } else {
            p = &x->next;
        }
    }
}

void sim_code_context_gone(CUcontext context)
{
    struct gone g = {context, NULL};
    sim_take();
    sim_object_each(SIM_LIBRARY, forget_in_library, &g);
    for (;;) {
        g.one = NULL;
        sim_object_each(SIM_MODULE, pick_module, &g);
        if (!g.one)
            break;
        forget(g.one);
        sim_give();
        sim_module_drop(g.one); /* its variables went with the context's memory */
        sim_take();
    }
    sim_give();
}
