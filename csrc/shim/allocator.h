/* SPDX-License-Identifier: Apache-2.0 */
/* The allocator: what libspillshim.so exports beside its hooks, for programs that ask for it by name (dlopen, dlsym). Called by PyTorch
 * (torch.cuda.memory.CUDAPluggableAllocator), by spillshim/allocators for CuPy and RMM, and by any program in C. The tests take the
 * list of names from here.
 *
 * It is the engine of the hooks, and the same one where the library is preloaded. Where it is not, nothing of the program is
 * intercepted: only what is allocated here is managed, its placement is that of its allocation (nothing is moved, for launches are not
 * seen), and reports and pointer queries are the driver's own.
 *
 * Rules
 *   - open it with RTLD_LOCAL: its hooks would otherwise stand for the driver's functions in libraries that are loaded later, but not
 *     in those that are there already;
 *   - what was allocated here is freed here, before its context ends. A free waits for the work of the context, as cuMemFree does;
 *   - a thread without a context gets the device's primary one for the length of the call, as from the runtime's cudaMalloc. */
#ifndef SPILL_ALLOCATOR_H
#define SPILL_ALLOCATOR_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPILL_API __attribute__((visibility("default")))

/* `size` bytes for `device` (its ordinal), as PyTorch asks for them; NULL where there are none. The stream (a cudaStream_t) is not
 * looked at: the memory can be used at once. */
SPILL_API void *spill_torch_alloc(ssize_t size, int device, void *stream);
SPILL_API void spill_torch_free(void *p, ssize_t size, int device, void *stream);

/* The same with the driver's answer (CUresult); *p is set where that is 0. */
SPILL_API int spill_memory_alloc(size_t size, int device, uint64_t *p);
SPILL_API int spill_memory_free(uint64_t p, int device);

/* Of this thread's allocations from now on: 1 RAM, as long as there is any; 2 VRAM, else out-of-memory, and never moved out of it;
 * 0 as usual. Returns what held before, -1 for an unknown hint. */
SPILL_API int spill_memory_hint(int hint);

/* What lies in [p, p + bytes) is not needed soon: it goes to RAM now and stays there, as far as moves are possible. Whole pieces only
 * (chunks), waiting a quarter of a second for the GPU at most. Returns how many of the bytes lie in RAM. */
SPILL_API uint64_t spill_memory_cold(uint64_t p, uint64_t bytes);

/* Bytes of [p, p + bytes) in RAM: nothing is moved. */
SPILL_API uint64_t spill_memory_in_ram(uint64_t p, uint64_t bytes);

/* 1 where the program's own calls pass the hooks too (the library is preloaded), else 0. */
SPILL_API int spill_memory_hooked(void);

#ifdef __cplusplus
}
#endif
#endif
