/* SPDX-License-Identifier: Apache-2.0 */
/* Two devices and two processes on the runtime: peer access, copies between devices, memory shared by IPC handle.
 *   runtime_machine            the first process; needs two devices, and starts the second with the handle on its command line
 *   runtime_machine HANDLE     the second: opens the memory, checks it, writes to it
 * Prints "ok". Called by test_sim_runtime.py.
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define CHECK(what) \
    do { \
        if (!(what)) { \
            printf("line %d: %s\n", __LINE__, #what); \
            exit(1); \
        } \
    } while (0)
#define OK(call) CHECK((call) == cudaSuccess)

enum { BYTES = 1 << 20 };
static unsigned char buffer[BYTES];

static int second(const char *hex)
{
    cudaIpcMemHandle_t handle;
    unsigned char *p;
    for (size_t i = 0; i < sizeof handle; i++)
        CHECK(sscanf(hex + 2 * i, "%2hhx", (unsigned char *)&handle + i) == 1);
    OK(cudaIpcOpenMemHandle((void **)&p, handle, cudaIpcMemLazyEnablePeerAccess));
    OK(cudaMemcpy(buffer, p, BYTES, cudaMemcpyDeviceToHost));
    CHECK(buffer[0] == 3 && buffer[BYTES - 1] == 3);
    OK(cudaMemset(p, 4, BYTES));
    OK(cudaDeviceSynchronize());
    OK(cudaIpcCloseMemHandle(p));
    return 0;
}

static void share(unsigned char *p, const char *self)
{
    extern char **environ;
    cudaIpcMemHandle_t handle;
    char hex[2 * sizeof handle + 1];
    pid_t child;
    int status;
    OK(cudaIpcGetMemHandle(&handle, p));
    for (size_t i = 0; i < sizeof handle; i++)
        sprintf(hex + 2 * i, "%02x", ((unsigned char *)&handle)[i]);
    CHECK(!posix_spawn(&child, self, NULL, NULL, (char *[]){(char *)self, hex, NULL}, environ));
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    OK(cudaMemcpy(buffer, p, BYTES, cudaMemcpyDeviceToHost));
    CHECK(buffer[0] == 4 && buffer[BYTES - 1] == 4);
}

/* Memory that was mapped by hand has no IPC handle (cuda.h, cuIpcGetMemHandle: for cuMemAlloc'ed memory). */
static void mapped_memory_is_refused(void)
{
    enum { GRANULE = 2 << 20 };
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemAccessDesc access = {.location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle memory;
    CUdeviceptr at;
    cudaIpcMemHandle_t handle;
#define CALL(name, ...) CHECK(((CUresult (*)())dlsym(driver, #name))(__VA_ARGS__) == CUDA_SUCCESS)
    CHECK(driver);
    CALL(cuMemAddressReserve, &at, (size_t)GRANULE, (size_t)0, (CUdeviceptr)0, 0ull);
    CALL(cuMemCreate, &memory, (size_t)GRANULE, &prop, 0ull);
    CALL(cuMemMap, at, (size_t)GRANULE, (size_t)0, memory, 0ull);
    CALL(cuMemSetAccess, at, (size_t)GRANULE, &access, (size_t)1);
    CHECK(cudaIpcGetMemHandle(&handle, (void *)(size_t)at) == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    CALL(cuMemUnmap, at, (size_t)GRANULE);
    CALL(cuMemRelease, memory);
}

int main(int argc, char **argv)
{
    unsigned char *first, *other;
    int devices, can;
    if (argc > 1)
        return second(argv[1]);
    OK(cudaGetDeviceCount(&devices));
    CHECK(devices == 2);
    OK(cudaDeviceCanAccessPeer(&can, 0, 1));
    CHECK(can);
    OK(cudaMalloc((void **)&first, BYTES));
    OK(cudaSetDevice(1));
    OK(cudaMalloc((void **)&other, BYTES));
    OK(cudaMemset(other, 3, BYTES));
    OK(cudaDeviceSynchronize());
    OK(cudaSetDevice(0));
    OK(cudaDeviceEnablePeerAccess(1, 0));
    CHECK(cudaDeviceEnablePeerAccess(1, 0) == cudaErrorPeerAccessAlreadyEnabled);
    CHECK(cudaGetLastError() == cudaErrorPeerAccessAlreadyEnabled);
    OK(cudaMemcpyPeer(first, 0, other, 1, BYTES));
    OK(cudaMemcpy(buffer, first, BYTES, cudaMemcpyDeviceToHost));
    CHECK(buffer[0] == 3 && buffer[BYTES - 1] == 3);
    share(first, argv[0]);
    mapped_memory_is_refused();
    OK(cudaFree(first));
    OK(cudaFree(other));
    puts("ok");
    return 0;
}
