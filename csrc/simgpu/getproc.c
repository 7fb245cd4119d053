/* SPDX-License-Identifier: Apache-2.0 */
/* cuGetProcAddress, both ABIs: from (name, version, flags) to an entry. Called by runtimes and by programs.
 * Rules: the rows come from the PFN_* types of the headers (gen_stubs.py), sorted by name, then version; the newest row
 * not above the asked version and not above the driver's own wins. The per-thread variant, where asked for and there is one.
 */
#include "doubt.h"
#include "state.h"

#include <string.h>

struct row {
    const char *name;
    int version;
    bool per_thread;
    void *entry;
};

#define SIM_ROW_DECLARE
#include "getproc_rows.inc"
#undef SIM_ROW_DECLARE
static const struct row rows[] = {
#include "getproc_rows.inc"
};

#define ROWS (sizeof rows / sizeof *rows)

/* First row of the name, or ROWS. */
static size_t first_of(const char *name)
{
    size_t lo = 0, hi = ROWS;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (strcmp(rows[mid].name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < ROWS && !strcmp(rows[lo].name, name) ? lo : ROWS;
}

static CUresult look_up(const char *symbol, void **pfn, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *status)
{
    const cuuint64_t known = CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
    if (!symbol || !pfn || (flags & ~known) || flags == known)
        return CUDA_ERROR_INVALID_VALUE;
    *pfn = NULL;
    *status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    int driver = sim_config()->driver;
    if (version > driver)
        return CUDA_ERROR_INVALID_VALUE;
    if (!*symbol && sim_doubt(SIM_DOUBT_EMPTY_NAME))
        return CUDA_ERROR_INVALID_VALUE;
    const bool later = sim_doubt(SIM_DOUBT_PER_THREAD_ABI);
    const struct row *plain = NULL, *thread = NULL;
    bool known_name = false;
    for (size_t i = first_of(symbol); i < ROWS && !strcmp(rows[i].name, symbol); i++) {
        if (rows[i].version > driver)
            continue;
        known_name = true;
        if (rows[i].version > version && !(later && plain && rows[i].per_thread && !thread))
            continue;
        if (rows[i].per_thread)
            thread = &rows[i];
        else
            plain = &rows[i];
    }
    const struct row *r = flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM && thread ? thread : plain;
    if (r) {
        *pfn = r->entry;
        *status = CU_GET_PROC_ADDRESS_SUCCESS;
    } else if (known_name) {
        *status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
    }
    return CUDA_SUCCESS;
}

SIM_API CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                                     CUdriverProcAddressQueryResult *symbolStatus)
{
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    CUresult r = look_up(symbol, pfn, cudaVersion, flags, &status);
    if (symbolStatus)
        *symbolStatus = status;
    return r;
}

SIM_API CUresult cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags)
{
    CUdriverProcAddressQueryResult status;
    CUresult r = look_up(symbol, pfn, cudaVersion, flags, &status);
    return r ? r : *pfn ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND; /* the old ABI has no status */
}
