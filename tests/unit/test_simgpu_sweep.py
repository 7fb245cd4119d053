# SPDX-License-Identifier: Apache-2.0
"""Bad input at every entry that deals with memory: NULL, huge, misaligned and stale arguments in all combinations that a
seeded draw finds. The driver may refuse as it likes, but it never crashes and never hangs.
"""

import pytest
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

# The kinds of each entry's parameters. o: where an answer goes, p: device pointer, n: bytes, h: handle number, s: stream,
# O: an array of such places, f: flags or an enum (32 bits), b: a struct or array that is read, i: device, c: context, k: a count of few
ENTRIES = """
cuMemAlloc_v2 on        cuMemAllocPitch_v2 oonnf   cuMemAllocManaged onf      cuMemFree_v2 p             cuMemGetInfo_v2 oo
cuMemAllocHost_v2 on    cuMemHostAlloc onf         cuMemFreeHost p            cuMemHostRegister_v2 pnf   cuMemHostUnregister p
cuMemHostGetDevicePointer_v2 opf  cuMemHostGetFlags op  cuMemGetAddressRange_v2 oop
cuMemAddressReserve onnpf  cuMemAddressFree pn     cuMemCreate onbf           cuMemRelease h             cuMemMap pnnhf
cuMemUnmap pn           cuMemSetAccess pnbk        cuMemGetAccess obp         cuMemRetainAllocationHandle op
cuMemGetAllocationGranularity obf  cuMemGetAllocationPropertiesFromHandle oh
cuMemExportToShareableHandle ohff  cuMemImportFromShareableHandle opf
cuPointerGetAttribute ofp  cuPointerGetAttributes kbOp  cuPointerSetAttribute bfp  cuMemGetHandleForAddressRange opnff
cuMemcpy ppn            cuMemcpyAsync ppns         cuMemcpyPeer pcpcn         cuMemcpyPeerAsync pcpcns
cuMemcpyHtoD_v2 pbn     cuMemcpyHtoDAsync_v2 pbns  cuMemcpyDtoH_v2 opn        cuMemcpyDtoHAsync_v2 opns
cuMemcpyDtoD_v2 ppn     cuMemcpyDtoDAsync_v2 ppns  cuMemcpyDtoA_v2 hnpn       cuMemcpyAtoD_v2 phnn       cuMemcpyHtoA_v2 hnbn
cuMemcpyAtoH_v2 ohnn    cuMemcpyAtoA_v2 hnhnn      cuMemcpy2D_v2 b            cuMemcpy2DUnaligned_v2 b   cuMemcpy2DAsync_v2 bs
cuMemcpy3D_v2 b         cuMemcpy3DAsync_v2 bs      cuMemcpy3DPeer b           cuMemcpy3DPeerAsync bs
cuMemcpyBatchAsync bbbkbbkos  cuMemcpy3DBatchAsync kbofs  cuMemcpyWithAttributesAsync ppnbs  cuMemcpy3DWithAttributesAsync bfs
cuMemsetD8_v2 pfn       cuMemsetD16_v2 pfn         cuMemsetD32_v2 pfn         cuMemsetD2D8_v2 pnfnn      cuMemsetD2D32_v2 pnfnn
cuMemsetD8Async pfns    cuMemsetD16Async pfns      cuMemsetD32Async pfns      cuMemsetD2D16Async pnfnns
cuMemAllocAsync ons     cuMemAllocFromPoolAsync onhs  cuMemFreeAsync ps       cuMemPoolCreate ob         cuMemPoolDestroy h
cuMemPoolTrimTo hn      cuMemPoolSetAttribute hfb  cuMemPoolGetAttribute hfo  cuMemPoolSetAccess hbk     cuMemPoolGetAccess ohb
cuDeviceGetDefaultMemPool oi  cuDeviceGetMemPool oi  cuDeviceSetMemPool ih    cuMemGetDefaultMemPool obf cuMemGetMemPool obf
cuMemSetMemPool bfh     cuMemPoolExportToShareableHandle ohff  cuMemPoolImportFromShareableHandle opff  cuMemPoolExportPointer op
cuMemPoolImportPointer ohb  cuArrayCreate_v2 ob    cuArray3DCreate_v2 ob      cuArrayDestroy h           cuArrayGetDescriptor_v2 oh
cuArray3DGetDescriptor_v2 oh  cuArrayGetPlane ohf  cuArrayGetMemoryRequirements ohi  cuArrayGetSparseProperties oh
cuMipmappedArrayCreate obf  cuMipmappedArrayGetLevel ohf  cuMipmappedArrayDestroy h  cuMipmappedArrayGetMemoryRequirements ohi
cuMemAdvise pnfi        cuMemPrefetchAsync pnis    cuMemRangeGetAttribute onfp cuMemRangeGetAttributes Obbkpn
cuMemPrefetchBatchAsync bbkbbkfs  cuMemDiscardBatchAsync bbkfs  cuMemDiscardAndPrefetchBatchAsync bbkbbkfs
cuMemGetLocationInfo pnnno  cuStreamAttachMemAsync spnf  cuIpcGetMemHandle op cuIpcCloseMemHandle p
cuMulticastCreate ob    cuMulticastAddDevice hi    cuMulticastBindMem hnhnnf  cuMulticastBindAddr hnpnf  cuMulticastUnbind hinn
cuMulticastGetGranularity obf  cuFlushGPUDirectRDMAWrites ff  cuMemMapArrayAsync bks  cuMemBatchDecompressAsync bkfos
"""
PAIRS = [tuple(ENTRIES.split()[i : i + 2]) for i in range(0, len(ENTRIES.split()), 2)]

SWEEP = """
import faulthandler, mmap, random
faulthandler.enable()
random = random.Random(SEED)
context = start()
live, dead = alloc(4 * MIB), alloc(4 * MIB)
free(dead)
base, (handle,) = backed(DEVICE)
hole = reserve(2 * GRANULE)
room = mmap.mmap(-1, 16 * MIB)                       # no call that succeeds writes more than 4 MiB
answer = (C.c_char * (8 * MIB)).from_buffer(room)
at = C.addressof(answer) + 8 * MIB
places = (C.c_void_p * 4)(*[C.addressof(answer) + 64 * i for i in range(4)])
junk = bytes(random.getrandbits(8) for _ in range(4096))
HUGE = [(1 << 64) - 1, 1 << 63, (1 << 47), (1 << 64) - 4096, (1 << 32)]

def structure():
    kind = random.randrange(4)
    if kind == 0:
        return None
    words = [random.choice([0, 1, 2, 3, 4, live, base, at, hole, GRANULE, 4096, *HUGE]) for _ in range(512)]
    if kind == 1:
        words = [0] * 512
    block = (C.c_uint64 * 512)(*words) if kind < 3 else C.create_string_buffer(junk, 4096)
    kept.append(block)
    return block

def argument(kind):
    if kind == "o":
        return random.choice([None, answer])
    if kind == "O":
        return random.choice([None, places])
    if kind == "p":
        return C.c_uint64(random.choice([0, 1, live, live + 1, live + 4 * MIB - 1, dead, base, base + 4096, hole, at, *HUGE]))
    if kind == "n":
        return C.c_size_t(random.choice([0, 1, 3, 4096, GRANULE, GRANULE + 1, 4 * MIB, *HUGE]))
    if kind == "h":
        return C.c_uint64(random.choice([0, 1, handle + 1000, at, live, *HUGE]))
    if kind == "s":
        return C.c_uint64(random.choice([0, 1, 2, at, HUGE[0]]))
    if kind == "f":
        return C.c_uint64(random.choice([0, 1, 2, 3, 4, 7, 99, 0xFFFFFFFF, 0x80000000]))
    if kind == "k":
        return C.c_size_t(random.choice([0, 1, 2, 3]))
    if kind == "i":
        return C.c_int(random.choice([0, 1, -1, -2, 7, 1 << 30, -(1 << 31)]))
    if kind == "c":
        return random.choice([None, context, C.c_uint64(at), C.c_uint64(HUGE[1])])
    return structure()

codes = set()
for name, kinds in PAIRS:
    for _ in range(ROUNDS):
        kept = []
        arguments = [argument(kind) for kind in kinds]
        print(name, [a.value if isinstance(a, C._SimpleCData) else a for a in arguments], file=trail, flush=True)
        code = getattr(cu, name)(*arguments)
        assert 0 <= code <= 999, (name, code)
        codes.add(code)
        if code == ILLEGAL_ADDRESS:                      # honest: a host pointer that is none (BELIEFS.md); begin anew
            call("cuDevicePrimaryCtxReset_v2", 0)
            context = start()
            live = alloc(4 * MIB)
        elif name == "cuMemFree_v2" and code == OK:
            live = alloc(4 * MIB)
assert {OK, INVALID, OOM, INVALID_HANDLE, NOT_SUPPORTED} <= codes, codes
"""


@pytest.mark.no_sanitizer("host pointers that are none are copied from, which the driver answers and a sanitizer reports")
@pytest.mark.parametrize("seed", range(6))
def test_bad_input_is_refused(simgpu, seed, tmp_path):
    """The last line of the trail names the call that crashed, should one."""
    trail = tmp_path / "trail"
    head = f"SEED, ROUNDS, PAIRS, trail = {seed}, 60, {PAIRS!r}, open({str(trail)!r}, 'w')\n"
    drive(simgpu, head + SWEEP, vram="1G", ram="1G")


def test_every_entry_refuses_before_init_and_without_context(simgpu):
    drive(
        simgpu,
        f"""
        nothing = [None] * 9
        for name, kinds in {PAIRS!r}:
            assert getattr(cu, name)(*nothing[:len(kinds)]) == NOT_INITIALIZED, name
        call("cuInit", 0)
        for name, kinds in {PAIRS!r}:
            code = getattr(cu, name)(*nothing[:len(kinds)])
            assert code != NOT_INITIALIZED, name
            assert code or name in ("cuMemFreeHost", "cuDeviceSetMemPool"), (name, code)
        """,
    )
