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

CUresult sim_code_attribute(const struct sim_image *image, const struct sim_code *code, int max_dynamic_shared, int carveout,
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
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = max_dynamic_shared; break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *value = carveout; break;
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA:
    case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE: *value = 0; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult sim_code_set_attribute(const struct sim_code *code, int *max_dynamic_shared, int *carveout,
                                CUfunction_attribute attribute, int value)
{
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        if (value < 0 || value > SIM_MAX_SHARED - code->shared)
            return CUDA_ERROR_INVALID_VALUE;
        *max_dynamic_shared = value;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        if (value < -1 || value > 100)
            return CUDA_ERROR_INVALID_VALUE;
        *carveout = value;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        return value < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; /* how blocks are grouped changes nothing here */
    default:
        return CUDA_ERROR_INVALID_VALUE; /* read-only */
    }
}

SIM_API CUresult cuFuncGetAttribute(int *pi, CUfunction_attribute attrib, CUfunction hfunc)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    if (!pi)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(hfunc, &f);
    return r ? r : sim_code_attribute(f->module->image, f->code, *sim_function_shared(f), *sim_function_carveout(f), attrib, pi);
}

SIM_API CUresult cuFuncSetAttribute(CUfunction hfunc, CUfunction_attribute attrib, int value)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    CUresult r = sim_function_of(hfunc, &f);
    return r ? r : sim_code_set_attribute(f->code, sim_function_shared(f), sim_function_carveout(f), attrib, value);
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
