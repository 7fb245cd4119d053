# SPDX-License-Identifier: Apache-2.0
"""The simulated NVML as tools read it: through nvidia-ml-py, the bindings of nvitop, gpustat and the like."""

import textwrap

from simgpu_driver import simgpu  # noqa: F401  (fixture)


def watch(simgpu, code, **how):
    """Run code with pynvml initialised as `nv`, simgpu_client beside it; the result, when it ended well."""
    program = "from simgpu_client import *\nimport pynvml as nv\nnv.nvmlInit()\n" + textwrap.dedent(code)
    return simgpu(["python", "-c", program], **how).ok()


def test_what_a_monitor_asks(simgpu):
    result = watch(
        simgpu,
        """
        card = nv.nvmlDeviceGetHandleByIndex(0)
        assert nv.nvmlDeviceGetCount() == 2
        assert nv.nvmlDeviceGetName(card) == "simgpu (simulated GPU)"
        assert nv.nvmlSystemGetDriverVersion().startswith("550.") and nv.nvmlSystemGetCudaDriverVersion() == 12040
        for version in (None, nv.nvmlMemory_v2):
            memory = nv.nvmlDeviceGetMemoryInfo(card, version)
            assert (memory.total, memory.used, memory.free) == (2 * GIB, 0, 2 * GIB)
        pci = nv.nvmlDeviceGetPciInfo(card)
        assert (pci.bus, pci.busId) == (1, "00000000:01:00.0")
        assert nv.nvmlDeviceGetIndex(nv.nvmlDeviceGetHandleByPciBusId(pci.busId)) == 0
        assert nv.nvmlDeviceGetIndex(nv.nvmlDeviceGetHandleByUUID(nv.nvmlDeviceGetUUID(card))) == 0
        other = nv.nvmlDeviceGetHandleByIndex(1)
        assert nv.nvmlDeviceGetMinorNumber(other) == 1 and nv.nvmlDeviceGetIndex(other) == 1
        assert nv.nvmlDeviceGetCudaComputeCapability(card) == (9, 0) == (nv.nvmlDeviceGetArchitecture(card), 0)
        assert nv.nvmlDeviceGetBAR1MemoryInfo(card).bar1Total == 2 * GIB
        assert (nv.nvmlDeviceGetCurrPcieLinkGeneration(card), nv.nvmlDeviceGetCurrPcieLinkWidth(card)) == (4, 16)
        use = nv.nvmlDeviceGetUtilizationRates(card)
        assert (use.gpu, use.memory) == (0, 0)
        assert nv.nvmlDeviceGetComputeMode(card) == nv.NVML_COMPUTEMODE_DEFAULT
        assert nv.nvmlDeviceGetTopologyCommonAncestor(card, other) == nv.NVML_TOPOLOGY_HOSTBRIDGE
        assert nv.nvmlDeviceGetP2PStatus(card, other, 2) != 0                 # NVLink
        assert nv.nvmlDeviceGetP2PStatus(card, other, 0) == 0                 # reads
        near = nv.nvmlDeviceGetCpuAffinity(card, 16)
        assert {c for c in range(1024) if near[c // 64] >> c % 64 & 1} == os.sched_getaffinity(0)
        assert nv.nvmlUnitGetCount() == 0
        assert nv.nvmlSystemGetProcessName(os.getpid())
        """,
        DEVICES="2",
        DRIVER="12040",
    )
    assert "not implemented" not in result.stderr


def test_what_a_simulated_card_lacks_is_not_supported(simgpu):
    result = watch(
        simgpu,
        """
        card = nv.nvmlDeviceGetHandleByIndex(0)
        for name, *args in [("Temperature", 0), ("PowerUsage",), ("FanSpeed",), ("ClockInfo", 0), ("MaxClockInfo", 0), ("EccMode",),
                            ("TotalEnergyConsumption",), ("EncoderUtilization",), ("DecoderUtilization",), ("MigMode",), ("Serial",),
                            ("EnforcedPowerLimit",), ("PerformanceState",), ("NvLinkState", 0), ("PcieThroughput", 0), ("VbiosVersion",)]:
            try:
                getattr(nv, "nvmlDeviceGet" + name)(card, *args)
            except nv.NVMLError_NotSupported:
                continue
            raise AssertionError(name)
        field = nv.nvmlDeviceGetFieldValues(card, [nv.NVML_FI_DEV_MEMORY_TEMP])[0]
        assert field.nvmlReturn == nv.NVML_ERROR_NOT_SUPPORTED
        """,
    )
    assert "not implemented" not in result.stderr, "an answer, not a stub"


def test_processes_and_memory_follow_the_machine(simgpu):
    watch(
        simgpu,
        """
        card = nv.nvmlDeviceGetHandleByIndex(0)
        def seen(kind="Compute"):
            return [(p.pid, p.usedGpuMemory) for p in getattr(nv, f"nvmlDeviceGet{kind}RunningProcesses")(card)]
        assert seen() == []
        child = subprocess.Popen([sys.executable, "-c", "from simgpu_client import *; start(); alloc(40 * MIB); print('have', flush=True); time.sleep(60)"],
                                 stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "have\\n"
        start()
        p = alloc(16 * MIB)
        assert sorted(seen()) == sorted([(child.pid, 40 * MIB), (os.getpid(), 16 * MIB)])
        assert seen("Graphics") == seen("MPSCompute") == []
        assert nv.nvmlDeviceGetMemoryInfo(card).used == 56 * MIB == used()
        child.kill(); child.wait()
        assert seen() == [(os.getpid(), 16 * MIB)] and nv.nvmlDeviceGetMemoryInfo(card).used == 16 * MIB
        free(p)
        assert seen() == []
        """,
    )


def test_every_version_of_the_process_list(simgpu):
    """v1 has no instance ids; a list that is too small is told its size; the newest form holds all kinds."""
    watch(
        simgpu,
        """
        class V1(C.Structure): _fields_ = [("pid", C.c_uint), ("bytes", C.c_ulonglong)]
        class V2(C.Structure): _fields_ = [*V1._fields_, ("gpu", C.c_uint), ("compute", C.c_uint)]
        class Detail(C.Structure): _fields_ = [*V2._fields_, ("protected", C.c_ulonglong)]
        class Details(C.Structure): _fields_ = [("version", C.c_uint), ("mode", C.c_uint), ("count", C.c_uint), ("list", C.POINTER(Detail))]
        lib, card = C.CDLL("libnvidia-ml.so.1"), nv.nvmlDeviceGetHandleByIndex(0)
        start()
        alloc(4 * MIB)
        for suffix, kind in (("", V1), ("_v2", V2), ("_v3", V2)):
            ask = getattr(lib, "nvmlDeviceGetComputeRunningProcesses" + suffix)
            n = C.c_uint(0)
            assert ask(card, C.byref(n), None) == nv.NVML_ERROR_INSUFFICIENT_SIZE and n.value == 1
            out = (kind * 2)()
            n.value = 2
            assert ask(card, C.byref(n), out) == 0 and (n.value, out[0].pid, out[0].bytes) == (1, os.getpid(), 4 * MIB)
            assert kind is V1 or (out[0].gpu, out[0].compute) == (0xFFFFFFFF, 0xFFFFFFFF)
            assert out[1].pid == 0
        list_, details = (Detail * 1)(), Details()
        for version, mode, room, want in ((0, 0, 1, 25), (C.sizeof(Details) | 1 << 24, 9, 1, 2), (C.sizeof(Details) | 1 << 24, 0, 0, 7),
                                          (C.sizeof(Details) | 1 << 24, 3, 1, 0), (C.sizeof(Details) | 1 << 24, 1, 1, 0)):
            details = Details(version, mode, room, list_)
            assert lib.nvmlDeviceGetRunningProcessDetailList(card, C.byref(details)) == want, (mode, room)
            assert want or details.count == (mode == 3)
        """,
    )


def test_bad_arguments_and_order(simgpu):
    """Every exported entry, uninitialised and with NULL everywhere: an error code, no crash."""
    result = watch(
        simgpu,
        """
        import re
        lib = C.CDLL("libnvidia-ml.so.1")
        path = next(line.split()[-1] for line in open("/proc/self/maps") if "libnvidia-ml" in line)
        names = sorted({m.decode() for m in re.findall(rb"nvml[A-Z]\\w+", open(path, "rb").read())})
        names = [n for n in names if hasattr(lib, n) and not n.startswith(("nvmlInit", "nvmlShutdown", "nvmlErrorString"))]
        assert len(names) > 300
        free_of_init = {"nvmlSystemGetCudaDriverVersion", "nvmlSystemGetCudaDriverVersion_v2"}
        nulls = [None] * 8
        for name in names:
            code = getattr(lib, name)(*nulls)
            assert code in (2, 3), (name, code)          # invalid argument, or not supported
            if name.startswith("nvmlDevice") and "GetCount" not in name:
                assert getattr(lib, name)(C.c_void_p(8), *nulls) in (2, 3), f"{name} of a device that is none"
        nv.nvmlShutdown()
        for name in names:
            code = getattr(lib, name)(*nulls)
            assert code in (1, 3) or name in free_of_init, (name, code)
        lib.nvmlErrorString.restype = C.c_char_p
        assert lib.nvmlErrorString(3) == b"The requested operation is not available on target device"
        assert lib.nvmlErrorString(12345) == b"Unknown Error"
        """,
    )
    assert result.returncode == 0
    simgpu.stub_log.unlink()  # most of them are stubs, which is not what this is about
