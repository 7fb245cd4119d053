/* SPDX-License-Identifier: Apache-2.0 */
/* A program that still uses CUDA while it ends: in exit handlers registered before CUDA was used (they run after those of the
 * library and of the driver) and after, in a destructor, and, with the argument "threads", in threads that nobody stops.
 * Prints a line "WHERE RESULT" for each free that it made so. */
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MIB = 1 << 20 };

static CUdeviceptr early, late, last;
static CUcontext ctx;

static CUdeviceptr get(size_t bytes)
{
    CUdeviceptr p;
    if (cuMemAlloc_v2(&p, bytes) != CUDA_SUCCESS)
        exit(3);
    return p;
}

static void say(const char *where, CUdeviceptr p)
{
    printf("%s %d\n", where, (int)cuMemFree_v2(p));
    fflush(stdout);
}

static void in_early_handler(void) { say("early", early); }
static void in_late_handler(void) { say("late", late); }
__attribute__((destructor)) static void in_destructor(void) { say("destructor", last); }

static void *work(void *started)
{
    static char data[MIB];
    cuCtxSetCurrent(ctx);
    for (;;) {
        CUdeviceptr p[3];
        for (int i = 0; i < 3; i++)
            if (cuMemAlloc_v2(&p[i], 24 * MIB) != CUDA_SUCCESS)
                p[i] = 0;
        for (int i = 0; i < 3; i++)
            if (p[i]) {
                cuMemcpyHtoD_v2(p[i], data, sizeof data);
                cuMemFree_v2(p[i]);
            }
        if (started)
            pthread_barrier_wait(started);
        started = NULL;
    }
}

int main(int argc, char **argv)
{
    static pthread_barrier_t started; /* others may still be leaving it when main has returned */
    pthread_t thread[2];
    CUdevice device;
    atexit(in_early_handler);
    if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&ctx, device) || cuCtxSetCurrent(ctx))
        return 2;
    early = get(24 * MIB);
    late = get(24 * MIB);
    last = get(24 * MIB);
    atexit(in_late_handler);
    if (argc > 1 && !strcmp(argv[1], "threads")) {
        pthread_barrier_init(&started, NULL, 3);
        for (int i = 0; i < 2; i++)
            pthread_create(&thread[i], NULL, work, &started);
        pthread_barrier_wait(&started);
    }
    return 0;
}
