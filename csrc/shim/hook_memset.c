/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of the memsets. Tier boundaries lie at multiples of 2 MiB from an aligned base, so no element of 1, 2 or 4 bytes
 * ever crosses one. */
#include "shim/hook.h"

#define SET_1D(symbol, type, stream_param, stream_arg, pin, finish)                                                \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUdeviceptr dstDevice, type value, size_t N stream_param)                 \
    {                                                                                                              \
        SPILL_GATED(symbol);                                                                                       \
        pin;                                                                                                       \
        /* A product that overflows is the driver's to refuse. */                                                  \
        if (N > SIZE_MAX / sizeof(type) || spill_copies_pass())                                                    \
            return spill_driver()->symbol(dstDevice, value, N stream_arg);                                         \
        SPILL_PIECES_THEN(dstDevice, 0, N * sizeof(type), finish,                                                  \
                          spill_driver()->symbol(dstDevice + split.at, value, split.bytes / sizeof(type) stream_arg)); \
    }

/* Rows of `width` elements: as many whole rows at once as lie in one tier, a row that crosses in pieces. */
#define SET_2D(symbol, type, stream_param, stream_arg, pin, per_thread, sync_form)                                  \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUdeviceptr dstDevice, size_t dstPitch, type value, size_t Width,          \
                                         size_t Height stream_param)                                                \
    {                                                                                                               \
        SPILL_GATED(symbol);                                                                                        \
        pin;                                                                                                        \
        size_t row = Width * sizeof(type), span, rows;                                                              \
        if (Height == 1)                                                                                            \
            dstPitch = row; /* unused then */                                                                       \
        if (spill_copies_pass() || !Height || !Width || Width > SIZE_MAX / sizeof(type) || dstPitch < row ||        \
            __builtin_mul_overflow(dstPitch, Height, &span))                                                        \
            return spill_driver()->symbol(dstDevice, dstPitch, value, Width, Height stream_arg);                    \
        CUresult error = spill_range_error(dstDevice, span - dstPitch + row);                                       \
        if (error != CUDA_SUCCESS)                                                                                  \
            return error;                                                                                           \
        for (size_t y = 0; y < Height; y += rows) {                                                                 \
            CUdeviceptr at = dstDevice + y * dstPitch;                                                              \
            uint64_t run = spill_run(at, (Height - y - 1) * dstPitch + row);                                        \
            rows = run >= row ? (run - row) / dstPitch + 1 : 1;                                                     \
            for (size_t x = 0; x < row;) {                                                                          \
                size_t n = run >= row ? row : (size_t)spill_run(at + x, row - x);                                   \
                CUresult r = spill_driver()->symbol(at + x, dstPitch, value, n / sizeof(type), rows stream_arg);    \
                if (r != CUDA_SUCCESS)                                                                              \
                    return r;                                                                                       \
                x += n;                                                                                             \
            }                                                                                                       \
        }                                                                                                           \
        return sync_form && spill_synchronous(dstDevice, 0) ? spill_sync_memops(per_thread) : CUDA_SUCCESS;         \
    }

#define COMMA ,
#define PIN(ptsz) spill_pin_captured(hStream, ptsz, dstDevice, 0)
#define BOTH(bits, type)                                                                                              \
    SET_1D(cuMemsetD##bits##_v2, type, , , , split.sync ? spill_sync_memops(false) : CUDA_SUCCESS)                    \
    SET_1D(cuMemsetD##bits##_v2_ptds, type, , , , split.sync ? spill_sync_memops(true) : CUDA_SUCCESS)                \
    SET_1D(cuMemsetD##bits##Async, type, COMMA CUstream hStream, COMMA hStream, PIN(false), CUDA_SUCCESS)             \
    SET_1D(cuMemsetD##bits##Async_ptsz, type, COMMA CUstream hStream, COMMA hStream, PIN(true), CUDA_SUCCESS)         \
    SET_2D(cuMemsetD2D##bits##_v2, type, , , , false, true)                                                           \
    SET_2D(cuMemsetD2D##bits##_v2_ptds, type, , , , true, true)                                                       \
    SET_2D(cuMemsetD2D##bits##Async, type, COMMA CUstream hStream, COMMA hStream, PIN(false), false, false)           \
    SET_2D(cuMemsetD2D##bits##Async_ptsz, type, COMMA CUstream hStream, COMMA hStream, PIN(true), true, false)

BOTH(8, unsigned char)
BOTH(16, unsigned short)
BOTH(32, unsigned int)
