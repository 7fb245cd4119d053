/* SPDX-License-Identifier: Apache-2.0 */
/* What is said when a process ends: one summary line for the user, one JSON object for SPILLSHIM_STATS and
 * SPILLSHIM_OBSERVE. Called by process.c at exit, and by the allocation hooks while the driver can still be asked.
 * Rules: no driver call at exit; one write a line; numbers only, no judgement beyond the roofline's. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim/config.h"
#include "shim/json.h"
#include "shim/log.h"
#include "shim/process.h"
#include "shim/resolve.h"
#include "tiering/moving.h"

enum { JSON_MAX = 16384 };

static int learned_device = -1;
static char pci_id[32];

void spill_stats_learn(int device)
{
    if (__atomic_load_n(&learned_device, __ATOMIC_ACQUIRE) >= 0)
        return;
    if (!spill_driver()->cuDeviceGetPCIBusId ||
        spill_driver()->cuDeviceGetPCIBusId(pci_id, sizeof pci_id, device) != CUDA_SUCCESS)
        pci_id[0] = 0;
    __atomic_store_n(&learned_device, device, __ATOMIC_RELEASE);
}

static double number_in_sysfs(const char *file)
{
    char path[128], text[64], id[32];
    size_t i;
    for (i = 0; pci_id[i] && i + 1 < sizeof id; i++)
        id[i] = (char)(pci_id[i] >= 'A' && pci_id[i] <= 'F' ? pci_id[i] - 'A' + 'a' : pci_id[i]);
    id[i] = 0;
    /* The driver may print a domain of eight digits, sysfs has four. */
    const char *tail = strlen(id) > 12 ? id + strlen(id) - 12 : id;
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", tail, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    return strtod(text, NULL);
}

/* Bytes per second of the link: as configured, else GT/s x lanes of the card's widest link x 128b/130b coding, of which
 * reads over PCIe get about 85 % (packet headers). 0: unknown. The maximum, because an idle link trains down. */
static double link_rate(void)
{
    const struct spill_config *c = spill_config();
    if (c->link_rate.set)
        return c->link_rate.value;
    return number_in_sysfs("max_link_speed") * 1e9 / 8 * (128.0 / 130.0) * 0.85 * number_in_sysfs("max_link_width");
}

/* 80 % of the peak of clock and width is what kernels reach. */
static double hbm_rate(void)
{
    const struct spill_config *c = spill_config();
    if (c->hbm_rate.set)
        return c->hbm_rate.value;
    const struct spill_device *d = learned_device >= 0 ? spill_device(learned_device) : NULL;
    return d ? 0.8 * (double)d->hbm_rate : 0;
}

/* Speed against all-in-VRAM of a program that reads every byte once a step, both tiers at the same time: the roofline.
 * At most 1, although two tiers together may have the greater bandwidth: nothing is promised beyond the original.
 * 0: a rate is unknown. */
static double ceiling(double share)
{
    double link = link_rate(), hbm = hbm_rate();
    if (link <= 0 || hbm <= 0)
        return 0;
    double over_link = share / link, in_vram = (1 - share) / hbm;
    double top = 1 / hbm / (over_link > in_vram ? over_link : in_vram);
    return top < 1 ? top : 1;
}

/* ---- JSON ---- */

static void put_paths(struct spill_json *t)
{
    struct spill_path_entry e;
    spill_json(t, "\"paths\": [");
    /* Room for the end is kept: a process with very many modules loses the last of them, not the object. */
    for (unsigned i = 0; spill_path_each(i, &e) && t->end - t->at > 1024; i++) {
        spill_json(t, "%s{\"module\": ", i ? ", " : "");
        spill_json_string(t, e.module);
        spill_json(t, ", \"path\": \"%s\", \"symbol\": \"%s\", \"calls\": %llu}", e.path, e.symbol, (unsigned long long)e.calls);
    }
    spill_json(t, "]");
}

static void put_pauses(struct spill_json *t, const char *name, const struct spill_pauses *p)
{
    spill_json(t, ", \"%s\": {\"count\": %llu, \"total_ns\": %llu, \"longest_ns\": %llu}", name, (unsigned long long)p->count,
               (unsigned long long)p->total_ns, (unsigned long long)p->longest_ns);
}

static void put_moves(struct spill_json *t)
{
    const struct spill_move_stats *s = spill_move_stats();
    const struct { const char *name; uint64_t value; } counters[] = {
        { "safepoints", s->safepoints }, { "refused_state", s->refused_state }, { "refused_capture", s->refused_capture },
        { "refused_busy", s->refused_busy }, { "drain_ns", s->drain_ns }, { "parked", s->parked },
        { "promoted", s->promoted }, { "promoted_bytes", s->promoted_bytes }, { "demoted", s->demoted },
        { "demoted_bytes", s->demoted_bytes }, { "rolled_back", s->rolled_back }, { "poisoned", s->poisoned },
    };
    spill_json(t, ", \"moves\": {");
    for (size_t i = 0; i < sizeof counters / sizeof counters[0]; i++)
        spill_json(t, "%s\"%s\": %llu", i ? ", " : "", counters[i].name, (unsigned long long)counters[i].value);
    put_pauses(t, "steady", &s->pause[0]);
    put_pauses(t, "bulk", &s->pause[1]);
    spill_json(t, "}");
}

static double share_of(const struct spill_stats *s)
{
    return s->share_all ? (double)s->share_ram / (double)s->share_all : 0;
}

static void put_object(struct spill_json *t, const struct spill_stats *s, bool engine)
{
    char exe[1024];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = 0;
    const struct spill_device *d = engine && learned_device >= 0 ? spill_device(learned_device) : NULL;
    double share = share_of(s), top = share > 0 ? ceiling(share) : 1;
    spill_json(t, "{\"pid\": %d, \"exe\": ", (int)getpid());
    spill_json_string(t, exe);
    spill_json(t, ", \"job\": ");
    spill_json_string(t, spill_config()->job);
    spill_json(t, ", \"libcuda\": ");
    spill_json_string(t, spill_real_path(SPILL_LIB_CUDA));
    spill_json(t, ", \"backend\": \"%s\"", spill_backend_name(spill_backend_known()));
    spill_json(t, ", \"managed\": {\"count\": %llu, \"bytes_peak\": %llu}", (unsigned long long)s->managed_count,
               (unsigned long long)s->managed_peak);
    spill_json(t, ", \"native\": {\"count\": %llu, \"bytes_peak\": %llu}", (unsigned long long)s->native_count,
               (unsigned long long)s->native_peak);
    spill_json(t, ", \"spilled\": {\"count\": %llu, \"bytes_peak\": %llu, \"bytes_total\": %llu}",
               (unsigned long long)s->spilled_count, (unsigned long long)s->spilled_peak, (unsigned long long)s->spilled_total);
    spill_json(t, ", \"vram_peak\": %llu, \"ram_peak\": %llu, \"oom\": %llu, \"vram_total\": %llu",
               (unsigned long long)s->vram_peak, (unsigned long long)s->spilled_peak, (unsigned long long)s->oom_count,
        d ? (unsigned long long)d->limit : 0ull);
    spill_json(t, ", \"pins\": {\"count\": %llu, \"bytes\": %llu}", (unsigned long long)s->pins_count, (unsigned long long)s->pins_bytes);
    put_moves(t);
    spill_json(t, ", \"spill_share\": ");
    spill_json_fraction(t, share);
    spill_json(t, ", \"ceiling\": ");
    if (top > 0)
        spill_json_fraction(t, top);
    else
        spill_json(t, "null");
    spill_json(t, ", \"state\": \"%s\", \"state_why\": ", spill_state_name(spill_state_now()));
    spill_json_string(t, spill_state_why());
    spill_json(t, ", ");
    put_paths(t);
    spill_json(t, "}\n");
}

static void append(const char *variable, const char *path, const char *line, size_t length)
{
    int err = spill_append_line(path, line, length);
    if (err)
        spill_log(SPILL_LOG_ERROR, "cannot write %s=%s: %s", variable, path, strerror(err));
}

static void say_summary(const struct spill_stats *s)
{
    const struct spill_move_stats *moves = spill_move_stats();
    char spilled[16], vram[16], ram[16], there[16], back[16], moved[80] = "", tail[160] = "";
    double share = share_of(s), top = ceiling(share);
    if (top > 0)
        snprintf(tail, sizeof tail, "; at most %.0f %% of all-in-VRAM speed where every byte is read once a step (link %.0f, "
                 "VRAM %.0f GiB/s)", 100 * top, link_rate() / 0x1p30, hbm_rate() / 0x1p30);
    if (moves->demoted_bytes || moves->promoted_bytes)
        snprintf(moved, sizeof moved, ", %s moved there later, %s brought back", spill_size_text(moves->demoted_bytes, there),
                 spill_size_text(moves->promoted_bytes, back));
    spill_say("%s spilled into RAM%s (peak VRAM %s, peak RAM %s, backend %s): about %.0f %% of memory traffic crosses the link%s",
              spill_size_text(s->spilled_total, spilled), moved, spill_size_text(s->vram_peak, vram),
              spill_size_text(s->spilled_peak, ram), spill_backend_name(spill_backend_known()), 100 * share, tail);
}

void spill_stats_report(bool engine)
{
    const struct spill_config *c = spill_config();
    const struct spill_stats *s = spill_stats();
    if (c->stats[0] || c->observe[0]) {
        char buffer[JSON_MAX];
        struct spill_json t = { buffer, buffer + sizeof buffer };
        put_object(&t, s, engine);
        if (c->stats[0] && engine)
            append("SPILLSHIM_STATS", c->stats, buffer, (size_t)(t.at - buffer));
        if (c->observe[0])
            append("SPILLSHIM_OBSERVE", c->observe, buffer, (size_t)(t.at - buffer));
    }
    if (engine && (s->spilled_total || spill_move_stats()->demoted_bytes) && !c->quiet)
        say_summary(s);
}
