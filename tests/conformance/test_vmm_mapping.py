# SPDX-License-Identifier: Apache-2.0
"""Virtual memory management: what may be mapped, unmapped and opened, and when memory is given back."""

from cudaclient import *  # noqa: F403
from conform import belief, own_process, pick, saw


@belief("vmm.map_whole_handle")
def test_a_handle_is_mapped_whole_and_alone():
    base, handle = reserve(4 * GRANULE), create(2 * GRANULE)
    refused = [
        map_at(base, GRANULE, handle, offset=GRANULE, want=ANY),
        map_at(base, GRANULE, handle, want=ANY),
        map_at(base + 4096, 2 * GRANULE, handle, want=ANY),
        map_at(base + 3 * GRANULE, 2 * GRANULE, handle, want=ANY),  # past the reservation
    ]
    map_at(base, 2 * GRANULE, handle)
    refused.append(map_at(base + GRANULE, 2 * GRANULE, handle, want=ANY))  # over a mapping
    assert OK not in refused
    pick("vmm.map_whole_handle", refused, [INVALID] * 5)
