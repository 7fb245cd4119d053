/* SPDX-License-Identifier: Apache-2.0 */
/* Libraries: images that belong to no context; each context that uses one gets a module of it. Entries cuLibrary*, cuKernel*.
 * Also called by launch.c and code_function.c, because a CUkernel may stand where a CUfunction is asked for.
 */
#include "code.h"

#include <stdlib.h>
#include <string.h>

static struct CUlib_st *library_of(CUlibrary handle)
{
    sim_take();
    struct CUlib_st *lib = sim_object(SIM_LIBRARY, (uintptr_t)handle);
    sim_give();
    return lib;
}

static struct CUkern_st *kernel_of(CUkernel handle)
{
    sim_take();
    struct CUkern_st *k = sim_object(SIM_KERNEL_HANDLE, (uintptr_t)handle);
    sim_give();
    return k;
}

static CUresult library_new(struct sim_image *image, CUlibrary *out)
{
    struct CUlib_st *lib = calloc(1, sizeof *lib);
    if (!lib || !(lib->kernels = calloc(image->code_count + 1u, sizeof *lib->kernels))) {
        free(lib);
        sim_image_drop(image);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    lib->image = image;
    sim_take();
    bool added = sim_object_add(SIM_LIBRARY, (uintptr_t)lib, lib);
    sim_give();
    if (!added) {
        free(lib->kernels);
        free(lib);
        sim_image_drop(image);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = lib;
    return CUDA_SUCCESS;
}

CUresult sim_library_module(CUlibrary handle, CUcontext context, struct CUmod_st **out)
{
    CUresult r;
    for (struct CUmod_st *fresh = NULL;;) {
        sim_take();
        struct CUlib_st *lib = sim_object(SIM_LIBRARY, (uintptr_t)handle);
        struct sim_library_module *m = lib ? lib->modules : NULL;
        while (m && m->context != context)
            m = m->next;
        if (lib && !m && fresh && (m = malloc(sizeof *m))) {
            *m = (struct sim_library_module){lib->modules, context, fresh};
            lib->modules = m;
            fresh = NULL;
        }
        struct sim_image *image = lib && !m && !fresh ? lib->image : NULL;
        if (image)
            sim_image_hold(image);
        *out = m ? m->module : NULL;
        sim_give();
        if (!image) { /* found, or failed */
            if (fresh)
                sim_module_end(fresh);
            return m ? CUDA_SUCCESS : lib ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_HANDLE;
        }
        r = sim_module_make(image, context, &fresh);
        sim_image_drop(image);
        if (r)
            return r;
    }
}

static CUresult kernel_function(struct CUkern_st *k, CUcontext context, CUfunction *out)
{
    struct CUmod_st *m;
    CUresult r = sim_library_module(k->library, context, &m);
    if (!r)
        r = sim_module_function(m, k->code, out);
    if (!r) {
        sim_take();
        (*out)->kernel = k;
        sim_give();
    }
    return r;
}

CUresult sim_function_hold(CUfunction handle, CUcontext context, struct CUfunc_st **out)
{
    for (;;) {
        CUfunction made = NULL;
        sim_take();
        struct CUfunc_st *f = sim_object(SIM_FUNCTION, (uintptr_t)handle);
        struct CUkern_st *k = f ? NULL : sim_object(SIM_KERNEL_HANDLE, (uintptr_t)handle);
        if (k) /* its function, when this context has it already */
            for (struct sim_library_module *m = k->library->modules; m && !f; m = m->next)
                if (m->context == context && m->module->functions[k->code - m->module->image->codes].kernel)
                    f = &m->module->functions[k->code - m->module->image->codes];
        if (f)
            sim_module_hold(f->module);
        sim_give();
        *out = f;
        if (f || !k)
            return f ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
        CUresult r = kernel_function(k, context, &made); /* loads the module: then once more */
        if (r)
            return r;
    }
}

CUresult sim_function_of(CUfunction handle, struct CUfunc_st **out)
{
    CUcontext context;
    CUresult r = sim_current(&context);
    if (!r)
        r = sim_function_hold(handle, context, out);
    if (!r)
        sim_module_drop((*out)->module); /* the caller's handle keeps it, unless another thread ends it now */
    return r;
}

SIM_API CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jitOptions, void **jitOptionsValues,
                                   unsigned int numJitOptions, CUlibraryOption *libraryOptions, void **libraryOptionValues,
                                   unsigned int numLibraryOptions)
{
    SIM_ENTRY();
    struct sim_image *image;
    (void)libraryOptions; /* host-universal function tables and preserved binaries concern code this driver does not compile */
    (void)libraryOptionValues;
    (void)numLibraryOptions;
    if (!library || !code)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_jit_options(numJitOptions, jitOptions, jitOptionsValues);
    if (!r)
        r = sim_image_load(code, &image);
    return r ? r : library_new(image, library);
}

SIM_API CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *fileName, CUjit_option *jitOptions, void **jitOptionsValues,
                                       unsigned int numJitOptions, CUlibraryOption *libraryOptions, void **libraryOptionValues,
                                       unsigned int numLibraryOptions)
{
    SIM_ENTRY();
    struct sim_image *image;
    (void)libraryOptions;
    (void)libraryOptionValues;
    (void)numLibraryOptions;
    if (!library || !fileName)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_jit_options(numJitOptions, jitOptions, jitOptionsValues);
    if (!r)
        r = sim_image_load_file(fileName, &image);
    return r ? r : library_new(image, library);
}

SIM_API CUresult cuLibraryUnload(CUlibrary library)
{
    SIM_ENTRY();
    sim_take();
    struct CUlib_st *lib = sim_object(SIM_LIBRARY, (uintptr_t)library);
    if (lib) {
        sim_object_drop(SIM_LIBRARY, (uintptr_t)lib);
        for (unsigned i = 0; i < lib->image->code_count; i++)
            if (lib->kernels[i].library)
                sim_object_drop(SIM_KERNEL_HANDLE, (uintptr_t)&lib->kernels[i]);
    }
    sim_give();
    if (!lib)
        return CUDA_ERROR_INVALID_HANDLE;
    for (struct sim_library_module *m = lib->modules, *next; m; m = next) {
        next = m->next;
        sim_module_end(m->module);
        free(m);
    }
    sim_image_drop(lib->image);
    free(lib->kernels);
    free(lib);
    return CUDA_SUCCESS;
}

static CUresult kernel_handle(struct CUlib_st *lib, struct sim_code *code, CUkernel *out)
{
    struct CUkern_st *k = &lib->kernels[code - lib->image->codes];
    CUresult r = CUDA_SUCCESS;
    sim_take();
    if (!k->library) {
        *k = (struct CUkern_st){lib, code, sim_settings_of(code)};
        if (!sim_object_add(SIM_KERNEL_HANDLE, (uintptr_t)k, k)) {
            k->library = NULL;
            r = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    sim_give();
    *out = k;
    return r;
}

SIM_API CUresult cuLibraryGetKernel(CUkernel *pKernel, CUlibrary library, const char *name)
{
    SIM_ENTRY();
    if (!pKernel || !name)
        return CUDA_ERROR_INVALID_VALUE;
    struct CUlib_st *lib = library_of(library);
    if (!lib)
        return CUDA_ERROR_INVALID_HANDLE;
    struct sim_code *code = sim_image_code(lib->image, name);
    return code ? kernel_handle(lib, code, pKernel) : CUDA_ERROR_NOT_FOUND;
}

SIM_API CUresult cuLibraryGetKernelCount(unsigned int *count, CUlibrary lib)
{
    SIM_ENTRY();
    struct CUlib_st *l = library_of(lib);
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    if (!l)
        return CUDA_ERROR_INVALID_HANDLE;
    *count = l->image->code_count;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned int numKernels, CUlibrary lib)
{
    SIM_ENTRY();
    struct CUlib_st *l = library_of(lib);
    CUresult r = CUDA_SUCCESS;
    if (!kernels || !numKernels)
        return CUDA_ERROR_INVALID_VALUE;
    if (!l)
        return CUDA_ERROR_INVALID_HANDLE;
    for (unsigned i = 0; i < numKernels && i < l->image->code_count && !r; i++)
        r = kernel_handle(l, &l->image->codes[i], &kernels[i]);
    return r;
}

SIM_API CUresult cuLibraryGetModule(CUmodule *pMod, CUlibrary library)
{
    SIM_ENTRY();
    CUcontext context;
    CUresult r = sim_current(&context);
    if (!r && !pMod)
        r = CUDA_ERROR_INVALID_VALUE;
    return r ? r : sim_library_module(library, context, pMod);
}

static CUresult variable(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name, bool managed)
{
    struct CUmod_st *m;
    CUcontext context;
    if (!name || (!dptr && !bytes))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_current(&context);
    if (!r)
        r = sim_library_module(library, context, &m);
    if (r)
        return r;
    struct sim_variable *v = sim_image_variable(m->image, name);
    return v && (v->managed || !managed) ? sim_module_global(m, name, dptr, bytes) : CUDA_ERROR_NOT_FOUND;
}

SIM_API CUresult cuLibraryGetGlobal(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name)
{
    SIM_ENTRY();
    return variable(dptr, bytes, library, name, false);
}

SIM_API CUresult cuLibraryGetManaged(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name)
{
    SIM_ENTRY();
    return variable(dptr, bytes, library, name, true);
}

SIM_API CUresult cuKernelGetFunction(CUfunction *pFunc, CUkernel kernel)
{
    SIM_ENTRY();
    struct CUkern_st *k = kernel_of(kernel);
    CUcontext context;
    CUresult r = sim_current(&context);
    if (r)
        return r;
    if (!pFunc)
        return CUDA_ERROR_INVALID_VALUE;
    return k ? kernel_function(k, context, pFunc) : CUDA_ERROR_INVALID_HANDLE;
}

SIM_API CUresult cuKernelGetLibrary(CUlibrary *pLib, CUkernel kernel)
{
    SIM_ENTRY();
    struct CUkern_st *k = kernel_of(kernel);
    if (!pLib)
        return CUDA_ERROR_INVALID_VALUE;
    if (!k)
        return CUDA_ERROR_INVALID_HANDLE;
    *pLib = k->library;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuKernelGetName(const char **name, CUkernel hfunc)
{
    SIM_ENTRY();
    struct CUkern_st *k = kernel_of(hfunc);
    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    if (!k)
        return CUDA_ERROR_INVALID_HANDLE;
    *name = k->code->name;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuKernelGetParamInfo(CUkernel kernel, size_t paramIndex, size_t *paramOffset, size_t *paramSize)
{
    SIM_ENTRY();
    struct CUkern_st *k = kernel_of(kernel);
    return k ? sim_code_param(k->code, paramIndex, paramOffset, paramSize) : CUDA_ERROR_INVALID_HANDLE;
}

SIM_API CUresult cuKernelGetParamCount(CUkernel kernel, size_t *paramCount)
{
    SIM_ENTRY();
    struct CUkern_st *k = kernel_of(kernel);
    if (!paramCount)
        return CUDA_ERROR_INVALID_VALUE;
    if (!k)
        return CUDA_ERROR_INVALID_HANDLE;
    *paramCount = k->code->param_count;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuKernelGetAttribute(int *pi, CUfunction_attribute attrib, CUkernel kernel, CUdevice dev)
{
    SIM_ENTRY();
    struct CUkern_st *k = kernel_of(kernel);
    if (!pi)
        return CUDA_ERROR_INVALID_VALUE;
    if (!k)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    return sim_code_attribute(k->library->image, k->code, &k->settings, attrib, pi);
}

SIM_API CUresult cuKernelSetAttribute(CUfunction_attribute attrib, int val, CUkernel kernel, CUdevice dev)
{
    SIM_ENTRY();
    struct CUkern_st *k = kernel_of(kernel);
    if (!k)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    return sim_code_set_attribute(k->code, &k->settings, attrib, val);
}

SIM_API CUresult cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache config, CUdevice dev)
{
    SIM_ENTRY();
    (void)config; /* a hint, and there is no cache to divide */
    if (!kernel_of(kernel))
        return CUDA_ERROR_INVALID_HANDLE;
    return sim_device_ok(dev) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
