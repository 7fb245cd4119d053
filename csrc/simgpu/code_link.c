/* SPDX-License-Identifier: Apache-2.0 */
/* The linker's entries, cuLink*. There is no linker here, because kernels are run by their companions: one input passes
 * through as it is (checked), and is what cuLinkComplete hands out; a second one, or code that only a linker could place
 * (objects, libraries, NVVM), is NOT_SUPPORTED with a line on stderr.
 * Rules: the output belongs to the linker's state and dies with it (cuda.h, cuLinkComplete).
 */
#include "code.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct CUlinkState_st {
    void *data; /* the input; text ends with a NUL */
    size_t size;
    bool complete;
};

static CUresult create(unsigned count, CUjit_option *options, void **values, CUlinkState *out)
{
    CUcontext context;
    CUresult r = sim_current(&context);
    if (!r && !out)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        r = sim_jit_options(count, options, values);
    if (r)
        return r;
    struct CUlinkState_st *s = calloc(1, sizeof *s);
    if (!s)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_take();
    bool added = sim_object_add(SIM_LINK, (uintptr_t)s, s);
    sim_give();
    if (!added) {
        free(s);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = s;
    return CUDA_SUCCESS;
}

static CUresult state_of(CUlinkState handle, struct CUlinkState_st **out)
{
    CUcontext context;
    CUresult r = sim_current(&context);
    if (r)
        return r;
    sim_take();
    *out = sim_object(SIM_LINK, (uintptr_t)handle);
    sim_give();
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* Is it code that could be loaded? */
static CUresult check(CUjitInputType type, struct sim_bytes bytes)
{
    bool elf = sim_elf_extent(bytes) != 0, fatbin = sim_fatbin_extent(bytes) != 0;
    if (elf != (type == CU_JIT_INPUT_CUBIN) || fatbin != (type == CU_JIT_INPUT_FATBINARY))
        return type == CU_JIT_INPUT_PTX ? CUDA_ERROR_INVALID_PTX : CUDA_ERROR_INVALID_IMAGE;
    struct sim_image *image;
    CUresult r = sim_image_new(bytes, NULL, &image);
    if (!r)
        sim_image_drop(image);
    return r;
}

static CUresult add(CUlinkState handle, CUjitInputType type, const void *data, size_t size, unsigned count, CUjit_option *options,
                    void **values)
{
    struct CUlinkState_st *s;
    CUresult r = state_of(handle, &s);
    if (!r && (!data || !size || (unsigned)type >= CU_JIT_NUM_INPUT_TYPES || s->complete))
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        r = sim_jit_options(count, options, values);
    if (r)
        return r;
    if (s->data || type == CU_JIT_INPUT_OBJECT || type == CU_JIT_INPUT_LIBRARY || type == CU_JIT_INPUT_NVVM) {
        sim_complain("cuLink: simgpu has no linker; one cubin, fatbin or PTX text passes through, this is %s",
                     s->data ? "a second input" : "an object, a library or NVVM code");
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if ((r = check(type, (struct sim_bytes){data, size})))
        return r;
    char *copy = malloc(size + 1);
    if (!copy)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(copy, data, size);
    copy[size] = 0;
    s->data = copy;
    s->size = type == CU_JIT_INPUT_PTX ? strlen(copy) + 1 : size;
    return CUDA_SUCCESS;
}

static CUresult add_file(CUlinkState handle, CUjitInputType type, const char *path, unsigned count, CUjit_option *options, void **values)
{
    struct stat st;
    char *bytes = NULL;
    if (!path)
        return CUDA_ERROR_INVALID_VALUE;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return CUDA_ERROR_FILE_NOT_FOUND;
    CUresult r = CUDA_ERROR_INVALID_IMAGE;
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size > 0) {
        size_t n = 0, size = (size_t)st.st_size;
        bytes = malloc(size);
        for (ssize_t got; bytes && n < size && (got = read(fd, bytes + n, size - n)) > 0;)
            n += (size_t)got;
        r = bytes ? add(handle, type, bytes, n, count, options, values) : CUDA_ERROR_OUT_OF_MEMORY;
    }
    free(bytes);
    close(fd);
    return r;
}

SIM_API CUresult cuLinkCreate_v2(unsigned int numOptions, CUjit_option *options, void **optionValues, CUlinkState *stateOut)
{
    SIM_ENTRY();
    return create(numOptions, options, optionValues, stateOut);
}

SIM_API CUresult cuLinkCreate(unsigned int numOptions, CUjit_option *options, void **optionValues, CUlinkState *stateOut)
{
    SIM_ENTRY();
    return create(numOptions, options, optionValues, stateOut);
}

SIM_API CUresult cuLinkAddData_v2(CUlinkState state, CUjitInputType type, void *data, size_t size, const char *name,
                                  unsigned int numOptions, CUjit_option *options, void **optionValues)
{
    SIM_ENTRY();
    (void)name; /* for the log, which is empty */
    return add(state, type, data, size, numOptions, options, optionValues);
}

SIM_API CUresult cuLinkAddData(CUlinkState state, CUjitInputType type, void *data, size_t size, const char *name,
                               unsigned int numOptions, CUjit_option *options, void **optionValues)
{
    SIM_ENTRY();
    (void)name;
    return add(state, type, data, size, numOptions, options, optionValues);
}

SIM_API CUresult cuLinkAddFile_v2(CUlinkState state, CUjitInputType type, const char *path, unsigned int numOptions,
                                  CUjit_option *options, void **optionValues)
{
    SIM_ENTRY();
    return add_file(state, type, path, numOptions, options, optionValues);
}

SIM_API CUresult cuLinkAddFile(CUlinkState state, CUjitInputType type, const char *path, unsigned int numOptions,
                               CUjit_option *options, void **optionValues)
{
    SIM_ENTRY();
    return add_file(state, type, path, numOptions, options, optionValues);
}

SIM_API CUresult cuLinkComplete(CUlinkState state, void **cubinOut, size_t *sizeOut)
{
    SIM_ENTRY();
    struct CUlinkState_st *s;
    CUresult r = state_of(state, &s);
    if (r)
        return r;
    if (!cubinOut || !s->data)
        return CUDA_ERROR_INVALID_VALUE;
    s->complete = true;
    *cubinOut = s->data;
    if (sizeOut)
        *sizeOut = s->size;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuLinkDestroy(CUlinkState state)
{
    SIM_ENTRY();
    sim_take();
    struct CUlinkState_st *s = sim_object(SIM_LINK, (uintptr_t)state);
    if (s)
        sim_object_drop(SIM_LINK, (uintptr_t)s);
    sim_give();
    if (!s)
        return CUDA_ERROR_INVALID_HANDLE;
    free(s->data);
    free(s);
    return CUDA_SUCCESS;
}
