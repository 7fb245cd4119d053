/* SPDX-License-Identifier: Apache-2.0 */
/* Asks the driver of table_driver.c for the table with the UUID given in hexadecimal, and says whether it got the driver's
 * own ("own") and whether the driver saw this program as the caller ("seen"). */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    CUuuid id;
    const void *table = NULL;
    Dl_info from, here;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    for (int i = 0; argc == 2 && i < 16; i++)
        if (sscanf(argv[1] + 2 * i, "%2hhx", (unsigned char *)&id.bytes[i]) != 1)
            return 64;
    CUresult (*ask)(const void **, const CUuuid *) = (CUresult(*)(const void **, const CUuuid *))dlsym(driver, "cuGetExportTable");
    if (!ask || ask(&table, &id) != CUDA_SUCCESS)
        return 1;
    dladdr(*(void **)dlsym(driver, "asked_from"), &from);
    dladdr((void *)main, &here);
    printf("%s %s\n", table == dlsym(driver, "private_table") ? "own" : "copied", from.dli_fbase == here.dli_fbase ? "seen" : "hidden");
    return 0;
}
