/* SPDX-License-Identifier: Apache-2.0 */
/* Vector constructors, integer and floating-point intrinsics, cached loads and stores. Included by simk.h.
 * Rules: the fast forms (__expf, __fdividef ...) are as exact here as the plain ones, so a result differs from a GPU's in the
 * last places. Rounding modes other than to-nearest are rounded to nearest. Source: CUDA Math API reference.
 */
#ifndef SIMK_MATH_H
#define SIMK_MATH_H

#ifdef __cplusplus
#include <type_traits>
#endif

#define SIMK_F static __attribute__((unused)) inline

/* ---- vectors */

#define SIMK_MAKE(type, name) \
    SIMK_F name##1 make_##name##1(type x) { name##1 v = {x}; return v; } \
    SIMK_F name##2 make_##name##2(type x, type y) { name##2 v = {x, y}; return v; } \
    SIMK_F name##3 make_##name##3(type x, type y, type z) { name##3 v = {x, y, z}; return v; } \
    SIMK_F name##4 make_##name##4(type x, type y, type z, type w) { name##4 v = {x, y, z, w}; return v; }
SIMK_MAKE(signed char, char)
SIMK_MAKE(unsigned char, uchar)
SIMK_MAKE(short, short)
SIMK_MAKE(unsigned short, ushort)
SIMK_MAKE(int, int)
SIMK_MAKE(unsigned int, uint)
SIMK_MAKE(float, float)
SIMK_MAKE(long long, longlong)
SIMK_MAKE(unsigned long long, ulonglong)
SIMK_MAKE(double, double)
#undef SIMK_MAKE

/* ---- bits of one type as another */

#define SIMK_AS(name, from, to) SIMK_F to name(from v) { to r; memcpy(&r, &v, sizeof r); return r; }
SIMK_AS(__float_as_int, float, int)
SIMK_AS(__float_as_uint, float, unsigned)
SIMK_AS(__int_as_float, int, float)
SIMK_AS(__uint_as_float, unsigned, float)
SIMK_AS(__double_as_longlong, double, long long)
SIMK_AS(__longlong_as_double, long long, double)
#undef SIMK_AS

/* ---- integers */

SIMK_F int __popc(unsigned v) { return __builtin_popcount(v); }
SIMK_F int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
SIMK_F int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
SIMK_F int __clzll(long long v) { return v ? __builtin_clzll((unsigned long long)v) : 64; }
SIMK_F int __ffs(int v) { return __builtin_ffs(v); }
SIMK_F int __ffsll(long long v) { return __builtin_ffsll(v); }
SIMK_F unsigned __brev(unsigned v)
{
    v = (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
    v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
    v = (v >> 4 & 0x0f0f0f0fu) | (v & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(v);
}
SIMK_F unsigned long long __brevll(unsigned long long v)
{
    return (unsigned long long)__brev((unsigned)v) << 32 | __brev((unsigned)(v >> 32));
}
/* Each nibble of `select` names a byte of the eight in (b, a); its bit 3 asks for that byte's sign eight times over. */
SIMK_F unsigned __byte_perm(unsigned a, unsigned b, unsigned select)
{
    unsigned long long both = (unsigned long long)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = select >> 4 * i & 15, byte = (unsigned)(both >> 8 * (s & 7)) & 255;
        r |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
    }
    return r;
}
SIMK_F int __mul24(int a, int b) { return (int)((unsigned)(a << 8 >> 8) * (unsigned)(b << 8 >> 8)); }
SIMK_F unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }
SIMK_F int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
SIMK_F unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
SIMK_F long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
SIMK_F unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
SIMK_F unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by)
{
    return (unsigned)(((unsigned long long)high << 32 | low) << (by & 31) >> 32);
}
SIMK_F unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by)
{
    return (unsigned)(((unsigned long long)high << 32 | low) >> (by & 31));
}
SIMK_F int __hadd(int a, int b) { return (int)(((long long)a + b) >> 1); }
SIMK_F unsigned __sad(int a, int b, unsigned c) { return (a > b ? (unsigned)a - (unsigned)b : (unsigned)b - (unsigned)a) + c; }
SIMK_F int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++)
        c += (signed char)((unsigned)a >> 8 * i) * (signed char)((unsigned)b >> 8 * i);
    return c;
}

/* ---- floating point */

/* Macros, because the C library has functions of these names, or will have. */
#define __expf(v) expf(v)
#define __exp10f(v) powf(10, v)
#define __logf(v) logf(v)
#define __log2f(v) log2f(v)
#define __log10f(v) log10f(v)
#define __sinf(v) sinf(v)
#define __cosf(v) cosf(v)
#define __tanf(v) tanf(v)
#define __sincosf(v, s, c) simk_sincosf(v, s, c)
#define __powf(a, b) powf(a, b)
#define rsqrtf(v) simk_rsqrtf(v)
#define rsqrt(v) simk_rsqrt(v)
SIMK_F void simk_sincosf(float v, float *s, float *c) { *s = sinf(v); *c = cosf(v); }
SIMK_F float simk_rsqrtf(float v) { return 1 / sqrtf(v); }
SIMK_F double simk_rsqrt(double v) { return 1 / sqrt(v); }
SIMK_F float __fdividef(float a, float b) { return a / b; }
SIMK_F float __saturatef(float v) { return v > 0 ? v < 1 ? v : 1 : 0; } /* NaN is 0 */
SIMK_F float __frsqrt_rn(float v) { return 1 / sqrtf(v); }
SIMK_F float __frcp_rn(float v) { return 1 / v; }
SIMK_F float __fsqrt_rn(float v) { return sqrtf(v); }
SIMK_F float __fadd_rn(float a, float b) { return a + b; }
SIMK_F float __fsub_rn(float a, float b) { return a - b; }
SIMK_F float __fmul_rn(float a, float b) { return a * b; }
SIMK_F float __fdiv_rn(float a, float b) { return a / b; }
SIMK_F float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
SIMK_F double __dadd_rn(double a, double b) { return a + b; }
SIMK_F double __dmul_rn(double a, double b) { return a * b; }
SIMK_F double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
/* Out of range, a GPU's conversion gives the nearest integer that there is, and 0 for NaN. */
#define SIMK_TO(name, from, to, round, least, most) \
    SIMK_F to name(from v) { v = round(v); return v != v ? 0 : v <= (from)(least) ? (least) : v >= (from)(most) ? (most) : (to)v; }
SIMK_TO(__float2int_rn, float, int, rintf, INT32_MIN, INT32_MAX)
SIMK_TO(__float2int_rz, float, int, truncf, INT32_MIN, INT32_MAX)
SIMK_TO(__float2int_rd, float, int, floorf, INT32_MIN, INT32_MAX)
SIMK_TO(__float2int_ru, float, int, ceilf, INT32_MIN, INT32_MAX)
SIMK_TO(__float2uint_rn, float, unsigned, rintf, 0u, UINT32_MAX)
SIMK_TO(__float2uint_rz, float, unsigned, truncf, 0u, UINT32_MAX)
SIMK_TO(__float2ll_rn, float, long long, rintf, INT64_MIN, INT64_MAX)
SIMK_TO(__double2int_rn, double, int, rint, INT32_MIN, INT32_MAX)
SIMK_TO(__double2int_rz, double, int, trunc, INT32_MIN, INT32_MAX)
SIMK_TO(__double2ll_rn, double, long long, rint, INT64_MIN, INT64_MAX)
#undef SIMK_TO
SIMK_F float __int2float_rn(int v) { return (float)v; }
SIMK_F float __uint2float_rn(unsigned v) { return (float)v; }
SIMK_F float __ll2float_rn(long long v) { return (float)v; }
SIMK_F double __ll2double_rn(long long v) { return (double)v; }
SIMK_F float __double2float_rn(double v) { return (float)v; }

/* ---- loads and stores that hint at a cache */

#define __ldg(p) (*(p))
#define __ldca(p) (*(p))
#define __ldcg(p) (*(p))
#define __ldcs(p) (*(p))
#define __ldcv(p) (*(p))
#define __ldlu(p) (*(p))
#define __stwb(p, v) ((void)(*(p) = (v)))
#define __stcg(p, v) ((void)(*(p) = (v)))
#define __stcs(p, v) ((void)(*(p) = (v)))
#define __stwt(p, v) ((void)(*(p) = (v)))

SIMK_F void __nanosleep(unsigned ns) { (void)ns; }

#ifdef __cplusplus
/* Arguments of two types meet in their common one, as nvcc's overloads have it for the arithmetic types. */
template <typename A, typename B> static inline typename std::common_type<A, B>::type min(A a, B b)
{
    typename std::common_type<A, B>::type x = a, y = b;
    return y < x ? y : x;
}
template <typename A, typename B> static inline typename std::common_type<A, B>::type max(A a, B b)
{
    typename std::common_type<A, B>::type x = a, y = b;
    return x < y ? y : x;
}
#endif
#undef SIMK_F
#endif
