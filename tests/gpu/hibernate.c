/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment hibernate: can another process be put to sleep by the driver (cuCheckpointProcess*, 12.8 and newer) while VMM memory
 * is mapped: VRAM alone, and VRAM and RAM chunks side by side? The process that sleeps is a child made for it: it fills its memory,
 * is locked, checkpointed, restored and unlocked, and then checks every word.
 * Decides: whether an idle program's VRAM can be freed as a whole, and what that costs.
 * gpu-check: groups=facts order=115 expect=6 limit=100 sim_lacks=cuCheckpointProcessLock */
#include "gpu.h"

static void declare(void)
{
    const char *decides = "hibernation of idle programs: by the driver, or by our own moves";
    xp_row("vram", "hibernate.vram", "lock, checkpoint, restore, unlock of a process with VRAM mappings: do all its bytes survive?", "bool", NULL, decides);
    xp_row("mixed", "hibernate.mixed", "the same with RAM chunks of cuMemCreate beside the VRAM", "bool", NULL, decides);
}

/* ---- the process that sleeps: started by the case, no row of its own ---- */

static void target(void)
{
    bool with_ram = !strcmp(xp.child, "target_mixed");
    struct xp_span s;
    uint64_t bad = 0;
    char line[300];
    size_t chunk = 32 * XP_MIB;
    bool ok = xp_kernels() && (xp_find_host() || !with_ram);
    while (ok && chunk > gpu.unit && 8 * chunk > (xp.vram < xp.ram ? xp.vram : xp.ram))
        chunk /= 2;
    ok = ok && xp_span_make(&s, with_ram ? "DHDH" : "DDDD", chunk, false) && xp_fill(s.base, s.bytes, xp.seed);
    int n = ok ? snprintf(line, sizeof line, "ready %zu\n", s.bytes) : snprintf(line, sizeof line, "failed %s\n", xp_failure);
    xp_write(line, (size_t)n);
    if (!ok || read(STDIN_FILENO, line, 1) != 1)
        return;
    if (xp_check(s.base, s.bytes, xp.seed, 0, &bad))
        n = snprintf(line, sizeof line, "wrong %llu\n", (unsigned long long)bad);
    else
        n = snprintf(line, sizeof line, "failed %s\n", xp_failure);
    xp_write(line, (size_t)n);
}

struct sleeper {
    pid_t pid;
    FILE *from;
    int to;
};

static bool wake_up(struct sleeper *p, const char *name)
{
    int in[2], out[2];
    char vram[32], ram[32], seed[32];
    snprintf(vram, sizeof vram, "%zu", xp.vram);
    snprintf(ram, sizeof ram, "%zu", xp.ram);
    snprintf(seed, sizeof seed, "%u", xp.seed);
    memset(p, 0, sizeof *p);
    if (pipe(in) || pipe(out))
        return false;
    p->pid = fork(); /* before this process uses the driver */
    if (p->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        for (int i = 0; i < 2; i++) {
            close(in[i]);
            close(out[i]);
        }
        execl("/proc/self/exe", xp.self, "--child", name, "--vram", vram, "--ram", ram, "--seed", seed, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    p->to = in[1];
    p->from = fdopen(out[0], "r");
    return p->pid > 0 && p->from;
}

static void sleep_and_wake(void)
{
    const char *row = !strcmp(xp.child, "mixed") ? "hibernate.mixed" : "hibernate.vram";
    static const char *const CALL[] = { "cuCheckpointProcessLock", "cuCheckpointProcessCheckpoint", "cuCheckpointProcessRestore", "cuCheckpointProcessUnlock" };
    CUresult (*call[4])(int pid, void *args);
    struct sleeper p;
    char line[320] = "", word[320] = "";
    unsigned long long number = 0;
    double ms[4] = { 0 };
    size_t before = 0, asleep = 0, total;
    if (!xp_begin(row, 45))
        return;
    if (!wake_up(&p, !strcmp(xp.child, "mixed") ? "target_mixed" : "target_vram") || !fgets(line, sizeof line, p.from)) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "no process to put to sleep");
        return;
    }
    line[strcspn(line, "\n")] = 0;
    if (sscanf(line, "ready %llu", &number) != 1) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "the process to be put to sleep %s", line);
        return;
    }
    if (!xp_context()) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
        return;
    }
    for (int i = 0; i < 4; i++)
        if (!(*(void **)&call[i] = dlsym(gpu.library, CALL[i]))) {
            xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "this driver has no %s", CALL[i]);
            return;
        }
    cu.cuMemGetInfo_v2(&before, &total);
    for (int i = 0; i < 4; i++) {
        double t = xp_now();
        CUresult r = call[i](p.pid, NULL);
        ms[i] = (xp_now() - t) * 1e3;
        if (i == 1)
            cu.cuMemGetInfo_v2(&asleep, &total);
        if (r != CUDA_SUCCESS) {
            xp_say(row, XP_MEASURED, 0, NULL, "%s: %s", CALL[i], xp_error(r));
            return;
        }
    }
    char raw[320];
    snprintf(raw, sizeof raw, "\"bytes\": %llu, \"lock_ms\": %.2f, \"checkpoint_ms\": %.2f, \"restore_ms\": %.2f, \"unlock_ms\": %.2f, \"vram_freed\": %lld", number, ms[0],
             ms[1], ms[2], ms[3], (long long)asleep - (long long)before);
    if (write(p.to, "\n", 1) != 1 || !fgets(line, sizeof line, p.from)) {
        xp_say(row, XP_MEASURED, 0, raw, "the process did not survive its sleep");
        return;
    }
    line[strcspn(line, "\n")] = 0;
    bool right = sscanf(line, "%300s %llu", word, &number) == 2 && !strcmp(word, "wrong") && !number;
    xp_say(row, XP_MEASURED, right, raw, "%s (%s); checkpoint %.0f ms, restore %.0f ms, %lld MiB of VRAM free meanwhile", right ? "all bytes survive" : "not the same afterwards",
           line, ms[1], ms[2], ((long long)asleep - (long long)before) / (long long)XP_MIB);
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = { { "vram", sleep_and_wake, 50 }, { "mixed", sleep_and_wake, 50 }, { "target_vram", target, 50 }, { "target_mixed", target, 50 } };
    return xp_main(argc, argv, declare, cases, 4);
}
