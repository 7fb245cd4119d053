/* SPDX-License-Identifier: Apache-2.0 */
/* What both libraries share: the notes about calls, versions, the names of statuses. Called by cublas.c, cublaslt.c and the
 * generated entries. BLAS_MAJOR comes from the build: 12 or 13.
 */
#include "blas.h"
#include "calls.h"

int blas_skip(const char *name)
{
    sim_called(name);
    sim_say_once(name, "does no arithmetic here: its outputs stay as they were");
    return BLAS_SUCCESS;
}

int blas_refuse(const char *name)
{
    sim_stub_called(name);
    return BLAS_NOT_SUPPORTED;
}

static const struct status {
    int number;
    const char *name, *text;
} statuses[] = {
    {0, "CUBLAS_STATUS_SUCCESS", "success"},
    {1, "CUBLAS_STATUS_NOT_INITIALIZED", "the library was not initialized"},
    {3, "CUBLAS_STATUS_ALLOC_FAILED", "the resource allocation failed"},
    {7, "CUBLAS_STATUS_INVALID_VALUE", "an invalid value was used as an argument"},
    {8, "CUBLAS_STATUS_ARCH_MISMATCH", "an absent device architectural feature is required"},
    {11, "CUBLAS_STATUS_MAPPING_ERROR", "an access to GPU memory space failed"},
    {13, "CUBLAS_STATUS_EXECUTION_FAILED", "the GPU program failed to execute"},
    {14, "CUBLAS_STATUS_INTERNAL_ERROR", "an internal operation failed"},
    {15, "CUBLAS_STATUS_NOT_SUPPORTED", "the requested functionality is not supported"},
    {16, "CUBLAS_STATUS_LICENSE_ERROR", "the requested functionality requires a license"},
};

static const struct status *status(int number)
{
    static const struct status unknown = {-1, "CUBLAS_STATUS_UNKNOWN", "unknown status"};
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++)
        if (statuses[i].number == number)
            return &statuses[i];
    return &unknown;
}

const char *blas_status_name(int number)
{
    return status(number)->name;
}

const char *blas_status_text(int number)
{
    return status(number)->text;
}

/* The versions that the tables of entries were read from. */
#define BLAS_MINOR (BLAS_MAJOR == 12 ? 9 : 10)

int blas_version(void)
{
    return BLAS_MAJOR * 10000 + BLAS_MINOR * 100;
}

int blas_property(int which, int *value)
{
    if (!value || which < 0 || which > 2)
        return BLAS_INVALID_VALUE;
    *value = which == 0 ? BLAS_MAJOR : which == 1 ? BLAS_MINOR : 0;
    return BLAS_SUCCESS;
}
