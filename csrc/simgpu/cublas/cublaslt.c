/* SPDX-License-Identifier: Apache-2.0 */
/* The entries of libcublasLt that have state: handles, descriptors (their attributes are kept by nobody), the heuristic.
 * The heuristic answers with one algorithm, because a program that gets none gives up before the matrix product.
 */
#include "blas.h"
#include "calls.h"

#include <stdlib.h>
#include <string.h>

/* Descriptors that the program makes room for itself are 256 bytes or less in cublasLt.h. */
enum { DESCRIPTOR_BYTES = 256 };

static int create(void **out, const char *name)
{
    sim_called(name);
    if (!out)
        return BLAS_INVALID_VALUE;
    *out = calloc(1, DESCRIPTOR_BYTES);
    return *out ? BLAS_SUCCESS : BLAS_ALLOC_FAILED;
}

static int destroy(void *what, const char *name)
{
    sim_called(name);
    free(what);
    return BLAS_SUCCESS;
}

/* A constructor's further arguments describe a product that is never formed; C's calling convention lets us not name them. */
#define OBJECT(create_name, destroy_name) \
    BLAS_API int create_name(void **out); \
    BLAS_API int create_name(void **out) { return create(out, #create_name); } \
    BLAS_API int destroy_name(void *what); \
    BLAS_API int destroy_name(void *what) { return destroy(what, #destroy_name); }

OBJECT(cublasLtCreate, cublasLtDestroy)
OBJECT(cublasLtMatmulDescCreate, cublasLtMatmulDescDestroy)
OBJECT(cublasLtMatrixLayoutCreate, cublasLtMatrixLayoutDestroy)
OBJECT(cublasLtMatmulPreferenceCreate, cublasLtMatmulPreferenceDestroy)
OBJECT(cublasLtMatrixTransformDescCreate, cublasLtMatrixTransformDescDestroy)

/* cublasLtMatmulHeuristicResult_t */
struct result {
    uint64_t algo[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
_Static_assert(sizeof(struct result) == 96, "the layout of cublasLt.h");

BLAS_API int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                            int requested, struct result *results, int *returned);
BLAS_API int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                            int requested, struct result *results, int *returned)
{
    (void)handle, (void)operation, (void)a, (void)b, (void)c, (void)d, (void)preference;
    sim_called("cublasLtMatmulAlgoGetHeuristic");
    if (requested < 1 || !results || !returned)
        return BLAS_INVALID_VALUE;
    memset(results, 0, sizeof *results);
    *returned = 1;
    return BLAS_SUCCESS;
}

BLAS_API size_t cublasLtGetVersion(void);
BLAS_API size_t cublasLtGetVersion(void)
{
    sim_called("cublasLtGetVersion");
    return (size_t)blas_version();
}

BLAS_API int cublasLtGetProperty(int which, int *value);
BLAS_API int cublasLtGetProperty(int which, int *value)
{
    sim_called("cublasLtGetProperty");
    return blas_property(which, value);
}

BLAS_API const char *cublasLtGetStatusName(int status);
BLAS_API const char *cublasLtGetStatusName(int status)
{
    sim_called("cublasLtGetStatusName");
    return blas_status_name(status);
}

BLAS_API const char *cublasLtGetStatusString(int status);
BLAS_API const char *cublasLtGetStatusString(int status)
{
    sim_called("cublasLtGetStatusString");
    return blas_status_text(status);
}
