/* SPDX-License-Identifier: Apache-2.0 */
/* What ollama_runner.c calls of ollama_backend.c, by name. Each returns 0, or the CUDA error (2: out of memory). */
#pragma once
#include <stddef.h>

struct backend_device {
    char name[256], pci[32];
    size_t free, total;
};

int backend_init(void);
int backend_device(struct backend_device *out);
int backend_load(size_t weights_mib, size_t kv_mib, size_t compute_mib);
int backend_token(void); /* one decoded token, its bytes compared */
int backend_free(void);
