# SPDX-License-Identifier: Apache-2.0
"""Every memcpy and memset form over device regions, at random places, against a numpy model of the same bytes.

Usage: copy_forms.py FORM COUNT SEED   (FORM: a driver symbol of FORMS; several separated by commas)
Run by tests/integration/test_clients_copies.py with VRAM so small that the regions lie in both tiers. Ends with a JSON line.
"""

from __future__ import annotations

import ctypes
import random
import sys

import numpy as np
from numpy.lib.stride_tricks import as_strided

from shell import INVALID_VALUE, MIB, Ctx, alloc, at, code, cu, download, done, free, pattern, ref, stream, sync, u64, upload

REGION = 20 * MIB
HOST, DEVICE, UNIFIED = 1, 2, 4


class Memcpy2D(ctypes.Structure):
    """CUDA_MEMCPY2D"""

    _fields_ = [
        (side + name, kind)
        for side in ("src", "dst")
        for name, kind in [
            ("XInBytes", ctypes.c_size_t), ("Y", ctypes.c_size_t), ("MemoryType", ctypes.c_int), ("Host", ctypes.c_uint64),
            ("Device", ctypes.c_uint64), ("Array", ctypes.c_uint64), ("Pitch", ctypes.c_size_t),
        ]
    ] + [("WidthInBytes", ctypes.c_size_t), ("Height", ctypes.c_size_t)]  # fmt: skip


def _memcpy3d(last: str) -> type[ctypes.Structure]:
    class Memcpy3D(ctypes.Structure):
        """CUDA_MEMCPY3D, or CUDA_MEMCPY3D_PEER where the reserved pointer is the context"""

        _fields_ = [
            (side + name, kind)
            for side in ("src", "dst")
            for name, kind in [
                ("XInBytes", ctypes.c_size_t), ("Y", ctypes.c_size_t), ("Z", ctypes.c_size_t), ("LOD", ctypes.c_size_t),
                ("MemoryType", ctypes.c_int), ("Host", ctypes.c_uint64), ("Device", ctypes.c_uint64),
                ("Array", ctypes.c_uint64), (last, ctypes.c_uint64), ("Pitch", ctypes.c_size_t), ("Height", ctypes.c_size_t),
            ]
        ] + [("WidthInBytes", ctypes.c_size_t), ("Height", ctypes.c_size_t), ("Depth", ctypes.c_size_t)]  # fmt: skip

    return Memcpy3D


Memcpy3D, Memcpy3DPeer = _memcpy3d("Reserved"), _memcpy3d("Context")


class Location(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class Attributes(ctypes.Structure):
    """CUmemcpyAttributes"""

    _fields_ = [("order", ctypes.c_int), ("src", Location), ("dst", Location), ("flags", ctypes.c_uint)]


class Operand(ctypes.Structure):
    """CUmemcpy3DOperand, pointer arm"""

    _fields_ = [
        ("type", ctypes.c_int), ("ptr", ctypes.c_uint64), ("row", ctypes.c_size_t), ("layer", ctypes.c_size_t),
        ("location", Location),
    ]  # fmt: skip


class BatchOp(ctypes.Structure):
    """CUDA_MEMCPY3D_BATCH_OP"""

    _fields_ = [
        ("src", Operand), ("dst", Operand), ("extent", ctypes.c_size_t * 3), ("order", ctypes.c_int), ("flags", ctypes.c_uint),
    ]  # fmt: skip


class ArrayDescriptor(ctypes.Structure):
    """CUDA_ARRAY_DESCRIPTOR"""

    _fields_ = [("width", ctypes.c_size_t), ("height", ctypes.c_size_t), ("format", ctypes.c_int), ("channels", ctypes.c_uint)]


class Block:
    """Some memory and the model of its bytes: a device region (model apart) or host memory (the array is the memory)."""

    def __init__(self, kind: int, address: int, model: np.ndarray) -> None:
        self.kind, self.address, self.model = kind, address, model


class World:
    """Two device regions, two host buffers, one context, one stream."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ctx = Ctx()
        self.stream = stream()
        self.device = []
        for i in range(2):
            model = pattern(REGION, seed + i)
            block = Block(DEVICE, alloc(REGION), model)
            upload(block.address, model)
            self.device.append(block)
        self.host = []
        for i in range(2):
            model = pattern(REGION, seed + 10 + i)
            self.host.append(Block(HOST, at(model), model))

    def pair(self, kinds: str) -> tuple[Block, Block]:
        """(destination, source), "DH" = device from host; "any" = one of DH, HD, DD."""
        kinds = self.rng.choice(["DH", "HD", "DD"]) if kinds == "any" else kinds
        i = self.rng.randrange(2)
        pick = {"D": self.device, "H": self.host}
        return pick[kinds[0]][i], pick[kinds[1]][1 - i]

    def span(self, most: int = 12 * MIB, unit: int = 1) -> tuple[int, int]:
        """A random (offset, size), often long enough to cross several chunks, sometimes a few bytes at a 2 MiB boundary."""
        if self.rng.random() < 0.3:
            size = self.rng.randrange(unit, 4097)
            start = self.rng.randrange(1, REGION // (2 * MIB)) * 2 * MIB - self.rng.randrange(size + 1)
        else:
            size = self.rng.randrange(unit, most)
            start = self.rng.randrange(REGION - size)
        return start // unit * unit, max(size // unit * unit, unit)

    def check(self) -> None:
        sync()
        for i, block in enumerate(self.device):
            got = download(block.address, REGION)
            if not np.array_equal(got, block.model):
                wrong = np.flatnonzero(got != block.model)
                raise AssertionError(f"device region {i}: {wrong.size} bytes differ, first {wrong[0]}, last {wrong[-1]}")
        for block in self.host:
            # The model of host memory is the memory: compare with what the operations said it should hold.
            expected = getattr(block, "expected", None)
            if expected is not None and not np.array_equal(expected, block.model):
                wrong = np.flatnonzero(expected != block.model)
                raise AssertionError(f"host buffer: {wrong.size} bytes differ, first {wrong[0]}, last {wrong[-1]}")

    def model_of(self, block: Block) -> np.ndarray:
        """The bytes that the block should hold; for host memory a copy apart from the memory itself."""
        if block.kind == DEVICE:
            return block.model
        if not hasattr(block, "expected"):
            block.expected = block.model.copy()
        return block.expected


# --- linear copies ----------------------------------------------------------------------------------------------------


def linear(symbol: str, kinds: str, tail: str = ""):
    """`tail`: what follows (dst, src, size): "" nothing, "s" the stream."""

    def run(w: World) -> None:
        dst, src = w.pair(kinds)
        d_off, size = w.span()
        s_off = w.rng.randrange(REGION - size + 1)
        # Both models before the call: an asynchronous copy is only over at the next synchronise.
        w.model_of(dst)[d_off : d_off + size] = w.model_of(src)[s_off : s_off + size]
        cu(symbol, dst.address + d_off, src.address + s_off, size, *([w.stream] if tail else []))
        sync()

    return run


def peer(symbol: str, tail: str = ""):
    def run(w: World) -> None:
        dst, src = w.pair("DD")
        d_off, size = w.span()
        s_off = w.rng.randrange(REGION - size + 1)
        w.model_of(dst)[d_off : d_off + size] = w.model_of(src)[s_off : s_off + size]
        cu(symbol, dst.address + d_off, w.ctx.handle, src.address + s_off, w.ctx.handle, size, *([w.stream] if tail else []))
        sync()

    return run


# --- rectangles -------------------------------------------------------------------------------------------------------


def boxes(w: World, dims: int) -> tuple[tuple[int, ...], list[dict[str, int]]]:
    """A random (width, height, depth) and, for source and destination, pitches and offsets that keep it in a region."""
    rng = w.rng
    while True:
        if rng.random() < 0.5:
            width, height = rng.randrange(1, 2 * MIB), rng.randrange(1, 6)
        else:
            width, height = rng.randrange(1, 5000), rng.randrange(1, 300)
        depth = rng.randrange(1, 4) if dims == 3 else 1
        sides = []
        for _ in range(2):
            x, y, z = rng.randrange(64), rng.randrange(4), rng.randrange(2) if dims == 3 else 0
            pitch = width + x + rng.choice([0, rng.randrange(1000), rng.randrange(100000)])
            rows = height + y + rng.randrange(3)
            last = (z + depth - 1) * pitch * rows + (y + height - 1) * pitch + x + width
            if last > REGION:
                break
            base = rng.randrange(REGION - last + 1)
            sides.append({"x": x, "y": y, "z": z, "pitch": pitch, "rows": rows, "base": base})
        if len(sides) == 2:
            return (width, height, depth), sides


def box_view(model: np.ndarray, extent: tuple[int, ...], side: dict[str, int]) -> np.ndarray:
    width, height, depth = extent
    layer = side["pitch"] * side["rows"]
    start = side["base"] + side["z"] * layer + side["y"] * side["pitch"] + side["x"]
    return as_strided(model[start:], shape=(depth, height, width), strides=(layer, side["pitch"], 1))


def rectangle(symbol: str, kind: type[ctypes.Structure], dims: int, tail: str = "", unified: bool = True):
    def run(w: World) -> None:
        dst, src = w.pair("DD" if kind is Memcpy3DPeer else "any")
        extent, (d, s) = boxes(w, dims)
        box_view(w.model_of(dst), extent, d)[...] = box_view(w.model_of(src), extent, s)
        op = kind(WidthInBytes=extent[0], Height=extent[1])
        for name, block, side in (("src", src, s), ("dst", dst, d)):
            as_unified = unified and w.rng.random() < 0.3
            address = block.address + side["base"]
            setattr(op, name + "MemoryType", UNIFIED if as_unified else block.kind)
            setattr(op, name + ("Host" if block.kind == HOST and not as_unified else "Device"), address)
            setattr(op, name + "XInBytes", side["x"])
            setattr(op, name + "Y", side["y"])
            setattr(op, name + "Pitch", side["pitch"])
            if dims == 3:
                setattr(op, name + "Z", side["z"])
                setattr(op, name + "Height", side["rows"])
            if kind is Memcpy3DPeer:
                setattr(op, name + "Context", w.ctx.handle)
        if dims == 3:
            op.Depth = extent[2]
        cu(symbol, ref(op), *([w.stream] if tail else []))
        sync()

    return run


# --- batches ----------------------------------------------------------------------------------------------------------


def batch(symbol: str, fail_index: bool):
    def run(w: World) -> None:
        # Within a batch the order is undefined: destinations must not overlap, nor be sources. So one direction, in slots.
        dst, src = w.pair("any")
        count = w.rng.randrange(1, 6)
        slot = REGION // count
        sizes = [w.rng.randrange(1, slot + 1) for _ in range(count)]
        offsets = [i * slot + w.rng.randrange(slot - n + 1) for i, n in enumerate(sizes)]
        sources = [w.rng.randrange(REGION - n + 1) for n in sizes]
        for d_off, s_off, n in zip(offsets, sources, sizes):
            w.model_of(dst)[d_off : d_off + n] = w.model_of(src)[s_off : s_off + n]
        array = ctypes.c_uint64 * count
        attributes = Attributes(order=1, src=Location(1, 0), dst=Location(1, 0))
        first, failed = ctypes.c_size_t(0), ctypes.c_size_t(0)
        cu(
            symbol,
            array(*[dst.address + o for o in offsets]),
            array(*[src.address + o for o in sources]),
            array(*sizes),
            count,
            ref(attributes),
            ref(first),
            1,
            *([ref(failed)] if fail_index else []),
            w.stream,
        )
        sync()

    return run


def batch_op(w: World) -> BatchOp:
    """A 3D operation between random blocks, applied to the models."""
    dst, src = w.pair("any")
    extent, (d, s) = boxes(w, 3)
    box_view(w.model_of(dst), extent, d)[...] = box_view(w.model_of(src), extent, s)
    op = BatchOp(extent=extent, order=1)
    for operand, block, side in ((op.src, src, s), (op.dst, dst, d)):
        layer = side["pitch"] * side["rows"]
        operand.type = 1
        operand.ptr = block.address + side["base"] + side["z"] * layer + side["y"] * side["pitch"] + side["x"]
        operand.row, operand.layer, operand.location = side["pitch"], side["rows"], Location(1, 0)
    return op


def batch_3d(symbol: str, fail_index: bool):
    def run(w: World) -> None:
        failed = ctypes.c_size_t(0)
        ops = (BatchOp * 1)(batch_op(w))
        cu(symbol, 1, ops, *([ref(failed)] if fail_index else []), 0, w.stream)
        sync()

    return run


def with_attributes(symbol: str):
    def run(w: World) -> None:
        dst, src = w.pair("any")
        d_off, size = w.span()
        s_off = w.rng.randrange(REGION - size + 1)
        w.model_of(dst)[d_off : d_off + size] = w.model_of(src)[s_off : s_off + size]
        attributes = Attributes(order=1, src=Location(1, 0), dst=Location(1, 0))
        cu(symbol, dst.address + d_off, src.address + s_off, size, ref(attributes), w.stream)
        sync()

    return run


def with_attributes_3d(symbol: str):
    def run(w: World) -> None:
        cu(symbol, ref(batch_op(w)), 0, w.stream)
        sync()

    return run


# --- arrays -----------------------------------------------------------------------------------------------------------


def array_round_trip(to_array: str, from_array: str):
    """Device to CUDA array and back to another place: both forms in one, since arrays have no address to look at."""
    size = MIB

    def run(w: World) -> None:
        handle = u64()
        cu("cuArrayCreate_v2", ref(handle), ref(ArrayDescriptor(width=size // 16, height=0, format=3, channels=4)))
        dst, src = w.pair("DD")
        d_off, s_off = (w.rng.randrange((REGION - size) // 16) * 16 for _ in range(2))
        n = w.rng.randrange(1, size // 16 + 1) * 16
        w.model_of(dst)[d_off : d_off + n] = w.model_of(src)[s_off : s_off + n]
        cu(to_array, handle.value, 0, src.address + s_off, n)
        cu(from_array, dst.address + d_off, handle.value, 0, n)
        sync()
        cu("cuArrayDestroy", handle.value)

    return run


# --- memsets ----------------------------------------------------------------------------------------------------------


def memset(symbol: str, unit: int, tail: str = ""):
    def run(w: World) -> None:
        block = w.rng.choice(w.device)
        start, size = w.span(unit=unit)
        value = w.rng.randrange(1 << 8 * unit)
        w.model_of(block)[start : start + size].view(f"u{unit}")[:] = value
        cu(symbol, block.address + start, value, size // unit, *([w.stream] if tail else []))
        sync()

    return run


def memset_2d(symbol: str, unit: int, tail: str = ""):
    def run(w: World) -> None:
        block = w.rng.choice(w.device)
        while True:
            width = w.rng.randrange(1, w.rng.choice([1000, 2 * MIB])) // unit + 1
            height = w.rng.randrange(1, 8)
            pitch = (width + w.rng.randrange(50000)) * unit
            start = w.rng.randrange(REGION) // unit * unit
            if start + (height - 1) * pitch + width * unit <= REGION:
                break
        value = w.rng.randrange(1 << 8 * unit)
        model = w.model_of(block)[start:]
        for row in range(height):
            model[row * pitch : row * pitch + width * unit].view(f"u{unit}")[:] = value
        cu(symbol, block.address + start, pitch, value, width, height, *([w.stream] if tail else []))
        sync()

    return run


FORMS = {}
for _ds in ("", "_ptds"):
    FORMS["cuMemcpy" + _ds] = linear("cuMemcpy" + _ds, "any")
    FORMS["cuMemcpyHtoD_v2" + _ds] = linear("cuMemcpyHtoD_v2" + _ds, "DH")
    FORMS["cuMemcpyDtoH_v2" + _ds] = linear("cuMemcpyDtoH_v2" + _ds, "HD")
    FORMS["cuMemcpyDtoD_v2" + _ds] = linear("cuMemcpyDtoD_v2" + _ds, "DD")
    FORMS["cuMemcpyPeer" + _ds] = peer("cuMemcpyPeer" + _ds)
    FORMS["cuMemcpy2D_v2" + _ds] = rectangle("cuMemcpy2D_v2" + _ds, Memcpy2D, 2)
    FORMS["cuMemcpy2DUnaligned_v2" + _ds] = rectangle("cuMemcpy2DUnaligned_v2" + _ds, Memcpy2D, 2)
    FORMS["cuMemcpy3D_v2" + _ds] = rectangle("cuMemcpy3D_v2" + _ds, Memcpy3D, 3)
    FORMS["cuMemcpy3DPeer" + _ds] = rectangle("cuMemcpy3DPeer" + _ds, Memcpy3DPeer, 3, unified=False)
    FORMS[f"cuMemcpyDtoA_v2{_ds}+cuMemcpyAtoD_v2{_ds}"] = array_round_trip("cuMemcpyDtoA_v2" + _ds, "cuMemcpyAtoD_v2" + _ds)
    for _bits in (8, 16, 32):
        FORMS[f"cuMemsetD{_bits}_v2{_ds}"] = memset(f"cuMemsetD{_bits}_v2{_ds}", _bits // 8)
        FORMS[f"cuMemsetD2D{_bits}_v2{_ds}"] = memset_2d(f"cuMemsetD2D{_bits}_v2{_ds}", _bits // 8)
for _sz in ("", "_ptsz"):
    FORMS["cuMemcpyAsync" + _sz] = linear("cuMemcpyAsync" + _sz, "any", "s")
    FORMS["cuMemcpyHtoDAsync_v2" + _sz] = linear("cuMemcpyHtoDAsync_v2" + _sz, "DH", "s")
    FORMS["cuMemcpyDtoHAsync_v2" + _sz] = linear("cuMemcpyDtoHAsync_v2" + _sz, "HD", "s")
    FORMS["cuMemcpyDtoDAsync_v2" + _sz] = linear("cuMemcpyDtoDAsync_v2" + _sz, "DD", "s")
    FORMS["cuMemcpyPeerAsync" + _sz] = peer("cuMemcpyPeerAsync" + _sz, "s")
    FORMS["cuMemcpy2DAsync_v2" + _sz] = rectangle("cuMemcpy2DAsync_v2" + _sz, Memcpy2D, 2, "s")
    FORMS["cuMemcpy3DAsync_v2" + _sz] = rectangle("cuMemcpy3DAsync_v2" + _sz, Memcpy3D, 3, "s")
    FORMS["cuMemcpy3DPeerAsync" + _sz] = rectangle("cuMemcpy3DPeerAsync" + _sz, Memcpy3DPeer, 3, "s", unified=False)
    FORMS["cuMemcpyBatchAsync" + _sz] = batch("cuMemcpyBatchAsync" + _sz, True)
    FORMS["cuMemcpyBatchAsync_v2" + _sz] = batch("cuMemcpyBatchAsync_v2" + _sz, False)
    FORMS["cuMemcpy3DBatchAsync" + _sz] = batch_3d("cuMemcpy3DBatchAsync" + _sz, True)
    FORMS["cuMemcpy3DBatchAsync_v2" + _sz] = batch_3d("cuMemcpy3DBatchAsync_v2" + _sz, False)
    FORMS["cuMemcpyWithAttributesAsync" + _sz] = with_attributes("cuMemcpyWithAttributesAsync" + _sz)
    FORMS["cuMemcpy3DWithAttributesAsync" + _sz] = with_attributes_3d("cuMemcpy3DWithAttributesAsync" + _sz)
    for _bits in (8, 16, 32):
        FORMS[f"cuMemsetD{_bits}Async{_sz}"] = memset(f"cuMemsetD{_bits}Async{_sz}", _bits // 8, "s")
        FORMS[f"cuMemsetD2D{_bits}Async{_sz}"] = memset_2d(f"cuMemsetD2D{_bits}Async{_sz}", _bits // 8, "s")


def main() -> None:
    forms, count, seed = sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3])
    world = World(seed)
    for form in forms:
        for i in range(count):
            try:
                FORMS[form](world)
            except Exception as error:
                raise SystemExit(f"{form}, operation {i}, seed {seed}: {error}")
        try:
            world.check()
        except AssertionError as error:
            raise SystemExit(f"{form}, seed {seed}: {error}")
    # One copy past the end of a region must be the driver's error, not a copy of what lies behind it.
    past = code("cuMemcpyHtoD_v2", world.device[1].address + REGION - 16, at(world.host[0].model), REGION)
    for block in world.device:
        free(block.address)
    done(forms=len(forms), count=count, seed=seed, past_end=past, past_end_expected=INVALID_VALUE)


if __name__ == "__main__":
    main()
