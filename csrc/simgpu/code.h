/* SPDX-License-Identifier: Apache-2.0 */
/* Device code in the simulated driver: what an image contains, and the handles that name it.
 * Included by elf.c, ptx.c, fatbin.c, kernels.c, code*.c and launch*.c.
 * Rules: image bytes are never trusted (every offset is checked against the image's end) and never kept: what outlives the
 * load is copied into the image's own memory. Handles are looked up in the table of live objects before anything behind
 * them is read.
 */
#ifndef SIM_CODE_H
#define SIM_CODE_H

#include "state.h"

#define SIMK_DRIVER
#include "include/simk.h"

/* ---- what is in an image ---- */

struct sim_bytes {
    const unsigned char *p;
    size_t n;
};

struct sim_param {
    uint32_t offset, size;
};

struct sim_code { /* one kernel of an image */
    const char *name;
    struct sim_param *params;
    unsigned param_count;
    size_t param_size; /* bytes of the parameter buffer */
    int registers, shared, local, constant; /* cuFuncGetAttribute: per thread, per block, per thread, bytes */
    int max_threads;                        /* of a block, from __launch_bounds__; SIM_MAX_THREADS without */
    const struct simk_kernel *_Atomic companion; /* NULL while unknown */
    atomic_bool said;                       /* that no companion holds it */
};

struct sim_variable { /* a __device__, __constant__ or __managed__ variable */
    const char *name;
    size_t size;
    const unsigned char *init; /* NULL: zero */
    bool managed;
};

struct sim_image {
    _Atomic unsigned refs;
    struct sim_code *codes;
    unsigned code_count, code_room;
    bool sorted; /* codes, by name */
    struct sim_variable *variables;
    unsigned variable_count, variable_room;
    int binary_version, ptx_version; /* 10 * major + minor */
    char *file;                      /* where it came from, for <file>.simk.so; NULL if unknown */
    struct sim_block *memory;        /* owns all of the above */
};

#define SIM_MAX_THREADS 1024
#define SIM_DEFAULT_SHARED (48 << 10)  /* bytes of shared memory per block without opting in */
#define SIM_MAX_SHARED (227 << 10)     /* with it; cuDeviceGetAttribute says the same */
#define SIM_MAX_CLUSTER_ANY 16 /* blocks, where a function allows sizes that not every device has */
#define SIM_MAX_CLUSTER 8 /* blocks, on every device that has clusters (CUDA C++ Programming Guide, "thread block clusters") */
#define SIM_MAX_PARAMS 4096u     /* parameters of one kernel; a sanity bound, above the driver's own */
#define SIM_MAX_VARIABLE (UINT64_C(1) << 40) /* bytes of one variable; a sanity bound: a machine's worth, and sums don't overflow */
#define SIM_WRAPPER_MAGIC 0x466243b1u        /* what nvcc puts in front of an embedded fatbin */
#define SIM_MAX_PARAM_SIZE 32764u /* bytes; cuda.h, CUDA 12.1 and later on Volta and later */

/* Memory that lives as long as the image; zeroed; NULL when there is none left. */
void *sim_image_alloc(struct sim_image *image, size_t bytes);
/* A NUL-terminated copy of n bytes. */
char *sim_image_string(struct sim_image *image, const void *text, size_t n);
/* Order the kernels by name: once, after the last was added. */
void sim_image_sort(struct sim_image *image);
/* Append a kernel or a variable with an already copied name; NULL when out of memory. */
struct sim_code *sim_image_add_code(struct sim_image *image, const char *name);
struct sim_variable *sim_image_add_variable(struct sim_image *image, const char *name);
/* NULL: none of that name. */
struct sim_code *sim_image_code(const struct sim_image *image, const char *name);
struct sim_variable *sim_image_variable(const struct sim_image *image, const char *name);

/* Parsers: fill `image`; CUDA_SUCCESS, CUDA_ERROR_INVALID_IMAGE, _INVALID_PTX, _NO_BINARY_FOR_GPU or _OUT_OF_MEMORY. */
CUresult sim_elf_parse(struct sim_bytes cubin, struct sim_image *image);
CUresult sim_ptx_parse(struct sim_bytes text, struct sim_image *image);
/* Whichever of them the bytes are, or the best entry of a fatbin. */
CUresult sim_image_parse(struct sim_bytes bytes, int capability, struct sim_image *image);
/* The entry of a fatbin that suits a device of compute capability `capability` (10 * major + minor). *owned: memory that holds
 * it when it was compressed, to be freed after use; else NULL. */
CUresult sim_fatbin_pick(struct sim_bytes fatbin, int capability, struct sim_bytes *entry, bool *is_ptx, void **owned);
/* `plain_size` bytes from a compressed entry, by malloc. NO_BINARY_FOR_GPU, with a line on stderr: the library for it is
 * missing; INVALID_IMAGE: corrupt. */
enum sim_packing { SIM_PACKED_ZSTD, SIM_PACKED_LZ4, SIM_PACKINGS };
CUresult sim_unpack(enum sim_packing how, struct sim_bytes packed, uint64_t plain_size, struct sim_bytes *out);

/* Bytes an image at `start` says that it has, from its first bytes; 0 when that is no ELF file or fatbin (text is PTX). */
size_t sim_elf_extent(struct sim_bytes head);
size_t sim_fatbin_extent(struct sim_bytes head);

/* From bytes of known length; `file`: where they came from, or NULL. The reference is the caller's, here and below. */
CUresult sim_image_new(struct sim_bytes bytes, const char *file, struct sim_image **out);
/* Load from memory of unknown length (what cuModuleLoadData gets) or from a file. */
CUresult sim_image_load(const void *start, struct sim_image **out);
CUresult sim_image_load_file(const char *path, struct sim_image **out);
void sim_image_hold(struct sim_image *image);
void sim_image_drop(struct sim_image *image);

/* ---- companions (kernels.c) ---- */

/* The kernel of that name in any companion: SIMGPU_KERNELS, <main executable>.simk.so, <image file>.simk.so. NULL: none. */
const struct simk_kernel *sim_companion_kernel(const char *name, const char *image_file);
const struct simk_global *sim_companion_global(const char *name, const char *image_file);

/* ---- handles ---- */

struct sim_instance_variable {
    CUdeviceptr address; /* 0 until the module is loaded */
    const struct simk_global *companion;
};

struct CUmod_st {
    _Atomic unsigned refs; /* the handle, and every queued launch */
    CUcontext context;
    struct sim_image *image;
    struct sim_instance_variable *variables; /* image->variable_count */
    bool mirrored;                           /* some variable has a companion: launches copy them in and out */
    struct CUfunc_st *functions;             /* image->code_count; a handle once it was asked for */
};

/* What can be set of a function (cuFuncSetAttribute, cuKernelSetAttribute). */
struct sim_settings {
    int max_dynamic_shared, carveout;
    int cluster[3]; /* required blocks of a cluster; all 0: none */
    int non_portable, policy;
};

struct CUfunc_st {
    struct CUmod_st *module;
    struct sim_code *code;
    CUkernel kernel; /* when it belongs to a library */
    struct sim_next_launch *next; /* what the entries of old have set (launch_legacy.c); NULL: nothing */
    struct sim_settings settings;
};

struct CUkern_st {
    struct CUlib_st *library;
    struct sim_code *code;
    struct sim_settings settings;
};

static inline struct sim_settings sim_settings_of(const struct sim_code *code)
{
    return (struct sim_settings){.max_dynamic_shared = SIM_DEFAULT_SHARED - code->shared, .carveout = -1};
}

/* A library's functions share the settings of their CUkernel. */
static inline struct sim_settings *sim_settings(struct CUfunc_st *f)
{
    return f->kernel ? &f->kernel->settings : &f->settings;
}

struct sim_library_module {
    struct sim_library_module *next;
    CUcontext context;
    struct CUmod_st *module;
};

struct CUlib_st {
    struct sim_image *image;
    struct CUkern_st *kernels;
    struct sim_library_module *modules; /* one per context that used it; [sim_lock] */
};

/* Make and end the module of `image` in `context`; takes a reference of its own. */
CUresult sim_module_make(struct sim_image *image, CUcontext context, struct CUmod_st **out);
void sim_module_end(struct CUmod_st *module);
void sim_module_hold(struct CUmod_st *module);
void sim_module_drop(struct CUmod_st *module);
CUresult sim_module_function(struct CUmod_st *module, struct sim_code *code, CUfunction *out);
/* The module of `library` in a context, loaded at its first use. */
CUresult sim_library_module(CUlibrary library, CUcontext context, struct CUmod_st **out);

CUresult sim_module_global(struct CUmod_st *module, const char *name, CUdeviceptr *dptr, size_t *bytes);
/* Answers to cuFuncGetParamInfo, cuFuncGetAttribute and their cuKernel twins. */
CUresult sim_code_param(const struct sim_code *code, size_t index, size_t *offset, size_t *size);
CUresult sim_code_attribute(const struct sim_image *image, const struct sim_code *code, const struct sim_settings *settings,
                            CUfunction_attribute attribute, int *value);
CUresult sim_code_set_attribute(const struct sim_code *code, struct sim_settings *settings, CUfunction_attribute attribute, int value);
/* INVALID_VALUE for options that do not exist or have no values. There is no compiler: the logs asked for are empty. */
CUresult sim_jit_options(unsigned count, const CUjit_option *options, void **values);

/* ---- the clock of launches (clock.c) ---- */

enum { SIM_IN_VRAM, SIM_IN_RAM, SIM_NOWHERE, SIM_PLACES = 16 };
struct sim_place { /* a range of addresses and the tier that a launch found it in */
    uint64_t base, end;
    int tier;
};
struct sim_account {
    CUcontext context;
    uint64_t id;
    uint64_t bytes[SIM_NOWHERE + 1];     /* touched, per tier; the last: memory that is not the driver's */
    struct sim_place places[SIM_PLACES]; /* the last ones seen, direct-mapped by address */
};
void sim_account_begin(struct sim_account *a, CUcontext context); /* this thread's launch starts */
void sim_account_end(struct sim_account *a);   /* charge its simulated time to the running task */
CUcontext sim_running_context(void);           /* of the kernel that this thread runs; NULL: none */
void sim_condition_set(unsigned long long handle, unsigned value); /* told by companions (graph_condition.c) */
void sim_touch(const void *address, size_t bytes); /* told by accounting companions */

/* What a launch or an attribute query gets: a CUfunction, or a CUkernel cast to one (cuda.h, cuLaunchKernel), which means
 * its function in the current context. CUDA_ERROR_INVALID_HANDLE for anything else. */
CUresult sim_function_of(CUfunction handle, struct CUfunc_st **out);
/* The same with its module held (sim_module_drop), and with the context in which a CUkernel's function is looked for. */
CUresult sim_function_hold(CUfunction handle, CUcontext context, struct CUfunc_st **out);

/* ---- what a launch may ask for (code_occupancy.c) */

/* Threads that a block of it may have at most: the launch bounds, and what the registers allow. */
int sim_code_max_threads(const struct sim_code *code);
/* Blocks of that size that one multiprocessor runs at once; 0: none. `dynamic` in bytes. */
int sim_active_blocks(struct CUfunc_st *f, int threads, size_t dynamic);

#endif
