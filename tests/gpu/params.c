/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment params: what a launch hook can learn about a kernel's parameters. Layout queries on a CUfunction, on a CUkernel
 * and on the one passed as the other; the two ways to hand over parameters; a struct passed by value.
 * Decides: which query the hook makes for which handle, and whether every 8-byte word of a parameter must be looked at.
 * gpu-check: groups=facts order=110 expect=3 limit=60
 * Rules: handles of the wrong kind are given to the driver in rows of their own, which may die. */
#include "gpu.h"
#include "params.h"

static const struct {
    size_t offset, size;
} layout[] = { { 0, 1 }, { 8, 24 }, { 32, 2 }, { 40, 8 }, { 48, 4 } };
enum { COUNT = sizeof layout / sizeof layout[0] };

typedef CUresult (*layout_query)(void *handle, size_t index, size_t *offset, size_t *size);

static layout_query func_param, kernel_param;
static CUresult (*func_count)(CUfunction, size_t *);
static CUresult (*kernel_function)(CUfunction *, CUkernel);
static CUfunction function;
static CUkernel kernel;

static void declare(void)
{
    const char *query = "which query the launch hook makes, and for which handle";
    xp_row("params", "params.function", "cuFuncGetParamInfo of a CUfunction: offsets and sizes of five parameters", "bool", "code.param_info", query);
    xp_row("params", "params.past_the_end", "cuFuncGetParamInfo past the last parameter: INVALID_VALUE (how they are counted before 13.2)", "code",
           "code.param_info_end", query);
    xp_row("params", "params.struct_by_value", "a struct of 24 bytes with two pointers is one parameter", "bool", "code.param_info",
           "whether every 8-byte word is looked at");
    xp_row("params", "params.count", "cuFuncGetParamCount (13.2 and newer)", "count", NULL, query);
    xp_row("params", "params.kernel", "cuKernelGetParamInfo of a CUkernel", "bool", "code.param_info", query);
    xp_row("params", "params.function_of_kernel", "cuFuncGetParamInfo of what cuKernelGetFunction gives", "bool", "code.param_info", query);
    xp_row("params", "params.launch_array", "a launch with an array of pointers to parameters", "bool", "launch.parameters_copied", query);
    xp_row("params", "params.launch_extra", "a launch with a packed buffer (extra)", "bool", "launch.extra_buffer", "whether the hook reads packed buffers");
    xp_row("params", "params.launch_kernel", "a launch of a CUkernel cast to CUfunction", "bool", "launch.parameters_copied", query);
    xp_row("params", "params.cast_func_query", "cuFuncGetParamInfo of a CUkernel cast to CUfunction", "code", NULL, query);
    xp_row_may_die(XP_MEASURED);
    xp_row("params", "params.cast_kernel_query", "cuKernelGetParamInfo of a CUfunction cast to CUkernel", "code", NULL, query);
    xp_row_may_die(XP_MEASURED);
}

static bool setup(void)
{
    CUmodule m;
    CUlibrary lib;
    char path[PATH_MAX + 16] = "";
    CUresult (*load)(CUlibrary *, const char *, CUjit_option *, void **, unsigned, CUlibraryOption *, void **, unsigned);
    CUresult (*get)(CUkernel *, CUlibrary, const char *);
    if (!xp_context() || !xp_module("params", &m) || !XP(cuModuleGetFunction(&function, m, "par_mixed")))
        return false;
    *(void **)&func_param = dlsym(gpu.library, "cuFuncGetParamInfo");
    *(void **)&kernel_param = dlsym(gpu.library, "cuKernelGetParamInfo");
    *(void **)&func_count = dlsym(gpu.library, "cuFuncGetParamCount");
    *(void **)&kernel_function = dlsym(gpu.library, "cuKernelGetFunction");
    *(void **)&load = dlsym(gpu.library, "cuLibraryLoadFromFile");
    *(void **)&get = dlsym(gpu.library, "cuLibraryGetKernel");
    if (readlink("/proc/self/exe", path, PATH_MAX - 1) < 0)
        return true;
    strcpy(strrchr(path, '/'), "/params.ptx");
    if (!load || !get || load(&lib, path, NULL, NULL, 0, NULL, NULL, 0) || get(&kernel, lib, "par_mixed"))
        kernel = NULL;
    return true;
}

/* The whole layout as one handle tells it. */
static void layout_row(const char *row, layout_query query, void *handle, const char *missing)
{
    char told[200] = "";
    bool right = true;
    if (!xp_begin(row, 10))
        return;
    if (!query || !handle) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "this driver has no %s", missing);
        return;
    }
    for (size_t i = 0; i < COUNT; i++) {
        size_t offset = 0, size = 0;
        CUresult r = query(handle, i, &offset, &size);
        if (r) {
            xp_say(row, xp_verdict(row, false), 0, NULL, "parameter %zu: %s", i, xp_error(r));
            return;
        }
        right &= offset == layout[i].offset && size == layout[i].size;
        snprintf(told + strlen(told), sizeof told - strlen(told), "%s%zu+%zu", i ? " " : "", offset, size);
    }
    xp_say(row, xp_verdict(row, right), right, NULL, "%s%s", told, right ? "" : ": not what the compiler's layout is");
}

static void code_row(const char *row, layout_query query, void *handle, size_t index, CUresult believed)
{
    size_t offset = 0, size = 0;
    if (!xp_begin(row, 10))
        return;
    if (!query || !handle) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "this driver has no such query");
        return;
    }
    CUresult r = query(handle, index, &offset, &size);
    xp_say(row, xp_verdict(row, r == believed), r, NULL, r ? "%s" : "%s, offset %zu, size %zu", xp_error(r), offset, size);
}

/* Launch par_mixed and look at what it computed. */
static void launch_row(const char *row, CUfunction f, bool packed)
{
    struct __attribute__((packed)) { /* with the padding that the layout above has */
        unsigned char flag, pad0[7];
        struct pair_of_pointers two;
        unsigned short small;
        unsigned char pad1[6];
        CUdeviceptr out;
        int last;
    } p = { 3, { 0 }, { 0 }, 500, { 0 }, 0, 70000 };
    uint64_t words[3] = { 1000000, 20000000, 0 }, right = 1000000 + 20000000 + 4000 + 3 + 500 + 70000;
    CUdeviceptr card;
    size_t size = sizeof p;
    if (!xp_begin(row, 20))
        return;
    if (!f) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "this driver has no CUkernel");
        return;
    }
    if (!XP(cuMemAlloc_v2(&card, sizeof words)) || !XP(cuMemcpyHtoD_v2(card, words, sizeof words))) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
        return;
    }
    p.two = (struct pair_of_pointers){ (void *)(uintptr_t)card, (void *)(uintptr_t)(card + 8), 4000 };
    p.out = card + 16;
    struct pair_of_pointers two = p.two;
    unsigned char flag = p.flag;
    unsigned short small = p.small;
    CUdeviceptr out = p.out;
    int last = p.last;
    void *args[] = { &flag, &two, &small, &out, &last };
    void *extra[] = { CU_LAUNCH_PARAM_BUFFER_POINTER, &p, CU_LAUNCH_PARAM_BUFFER_SIZE, &size, CU_LAUNCH_PARAM_END };
    CUresult r = cu.cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, NULL, packed ? NULL : args, packed ? extra : NULL);
    memset(&p, 0xff, sizeof p); /* the driver must not look again */
    flag = 0;
    out = 0;
    bool ok = !r && XP(cuCtxSynchronize()) && XP(cuMemcpyDtoH_v2(words, card, sizeof words));
    if (r || !ok)
        xp_say(row, xp_verdict(row, false), 0, NULL, "%s", r ? xp_error(r) : xp_failure);
    else
        xp_say(row, xp_verdict(row, words[2] == right), words[2] == right, NULL, "the kernel computed %llu, right is %llu", (unsigned long long)words[2],
               (unsigned long long)right);
    if (!xp_alive())
        xp_again();
    cu.cuMemFree_v2(card);
}

static void params(void)
{
    CUfunction of_kernel = NULL;
    if (!setup()) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    layout_row("params.function", func_param, function, "cuFuncGetParamInfo (12.4 and newer)");
    code_row("params.past_the_end", func_param, function, COUNT, CUDA_ERROR_INVALID_VALUE);
    if (xp_begin("params.struct_by_value", 10)) {
        size_t offset, size = 0;
        CUresult r = func_param ? func_param(function, 1, &offset, &size) : CUDA_ERROR_NOT_FOUND;
        if (r)
            xp_say("params.struct_by_value", XP_UNANSWERED, XP_NAN, NULL, "no cuFuncGetParamInfo here (%s)", xp_error(r));
        else
            xp_say("params.struct_by_value", xp_verdict("params.struct_by_value", size == 24), size == 24, NULL, "one parameter of %zu bytes", size);
    }
    if (xp_begin("params.count", 10)) {
        size_t n = 0;
        CUresult r = func_count ? func_count(function, &n) : CUDA_ERROR_NOT_FOUND;
        if (!func_count) /* an answer: this driver is older, count by asking to the end */
            xp_say("params.count", XP_MEASURED, XP_NAN, NULL, "this driver has no cuFuncGetParamCount");
        else
            xp_say("params.count", XP_MEASURED, r ? XP_NAN : (double)n, NULL, r ? "%s" : "%s, %zu", xp_error(r), n);
    }
    layout_row("params.kernel", kernel_param, kernel, "CUkernel or cuKernelGetParamInfo (12.4 and newer)");
    if (kernel && kernel_function && kernel_function(&of_kernel, kernel))
        of_kernel = NULL;
    layout_row("params.function_of_kernel", func_param, of_kernel, "cuKernelGetFunction or cuFuncGetParamInfo");
    launch_row("params.launch_array", function, false);
    launch_row("params.launch_extra", function, true);
    launch_row("params.launch_kernel", (CUfunction)kernel, false);
    code_row("params.cast_func_query", func_param, kernel, 1, CUDA_SUCCESS);
    code_row("params.cast_kernel_query", kernel_param, function, 1, CUDA_SUCCESS);
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = { { "params", params, 40 } };
    return xp_main(argc, argv, declare, cases, 1);
}
