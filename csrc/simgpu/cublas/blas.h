/* SPDX-License-Identifier: Apache-2.0 */
/* Stand-ins for libcublas and libcublasLt, for programs that need the libraries to load and to answer, not to compute.
 * Included by every file of this folder and by the generated tables.
 * Rules: an entry that would compute says success and leaves its outputs as they are, once on stderr by name; one that would
 * move data between host and device fails; what is asked back after being set (streams, modes, pointers) is kept.
 * NVIDIA's headers are not needed: handles are opaque, modes are ints, and the few numbers used here are in their ABI.
 */
#ifndef BLAS_H
#define BLAS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BLAS_API __attribute__((visibility("default")))

/* cublasStatus_t */
enum { BLAS_SUCCESS = 0, BLAS_NOT_INITIALIZED = 1, BLAS_ALLOC_FAILED = 3, BLAS_INVALID_VALUE = 7, BLAS_NOT_SUPPORTED = 15 };

/* Notes the call; BLAS_SUCCESS. */
int blas_skip(const char *name);
/* Notes the call, names it as not implemented; BLAS_NOT_SUPPORTED. */
int blas_refuse(const char *name);
/* `name` and text of a status, as the reference lists them. */
const char *blas_status_name(int status);
const char *blas_status_text(int status);
/* 10000 * major + 100 * minor, and cublasGetProperty's answer for libraryPropertyType 0 major, 1 minor, 2 patch. */
int blas_version(void);
int blas_property(int which, int *value);

#endif
