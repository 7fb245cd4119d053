/* SPDX-License-Identifier: Apache-2.0 */
/* Device code that a program loads by itself. The handles are the driver's, as cudaKernel_t is everywhere in this runtime.
 */
#include "rt.h"

RT(cudaLibraryLoadData,
   (cudaLibrary_t * library, const void *code, enum cudaJitOption *jitOptions, void **jitOptionsValues, unsigned int numJitOptions,
    enum cudaLibraryOption *libraryOptions, void **libraryOptionValues, unsigned int numLibraryOptions),
   (library, code, jitOptions, jitOptionsValues, numJitOptions, libraryOptions, libraryOptionValues, numLibraryOptions))
{
    RT_CALL(rt.cuLibraryLoadData((CUlibrary *)library, code, (CUjit_option *)jitOptions, jitOptionsValues, numJitOptions,
                                 (CUlibraryOption *)libraryOptions, libraryOptionValues, numLibraryOptions));
}

RT(cudaLibraryLoadFromFile,
   (cudaLibrary_t * library, const char *fileName, enum cudaJitOption *jitOptions, void **jitOptionsValues, unsigned int numJitOptions,
    enum cudaLibraryOption *libraryOptions, void **libraryOptionValues, unsigned int numLibraryOptions),
   (library, fileName, jitOptions, jitOptionsValues, numJitOptions, libraryOptions, libraryOptionValues, numLibraryOptions))
{
    RT_CALL(rt.cuLibraryLoadFromFile((CUlibrary *)library, fileName, (CUjit_option *)jitOptions, jitOptionsValues, numJitOptions,
                                     (CUlibraryOption *)libraryOptions, libraryOptionValues, numLibraryOptions));
}

RT(cudaLibraryUnload, (cudaLibrary_t library), (library))
{
    RT_CALL(rt.cuLibraryUnload((CUlibrary)library));
}

RT(cudaLibraryGetKernel, (cudaKernel_t * pKernel, cudaLibrary_t library, const char *name), (pKernel, library, name))
{
    RT_CALL(rt.cuLibraryGetKernel((CUkernel *)pKernel, (CUlibrary)library, name));
}

RT(cudaLibraryGetKernelCount, (unsigned int *count, cudaLibrary_t lib), (count, lib))
{
    RT_CALL(rt.cuLibraryGetKernelCount(count, (CUlibrary)lib));
}

RT(cudaLibraryEnumerateKernels, (cudaKernel_t * kernels, unsigned int numKernels, cudaLibrary_t lib), (kernels, numKernels, lib))
{
    RT_CALL(rt.cuLibraryEnumerateKernels((CUkernel *)kernels, numKernels, (CUlibrary)lib));
}

RT(cudaLibraryGetGlobal, (void **dptr, size_t *bytes, cudaLibrary_t library, const char *name), (dptr, bytes, library, name))
{
    RT_CALL(rt.cuLibraryGetGlobal((CUdeviceptr *)dptr, bytes, (CUlibrary)library, name));
}

RT(cudaLibraryGetManaged, (void **dptr, size_t *bytes, cudaLibrary_t library, const char *name), (dptr, bytes, library, name))
{
    RT_CALL(rt.cuLibraryGetManaged((CUdeviceptr *)dptr, bytes, (CUlibrary)library, name));
}

RT(cudaLibraryGetUnifiedFunction, (void **fptr, cudaLibrary_t library, const char *symbol), (fptr, library, symbol))
{
    RT_CALL(rt.cuLibraryGetUnifiedFunction(fptr, (CUlibrary)library, symbol));
}

RT(cudaKernelSetAttributeForDevice, (cudaKernel_t kernel, enum cudaFuncAttribute attr, int value, int device),
   (kernel, attr, value, device))
{
    RT_CALL(rt.cuKernelSetAttribute((CUfunction_attribute)attr, value, (CUkernel)kernel, device));
}
