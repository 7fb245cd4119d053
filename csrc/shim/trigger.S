/* SPDX-License-Identifier: Apache-2.0 */
/* The exported bodies of the entries in hooks.def that pass untouched and are only noticed: TRIGGER and HOOK_BY_NAME rows.
 * Called by the program. Each tells freeze.c that it was called and then jumps to the driver's own, with the program's
 * arguments, stack and return address: so no signature need be repeated, and the driver cannot tell that we were there.
 * The arguments of all of them are integers and pointers, so no vector register is kept. */
#ifdef __CET__
#include <cet.h>
#endif

        .text

        /* \notice(which, first argument, second argument) answers the driver's entry, or 0 where the driver has none. */
        .macro passes symbol, notice, which
        .globl  \symbol
        .type   \symbol, @function
        .hidden \notice
        .p2align 4
\symbol:
        .cfi_startproc
        endbr64
        .irp    register, %rdi, %rsi, %rdx, %rcx, %r8, %r9
        pushq   \register
        .cfi_adjust_cfa_offset 8
        .endr
        subq    $8, %rsp
        .cfi_adjust_cfa_offset 8
        movq    %rsi, %rdx
        movq    %rdi, %rsi
        movl    $\which, %edi
        call    \notice
        addq    $8, %rsp
        .cfi_adjust_cfa_offset -8
        .irp    register, %r9, %r8, %rcx, %rdx, %rsi, %rdi
        popq    \register
        .cfi_adjust_cfa_offset -8
        .endr
        testq   %rax, %rax
        jz      1f
        jmp     *%rax
1:      movl    $500, %eax      /* SPILL_MISSING: CUDA_ERROR_NOT_FOUND */
        ret
        .cfi_endproc
        .size   \symbol, . - \symbol
        .endm

        /* Numbered in the order of hooks.def, as freeze.c's table is. */
        .set    row, 0
        .macro  trigger symbol
        passes  \symbol, spill_trigger, row
        .set    row, row + 1
        .endm

#define TRIGGER(symbol, name, version, flags, pfn, why) trigger symbol
#define HOOK_BY_NAME(symbol, pfn) passes symbol, spill_export_table, 0
#include "shim/hooks.def"

        .section .note.GNU-stack, "", @progbits
