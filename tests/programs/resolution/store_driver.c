/* SPDX-License-Identifier: Apache-2.0 */
/* libcuda.so.1 as WSL has it: every entry opens the real driver in its store by path (STORE_DRIVER) and looks its own name
 * up there. Every name of the shim's tables is exported, so that the shim finds here what it finds in a driver. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

__attribute__((visibility("hidden"))) void *store_entry(const char *name)
{
    static void *store;
    if (!store)
        store = dlopen(getenv("STORE_DRIVER"), RTLD_NOW | RTLD_LOCAL);
    void *entry = store ? dlsym(store, name) : NULL;
    if (!entry)
        abort();
    return entry;
}

/* Keeps the six argument registers; entries with more find theirs on the stack, as the jump leaves it. */
#define FORWARD(symbol)                                                                                          \
    __asm__(".text\n.globl " #symbol "\n.type " #symbol ", @function\n" #symbol ":\n"                            \
            "push %rdi\npush %rsi\npush %rdx\npush %rcx\npush %r8\npush %r9\nsub $8, %rsp\n"                     \
            "lea 1f(%rip), %rdi\ncall store_entry\nadd $8, %rsp\n"                                               \
            "pop %r9\npop %r8\npop %rcx\npop %rdx\npop %rsi\npop %rdi\njmp *%rax\n"                              \
            ".size " #symbol ", . - " #symbol "\n.section .rodata\n1: .string \"" #symbol "\"\n.text\n");

#define HOOK(symbol, name, version, flags, pfn) FORWARD(symbol)
#include "shim/hooks.def"
#define DRIVER(symbol, pfn) FORWARD(symbol)
#include "shim/driver.def"
/* What the program under test calls beside them. */
FORWARD(cuCtxSetCurrent)
