/* SPDX-License-Identifier: Apache-2.0 */
/* What a simulated device calls itself: the same in the driver and in NVML. Included by device.c and nvml.c.
 * Rules: deterministic, and never to be mistaken for a product.
 */
#ifndef SIM_IDENTITY_H
#define SIM_IDENTITY_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "config.h"

#define SIM_DEVICE_NAME "simgpu (simulated GPU)"
enum { SIM_SMS = 4, SIM_BUS_WIDTH = 5120, SIM_BLOCK_REGISTERS = 65536 }; /* few SMs, because a simulated grid runs on CPU cores; bits; what a block has at most */
#define SIM_BUS(device) (1 + (device)) /* PCI bus number; domain, device and function are 0 */

/* 16 bytes: "simgpu", a hash (FNV-1a) of the machine's name, the ordinal: two machines' cards are not each other's. */
static inline void sim_uuid(int device, char out[16])
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char *p = sim_config()->name; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 0x100000001b3u;
    memset(out, 0, 16);
    memcpy(out, "simgpu", 6);
    memcpy(out + 6, &hash, sizeof hash);
    out[15] = (char)device;
}

static inline void sim_pci_bus_id(int device, char *out, size_t size)
{
    snprintf(out, size, "0000:%02X:00.0", SIM_BUS(device));
}

#endif
