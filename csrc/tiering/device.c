/* SPDX-License-Identifier: Apache-2.0 */
/* What is known of each device, and how much of it this process holds. Called by the engine and by the report hooks.
 * Rules: facts are asked of the driver once; usage is published in the ledger with plain stores (the owner writes). */
#include "tiering/tiering.h"

#include <pthread.h>

#include "link/ledger.h"
#include "shim/log.h"

static struct spill_device device_table[SPILL_MAX_DEVICES];
static bool known[SPILL_MAX_DEVICES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t usage_lock = PTHREAD_MUTEX_INITIALIZER;

static int attribute(CUdevice device, CUdevice_attribute which, int fallback)
{
    int value;
    return spill_driver()->cuDeviceGetAttribute(&value, which, device) == CUDA_SUCCESS ? value : fallback;
}

/* FNV-1a. */
uint64_t spill_device_key(const unsigned char uuid[16])
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (int i = 0; i < 16; i++)
        h = (h ^ uuid[i]) * 0x100000001b3ull;
    return h ? h : 1;
}

static uint64_t key_of(CUdevice device)
{
    CUuuid uuid;
    if (!spill_driver()->cuDeviceGetUuid || spill_driver()->cuDeviceGetUuid(&uuid, device) != CUDA_SUCCESS)
        return (uint64_t)device + 1;
    return spill_device_key((const unsigned char *)uuid.bytes);
}

void spill_device_limits(struct spill_device *d, uint64_t key, uint64_t total)
{
    const struct spill_settings *s = spill_settings();
    *d = (struct spill_device){ .key = key, .total = total };
    d->limit = s->vram_limit(total) < total ? s->vram_limit(total) : total;
    d->headroom = s->headroom(d->limit);
    d->holdback = s->holdback(d->limit);
}

static void learn(struct spill_device *d, CUdevice device)
{
    const struct spill_driver *door = spill_driver();
    size_t total = 0;
    int count = 1, can = 0;
    door->cuDeviceTotalMem_v2(&total, device);
    spill_device_limits(d, key_of(device), total);
    d->vmm = attribute(device, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 0) && door->cuMemCreate;
    d->rdma = attribute(device, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED, 0) != 0;
    d->numa = attribute(device, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, 0);
    if (d->numa < 0)
        d->numa = 0; /* -1: the machine has no NUMA; the driver then takes node 0 */
    /* kHz, doubled data rate, bits. */
    d->hbm_rate = (uint64_t)attribute(device, CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 0) * 1000u * 2u *
                  (uint64_t)attribute(device, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 0) / 8u;
    d->peers[d->peer_count++] = device;
    door->cuDeviceGetCount(&count);
    for (int other = 0; other < count && other < SPILL_MAX_DEVICES; other++)
        if (other != device && door->cuDeviceCanAccessPeer(&can, other, device) == CUDA_SUCCESS && can)
            d->peers[d->peer_count++] = other;
    spill_log(SPILL_LOG_DEBUG, "device=%d total=%zu limit=%llu headroom=%llu holdback=%llu vmm=%d numa=%d", device, total,
              (unsigned long long)d->limit, (unsigned long long)d->headroom, (unsigned long long)d->holdback, d->vmm, d->numa);
}

struct spill_device *spill_device(int device)
{
    if (device < 0 || device >= SPILL_MAX_DEVICES)
        return NULL;
    if (__atomic_load_n(&known[device], __ATOMIC_ACQUIRE))
        return &device_table[device];
    CUdevice handle;
    if (spill_driver()->cuDeviceGet(&handle, device) != CUDA_SUCCESS)
        return NULL;
    pthread_mutex_lock(&lock);
    if (!known[device]) {
        learn(&device_table[device], handle);
        __atomic_store_n(&known[device], true, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
    return &device_table[device];
}

bool spill_device_any(void)
{
    for (int i = 0; i < SPILL_MAX_DEVICES; i++)
        if (__atomic_load_n(&known[i], __ATOMIC_RELAXED))
            return true;
    return false;
}

CUresult spill_current_device(int *device)
{
    CUdevice handle;
    CUresult r = spill_driver()->cuCtxGetDevice(&handle);
    /* A CUdevice is its ordinal: the documentation calls it opaque, every public program relies on it. */
    if (r == CUDA_SUCCESS)
        *device = handle;
    if (r == CUDA_SUCCESS && !spill_device(handle))
        return CUDA_ERROR_INVALID_DEVICE;
    return r;
}

static uint64_t now(const uint64_t *counter)
{
    return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

void spill_holdings(uint64_t *vram, uint64_t *ram)
{
    *vram = *ram = 0;
    for (int i = 0; i < SPILL_MAX_DEVICES; i++) {
        *vram += now(&device_table[i].vram_used);
        *ram += now(&device_table[i].ram_used);
    }
}

void spill_usage(const struct spill_device *d, struct spill_ledger_sum *sum)
{
    const struct spill_settings *s = spill_settings();
    uint64_t vram = now(&d->vram_used), ram = now(&d->ram_used);
    if (!spill_budget_joined() && !vram && !ram) {
        spill_ledger_peek(s->state_dir, s->job, d->key, sum);
        return;
    }
    const struct spill_ledger *ledger = spill_budget_ledger();
    if (ledger->own)
        spill_ledger_sum(ledger, s->job, d->key, sum);
    else
        *sum = (struct spill_ledger_sum){ 1, ram, ram, vram, ram };
}

static uint64_t used_by_job(const struct spill_device *d)
{
    struct spill_ledger_sum sum;
    spill_usage(d, &sum);
    /* The ledger has room for fewer devices than a process may use. */
    uint64_t own = now(&d->vram_used);
    return sum.vram_of_job > own ? sum.vram_of_job : own;
}

CUresult spill_vram_free(int device, uint64_t *usable, uint64_t *device_free)
{
    const struct spill_device *d = spill_device(device);
    size_t free_now = 0, total = 0;
    CUresult r = spill_driver()->cuMemGetInfo_v2(&free_now, &total);
    if (r != CUDA_SUCCESS)
        return r;
    *device_free = *usable = free_now + spill_pool_vram(d->key);
    if (d->limit < d->total) {
        uint64_t used = used_by_job(d), left = used < d->limit ? d->limit - used : 0;
        if (left < *usable)
            *usable = left;
    }
    return CUDA_SUCCESS;
}

bool spill_vram_allows(int device, uint64_t bytes)
{
    const struct spill_device *d = spill_device(device);
    if (!d)
        return true;
    uint64_t held = now(&d->vram_used) + bytes;
    spill_backend_foresee(device, held < d->total ? d->total - held : 0);
    if (d->limit >= d->total)
        return true;
    uint64_t used = used_by_job(d);
    return bytes <= d->limit && used <= d->limit - bytes;
}

uint64_t spill_other_peak(int device, uint64_t *at)
{
    struct spill_device *d = spill_device(device);
    pthread_mutex_lock(&usage_lock);
    uint64_t peak = d->other_peak;
    *at = d->other_peak_at;
    d->other_peak = d->other_used;
    d->other_peak_at = spill_late_waits();
    pthread_mutex_unlock(&usage_lock);
    return peak;
}

static uint64_t raise_peak(uint64_t *peak, const uint64_t *counter)
{
    uint64_t value = now(counter);
    if (value > *peak)
        *peak = value;
    return value;
}

void spill_account(int device, int64_t vram, int64_t ram)
{
    struct spill_device *d = spill_device(device);
    struct spill_stats *s = spill_stats();
    if (!d)
        return;
    pthread_mutex_lock(&usage_lock);
    spill_count(&d->vram_used, vram);
    spill_count(&d->ram_used, ram);
    spill_count(&s->vram_bytes, vram);
    uint64_t spilled = raise_peak(&s->spilled_peak, &s->spilled_bytes), all = spilled + s->vram_bytes;
    raise_peak(&s->vram_peak, &s->vram_bytes);
    raise_peak(&s->native_peak, &s->native_bytes);
    raise_peak(&s->managed_peak, &s->managed_bytes);
    if (spilled > s->share_ram || (spilled == s->share_ram && all > s->share_all)) {
        s->share_ram = spilled;
        s->share_all = all;
    }
    /* A limit is shared by the job, so it needs the ledger from the first byte; without one the ledger is only joined
     * when something is managed. */
    if (spill_budget_joined() || d->limit < d->total) {
        struct spill_ledger_slot *own = spill_budget_ledger()->own;
        for (int i = 0; own && i < SPILL_LEDGER_DEVICES; i++) {
            struct spill_ledger_device *mine = &own->device[i];
            if (mine->key && mine->key != d->key)
                continue;
            __atomic_store_n(&mine->vram, d->vram_used, __ATOMIC_RELAXED);
            __atomic_store_n(&mine->ram, d->ram_used, __ATOMIC_RELAXED);
            __atomic_store_n(&mine->key, d->key, __ATOMIC_RELEASE);
            break;
        }
    }
    pthread_mutex_unlock(&usage_lock);
}

void spill_account_other(int device, int64_t vram, int64_t ram)
{
    struct spill_device *d = spill_device(device);
    if (d) {
        pthread_mutex_lock(&usage_lock);
        d->other_used += (uint64_t)(vram + ram);
        if (d->other_used > d->other_peak) {
            d->other_peak = d->other_used;
            d->other_peak_at = spill_late_waits();
        }
        pthread_mutex_unlock(&usage_lock);
    }
    spill_account(device, vram, ram);
}
