/* SPDX-License-Identifier: Apache-2.0 */
/* The exported dlsym, dlvsym and dlopen. Called by the program and its libraries in place of libc's.
 * Each asks its filter (resolve_filter.c) and then either returns the filter's answer or jumps to libc's function. It
 * must be a jump: libc learns from the return address who calls, and that decides RTLD_NEXT, RTLD_DEFAULT, RUNPATH and
 * the namespace. The symbols carry no version, so that references to GLIBC_2.2.5 and to GLIBC_2.34 both bind here.
 * spill_entry_* are the same addresses under names that no program can preempt.
 *
 * Filters answer in rax (where to jump to, or 0) and rdx (what to return, or the flags that dlopen is to get). */
#ifdef __CET__
#include <cet.h>
#endif

        .text

        /* Keeps the three argument registers around a call of \filter, which gets them and, as its fourth argument, the
         * caller's return address. Afterwards the stack is as at entry. */
        .macro ask filter
        endbr64
        pushq   %rdi
        .cfi_adjust_cfa_offset 8
        pushq   %rsi
        .cfi_adjust_cfa_offset 8
        pushq   %rdx
        .cfi_adjust_cfa_offset 8
        movq    24(%rsp), %rcx
        call    \filter
        movq    %rdx, %r11
        popq    %rdx
        .cfi_adjust_cfa_offset -8
        popq    %rsi
        .cfi_adjust_cfa_offset -8
        popq    %rdi
        .cfi_adjust_cfa_offset -8
        .endm

        /* An exported function. \flags: 1 where the answer is dlopen's second argument when libc's function is jumped to. */
        .macro entry name, flags
        .globl  \name
        .type   \name, @function
        .hidden spill_filter_\name
        .p2align 4
\name:
        .cfi_startproc
        ask     spill_filter_\name
        testq   %rax, %rax
        jz      1f
        .if     \flags
        movl    %r11d, %esi
        .endif
        jmp     *%rax
1:      movq    %r11, %rax
        ret
        .cfi_endproc
        .size   \name, . - \name
        .globl  spill_entry_\name
        .hidden spill_entry_\name
        .set    spill_entry_\name, \name
        .endm

        entry   dlsym, 0
        entry   dlvsym, 0
        entry   dlopen, 1

        .section .note.GNU-stack, "", @progbits
