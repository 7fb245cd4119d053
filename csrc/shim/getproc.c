/* SPDX-License-Identifier: Apache-2.0 */
/* The hooks cuGetProcAddress (4 arguments, CUDA 11.3) and cuGetProcAddress_v2 (5 arguments, 12.0): the way by which every
 * CUDA runtime gets every driver entry. Called by the program; hooks.def hands them out as any other hook.
 * Rules: the driver is asked first and its refusals, its symbolStatus and what it gives for names that aren't hooked stay as
 * they are. cuGetExportTable is not hooked: NVIDIA's runtime rejects a copied table.
 *
 * One name can stand for several functions (cuCtxSynchronize has another signature since 13.0), and which one the driver
 * gives depends on the requested version, on the flags and on the driver's own version. So a row is chosen by what the
 * driver gives, not by what was requested: it fits when the driver gives the same function for the row's own version and
 * flags. Rows are tried from the oldest to the newest, because a driver older than a row answers it with its newest known.
 * A function that no row stands for (one from a future release) is never captured. */
#include "shim/config.h"
#include "shim/driver.h"
#include "shim/elfwalk.h"
#include "shim/log.h"
#include "shim/resolve.h"
#include "shim/testbreak.h"

#define EXPORTED __attribute__((visibility("default")))

/* Ask the driver through the entry of the ABI that it has. */
static void *ask(const char *name, int version, cuuint64_t flags)
{
    const struct spill_driver *d = spill_driver();
    void *function = NULL;
    CUresult r = d->cuGetProcAddress_v2 ? d->cuGetProcAddress_v2(name, &function, version, flags, NULL)
        : d->cuGetProcAddress           ? d->cuGetProcAddress(name, &function, version, flags)
                                        : CUDA_ERROR_NOT_FOUND;
    return r == CUDA_SUCCESS ? function : NULL;
}

static bool fits(const struct spill_hook *row, const char *name, const void *function)
{
    /* An entry that isn't exported is one that the hook couldn't call. */
    return ask(name, row->version, (cuuint64_t)row->flags) == function && spill_real_symbol(SPILL_LIB_CUDA, row->symbol);
}

/* The oldest row of `name` with these flags that stands for `function`, or NULL. */
static const struct spill_hook *row_of(const char *name, int flags, const void *function)
{
    const struct spill_hook *best = NULL;
    for (unsigned i = 0; i < spill_hook_rows; i++) {
        const struct spill_hook *row = &spill_hooks[i];
        if (!row->name || row->flags != flags || !spill_str_equal(row->name, name))
            continue;
        if (!SPILL_FIX(row_version)) { /* what not to do: prefer the _v2 */
            best = !best || row->version > best->version ? row : best;
            continue;
        }
        if ((!best || row->version < best->version) && (!SPILL_FIX(row_function) || fits(row, name, function)))
            best = row;
    }
    return best;
}

/* The row that stands for what the driver answered, or NULL. */
static const struct spill_hook *row_for(const char *name, const void *function, cuuint64_t flags)
{
    const struct spill_hook *row = NULL;
    if ((flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) && SPILL_FIX(row_flags))
        row = row_of(name, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, function);
    /* A function without a stream argument is the same with either flag. */
    return row ? row : row_of(name, CU_GET_PROC_ADDRESS_DEFAULT, function);
}

/* Put our hook into *pfn where the driver's answer is a function that we hook. */
static void substitute(const char *name, void **pfn, int version, cuuint64_t flags, const void *caller)
{
    if (!name || !*name || !pfn || !*pfn || spill_config()->disable)
        return;
    const struct spill_hook *row = row_for(name, *pfn, flags);
    spill_log(SPILL_LOG_DEBUG, "cuGetProcAddress name=%s version=%d flags=%llu hook=%s", name, version,
              (unsigned long long)flags, row ? row->symbol : "-");
    if (!row)
        return;
    spill_path_handed(row, SPILL_PATH_GETPROC, caller);
    *pfn = row->function;
}

EXPORTED CUresult CUDAAPI cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags)
{
    const struct spill_driver *d = spill_driver();
    if (!d->cuGetProcAddress)
        return SPILL_MISSING;
    if (!SPILL_FIX(empty_name) && !(symbol && *symbol))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = d->cuGetProcAddress(symbol, pfn, cudaVersion, flags);
    if (r == CUDA_SUCCESS)
        substitute(symbol, pfn, cudaVersion, flags, __builtin_return_address(0));
    return r;
}

EXPORTED CUresult CUDAAPI cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                                              CUdriverProcAddressQueryResult *symbolStatus)
{
    const struct spill_driver *d = spill_driver();
    if (!d->cuGetProcAddress_v2)
        return SPILL_MISSING;
    if (!SPILL_FIX(empty_name) && !(symbol && *symbol))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = d->cuGetProcAddress_v2(symbol, pfn, cudaVersion, flags, symbolStatus);
    if (r == CUDA_SUCCESS)
        substitute(symbol, pfn, cudaVersion, flags, __builtin_return_address(0));
    return r;
}
