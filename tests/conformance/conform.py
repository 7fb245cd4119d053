# SPDX-License-Identifier: Apache-2.0
"""What a test of this folder says besides driver calls: which beliefs it decides, what it saw, what it needs.

    @belief("vmm.unmap_no_drain")       it decides this row of csrc/simgpu/BELIEFS.md, in each of its branches
    @own_process                        it runs in a process of its own: it breaks the context, or needs one without cuInit
    saw("vmm.unmap_no_drain", 0, "returned while the work was queued")

A branch is a number of csrc/simgpu/doubt.def (0: as BELIEFS.md says), None something else that the documentation allows or
that it does not. Rule: assertions hold on every permissible driver; which branch it is, is reported, not asserted.
"""

import os

import cudaclient
import pytest

belief = pytest.mark.belief
own_process = pytest.mark.own_process
shim_differs = pytest.mark.shim_differs  # (reason): spillshim answers otherwise, on purpose

observations = []  # of the running test: (belief, branch or None, text)


def saw(name, branch, text):
    """Report what the driver does about a belief that the test is marked with."""
    observations.append((name, branch, str(text)))


def pick(name, seen, *branches):
    """Report the branch whose entry equals what was seen: pick("id", result, OK, INVALID) is branch 0 for OK. Returns it."""
    branch = next((index for index, entry in enumerate(branches) if seen == entry), None)
    saw(name, branch, f"{seen!r}" if branch == 0 else f"{seen!r}, believed: {branches[0]!r}")
    return branch


def lacks(reason):
    """Skip: the device or the driver lacks something that no driver must have."""
    pytest.skip(reason)


def real():
    """Whether a real driver is asked: some things are not asked of a card that others share."""
    return os.environ.get("CONFORMANCE_DEVICE") == "real"


def ram():
    """The host location for cuMemCreate; skips where there is none."""
    kind = cudaclient.host_kind()
    if kind is None:
        lacks("cuMemCreate has no host location here")
    return kind


def entry(name):
    """Skips where the driver is too old to have it."""
    try:
        getattr(cudaclient.cu, name)
    except AttributeError:
        lacks(f"the driver has no {name}")
    return name
