# SPDX-License-Identifier: Apache-2.0
"""`spillshim run --sim` for programs that bring libraries of their own, and what the client tests themselves rest on."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.clients

ASKS = """
int cudaRuntimeGetVersion(int *version);
int printf(const char *, ...);
int main(void)
{
    int version = 0;
    cudaRuntimeGetVersion(&version);
    return !printf("%d\\n", version);
}
"""


@pytest.mark.parametrize("major", [12, 13])
def test_a_runtime_that_a_program_brings_by_rpath_is_kept_out(spillshim, c_program, tmp_path, major):
    """DT_RPATH goes before LD_LIBRARY_PATH; PyTorch's libraries have it."""
    name = f"libcudart.so.{major}"
    nodes = tmp_path / "nodes.map"
    nodes.write_text(f"{name} {{ global: *; }};\n")  # as NVIDIA's has it
    decoy = c_program(
        "int cudaRuntimeGetVersion(int *version);\nint cudaRuntimeGetVersion(int *version) { return !(*version = 1); }\n",
        shared=True, link_libcuda=False, flags=[f"-Wl,-soname,{name}", f"-Wl,--version-script={nodes}"], name="decoy",
    )  # fmt: skip
    (tmp_path / name).write_bytes(decoy.read_bytes())
    links = [f"-L{tmp_path}", f"-l:{name}", f"-Wl,--disable-new-dtags,-rpath,{tmp_path}"]
    program = c_program(ASKS, link_libcuda=False, flags=links, name="asks")
    assert spillshim("run", "--quiet", "--", program).ok().stdout == "1\n"
    simulated = spillshim("run", "--quiet", "--sim", "vram=64M", "--", program).ok().stdout
    assert int(simulated) // 1000 == major


def test_a_stub_that_is_reached_names_itself_and_fails_the_test(run_sim, c_program, sim_dir, calls):
    source = "int cudaDeviceFlushGPUDirectRDMAWrites(int target, int scope);\nint main(void)\n{\n"
    source += "    return cudaDeviceFlushGPUDirectRDMAWrites(0, 0) == 801 ? 0 : 1;\n}\n"
    program = c_program(source, link_libcuda=False, flags=[f"-L{sim_dir}", "-l:libcudart.so.13"], name="reaches")
    result = run_sim([program], shim=False, sim=calls.sim).ok()
    assert "simgpu: cudaDeviceFlushGPUDirectRDMAWrites is not implemented" in result.stderr
    with pytest.raises(AssertionError, match="cudaDeviceFlushGPUDirectRDMAWrites"):
        calls.no_stub()


def test_the_table_of_calls_notices_more_and_less(tmp_path, monkeypatch, calls):
    table = tmp_path / "CALLS.md"
    monkeypatch.setitem(type(calls).check.__globals__, "TABLE", table)
    monkeypatch.setenv("SPILLSHIM_WRITE_CALLS", "1")
    calls.trace.write_text("1 1 0 - cuInit\n1 1 0 - cuMemAlloc_v2\n")
    calls.names.write_text("cudaMalloc\ncublasCreate_v2\n")
    calls.check("a client")
    monkeypatch.delenv("SPILLSHIM_WRITE_CALLS")
    calls.check("a client")
    calls.names.write_text("cudaMalloc\ncublasCreate_v2\ncudaFree\n")
    with pytest.raises(AssertionError, match=r"calls \['cudaFree'\]"):
        calls.check("a client")
    calls.names.write_text("cudaMalloc\n")
    with pytest.raises(AssertionError, match=r"no longer \['cublasCreate_v2'\]"):
        calls.check("a client")
    with pytest.raises(AssertionError, match="no section"):
        calls.check("another client")
