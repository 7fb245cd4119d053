/* SPDX-License-Identifier: Apache-2.0 */
/* Looks functions up in the ways that programs do and prints who answers. Run by tests/integration/test_resolution.py.
 * Usage: lookup WORD...; words are done in order, one line each: "WORD<tab>OBJECT:SYMBOL" or "WORD<tab>NULL<tab>dlerror()".
 *   open=FILE, open-global=FILE, open-deep=FILE, open-apart=FILE (dlmopen), open-program: the handle for the words that follow
 *   sym=NAME, vsym=NAME@VERSION                  dlsym / dlvsym with the handle
 *   default=NAME, next=NAME                      with RTLD_DEFAULT / RTLD_NEXT
 *   vdefault=NAME@VERSION, vnext=NAME@VERSION    the same by dlvsym
 *   fetch=NAME, vfetch=NAME@VERSION              later sym= use the dlsym found so (dlsym's own name, or dlvsym's result)
 *   fetch-default=NAME, vfetch-next=NAME@VERSION
 *   gpa1=NAME,VERSION,FLAGS, gpa2=...            cuGetProcAddress of 4 / 5 arguments, as last looked up; "" and NULL (-) names
 *   replay=FILE                                  every "gpa2(NAME,VERSION,flags=F)" line of it
 *   call=NAME                                    looks NAME up with the handle and calls it with (NULL, NULL)
 * -DDL_VERSION="GLIBC_2.2.5" binds dlsym, dlvsym and dlopen of that version. */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef DL_VERSION
__asm__(".symver dlsym, dlsym@" DL_VERSION);
__asm__(".symver dlvsym, dlvsym@" DL_VERSION);
__asm__(".symver dlopen, dlopen@" DL_VERSION);
#endif

typedef void *dlsym_fn(void *, const char *);
typedef CUresult gpa1_fn(const char *, void **, int, cuuint64_t);
typedef CUresult gpa2_fn(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);

static dlsym_fn *fetched;

static const char *after_slash(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void show(const char *word, void *found)
{
    Dl_info info;
    const char *why = found ? "" : dlerror();
    if (!found)
        printf("%s\tNULL\t%s\n", word, why ? why : "");
    else if (dladdr(found, &info) && info.dli_sname && info.dli_saddr == found)
        printf("%s\t%s:%s\n", word, after_slash(info.dli_fname), info.dli_sname);
    else
        printf("%s\t?\n", word);
    fflush(stdout);
}

static char *split(char *text, char at)
{
    char *rest = strchr(text, at);
    if (!rest)
        exit(64);
    *rest = 0;
    return rest + 1;
}

static void query(const char *word, int which, void *gpa, const char *name, int version, unsigned long flags)
{
    void *found = NULL;
    CUdriverProcAddressQueryResult status = (CUdriverProcAddressQueryResult)-1;
    CUresult r = which == 1 ? ((gpa1_fn *)gpa)(name, &found, version, flags)
                            : ((gpa2_fn *)gpa)(name, &found, version, flags, &status);
    if (r != CUDA_SUCCESS || !found)
        printf("%s\tNULL\tresult=%d status=%d\n", word, (int)r, (int)status);
    else
        show(word, found);
}

static void replay(const char *file, void *gpa)
{
    char line[256], name[128], word[200];
    int version;
    unsigned long flags;
    FILE *f = fopen(file, "r");
    while (f && fgets(line, sizeof line, f)) {
        name[0] = 0;
        if (sscanf(line, " gpa2(,%d,flags=%lu)", &version, &flags) != 2
            && sscanf(line, " gpa2(%127[^,],%d,flags=%lu)", name, &version, &flags) != 3)
            continue;
        snprintf(word, sizeof word, "%s,%d,%lu", name, version, flags);
        query(word, 2, gpa, name, version, flags);
    }
    if (f)
        fclose(f);
}

int main(int argc, char **argv)
{
    void *handle = NULL, *last = NULL;
    for (int i = 1; i < argc; i++) {
        char *word = argv[i], copy[512], *arg = copy + strcspn(word, "="), *version;
        snprintf(copy, sizeof copy, "%s", word);
        if (*arg)
            *arg++ = 0;
        int flags = !strcmp(copy, "open-global") ? RTLD_NOW | RTLD_GLOBAL
            : !strcmp(copy, "open-deep")         ? RTLD_NOW | RTLD_DEEPBIND
                                                 : RTLD_NOW;
        if (!strncmp(copy, "open", 4)) {
            handle = !strcmp(copy, "open-apart") ? dlmopen(LM_ID_NEWLM, arg, flags)
                                                 : dlopen(!strcmp(copy, "open-program") ? NULL : arg, flags);
            if (!handle)
                printf("%s\tNULL\t%s\n", word, dlerror());
        } else if (!strcmp(copy, "sym")) {
            show(word, last = fetched ? fetched(handle, arg) : dlsym(handle, arg));
        } else if (!strcmp(copy, "default")) {
            show(word, last = dlsym(RTLD_DEFAULT, arg));
        } else if (!strcmp(copy, "next")) {
            show(word, last = dlsym(RTLD_NEXT, arg));
        } else if (!strcmp(copy, "vsym")) {
            version = split(arg, '@');
            show(word, last = dlvsym(handle, arg, version));
        } else if (!strcmp(copy, "vdefault")) {
            version = split(arg, '@');
            show(word, last = dlvsym(RTLD_DEFAULT, arg, version));
        } else if (!strcmp(copy, "vnext")) {
            version = split(arg, '@');
            show(word, last = dlvsym(RTLD_NEXT, arg, version));
        } else if (!strcmp(copy, "fetch")) {
            show(word, last = dlsym(handle, arg));
            fetched = (dlsym_fn *)last;
        } else if (!strcmp(copy, "fetch-default")) {
            show(word, last = dlsym(RTLD_DEFAULT, arg));
            fetched = (dlsym_fn *)last;
        } else if (!strcmp(copy, "vfetch")) {
            version = split(arg, '@');
            show(word, last = dlvsym(handle, arg, version));
            fetched = (dlsym_fn *)last;
        } else if (!strcmp(copy, "vfetch-next")) {
            version = split(arg, '@');
            show(word, last = dlvsym(RTLD_NEXT, arg, version));
            fetched = (dlsym_fn *)last;
        } else if (!strcmp(copy, "gpa1") || !strcmp(copy, "gpa2")) {
            version = split(arg, ',');
            unsigned long f = strtoul(split(version, ','), NULL, 10);
            query(word, copy[3] - '0', last, !strcmp(arg, "-") ? NULL : arg, atoi(version), f);
        } else if (!strcmp(copy, "replay")) {
            replay(arg, last);
        } else if (!strcmp(copy, "call")) {
            CUresult (*f)(void *, void *) = (CUresult(*)(void *, void *))(fetched ? fetched(handle, arg) : dlsym(handle, arg));
            printf("%s\t%d\n", word, f ? (int)f(NULL, NULL) : -1);
        } else {
            return 64;
        }
    }
    return 0;
}
