/* SPDX-License-Identifier: Apache-2.0 */
/* What can be asked of a function: attributes, names, parameter layout. Entries cuFunc*; the answers are shared with the
 * cuKernel* entries of code_library.c.
 */
#include "code.h"

CUresult sim_code_param(const struct sim_code *code, size_t index, size_t *offset, size_t *size)
{
    if (!offset || index >= code->param_count)
        return CUDA_ERROR_INVALID_VALUE;
    *offset = code->params[index].offset;
    if (size)
        *size = code->params[index].size;
    return CUDA_SUCCESS;
}

CUresult sim_code_attribute(const struct sim_image *image, const struct sim_code *code, const struct sim_settings *settings,
                            CUfunction_attribute attribute, int *value)
{
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = sim_code_max_threads(code); break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = code->shared; break;
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES: *value = code->constant; break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = code->local; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = code->registers; break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION: *value = image->ptx_version; break;
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = image->binary_version; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = settings->max_dynamic_shared; break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *value = settings->carveout; break;
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA:
    case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET: *value = 0; break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH: *value = settings->cluster[0]; break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT: *value = settings->cluster[1]; break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH: *value = settings->cluster[2]; break;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: *value = settings->non_portable; break;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE: *value = settings->policy; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult sim_code_set_attribute(const struct sim_code *code, struct sim_settings *settings, CUfunction_attribute attribute, int value)
{
    int *what, least = 0, most;
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: what = &settings->max_dynamic_shared, most = SIM_MAX_SHARED - code->shared; break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: what = &settings->carveout, least = -1, most = 100; break;
    /* "The validity of the cluster dimensions is otherwise checked at launch time" (cuda.h) */
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH: what = &settings->cluster[0], most = INT32_MAX; break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT: what = &settings->cluster[1], most = INT32_MAX; break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH: what = &settings->cluster[2], most = INT32_MAX; break;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: what = &settings->non_portable, most = 1; break;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        what = &settings->policy, most = CU_CLUSTER_SCHEDULING_POLICY_RUBIN_DSMEM_LOCALITY;
        break;
    default: return CUDA_ERROR_INVALID_VALUE; /* read-only */
    }
    if (value < least || value > most)
        return CUDA_ERROR_INVALID_VALUE;
    *what = value;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuFuncGetAttribute(int *pi, CUfunction_attribute attrib, CUfunction hfunc)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    if (!pi)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(hfunc, &f);
    return r ? r : sim_code_attribute(f->module->image, f->code, sim_settings(f), attrib, pi);
}

SIM_API CUresult cuFuncSetAttribute(CUfunction hfunc, CUfunction_attribute attrib, int value)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    CUresult r = sim_function_of(hfunc, &f);
    return r ? r : sim_code_set_attribute(f->code, sim_settings(f), attrib, value);
}

SIM_API CUresult cuFuncSetCacheConfig(CUfunction hfunc, CUfunc_cache config)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    (void)config; /* a hint, and there is no cache to divide */
    return sim_function_of(hfunc, &f);
}

SIM_API CUresult cuFuncSetSharedMemConfig(CUfunction hfunc, CUsharedconfig config)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    (void)config;
    return sim_function_of(hfunc, &f);
}

SIM_API CUresult cuFuncGetModule(CUmodule *hmod, CUfunction hfunc)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    if (!hmod)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(hfunc, &f);
    if (!r)
        *hmod = f->module;
    return r;
}

SIM_API CUresult cuFuncGetName(const char **name, CUfunction hfunc)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(hfunc, &f);
    if (!r)
        *name = f->code->name;
    return r;
}

SIM_API CUresult cuFuncGetParamInfo(CUfunction func, size_t paramIndex, size_t *paramOffset, size_t *paramSize)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    CUresult r = sim_function_of(func, &f);
    return r ? r : sim_code_param(f->code, paramIndex, paramOffset, paramSize);
}

SIM_API CUresult cuFuncGetParamCount(CUfunction func, size_t *paramCount)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    if (!paramCount)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(func, &f);
    if (!r)
        *paramCount = f->code->param_count;
    return r;
}

SIM_API CUresult cuFuncIsLoaded(CUfunctionLoadingState *state, CUfunction function)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    if (!state)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(function, &f);
    if (!r)
        *state = CU_FUNCTION_LOADING_STATE_LOADED;
    return r;
}

SIM_API CUresult cuFuncLoad(CUfunction function)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    return sim_function_of(function, &f);
}
