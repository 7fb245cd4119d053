# SPDX-License-Identifier: Apache-2.0
"""Generate the simulated driver's tables from NVIDIA's headers. Called by CMakeLists.txt of this folder.

python gen_stubs.py HEADER_DIR OUTPUT_DIR writes
  entries.c          every driver entry: a frame (call.h) around the code, which is sim_do_NAME
  entry_names.h      the names of that code: a file that includes it writes `cuMemAlloc_v2` and defines sim_do_cuMemAlloc_v2
  stubs.c            a weak sim_do_NAME for every entry (a real one, anywhere in the library, takes its place), and which are stubs
  nvml_stubs.c       the same for NVML
  nvml_errors.inc    code and text of each nvmlReturn_t
  getproc_rows.inc   the rows of cuGetProcAddress
  errors.inc         code, name and text of each CUresult

Rule: which ABI a PFN_name_vVERSION type belongs to follows from the order of versions: the n-th version of a name is
the symbol with suffix _vN; a per-thread type belongs to the newest symbol that existed at its version. Every guess is
checked against the declarations; one that no header knows stops the build. Parameters come from the PFN_ types too.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

TYPEDEFS = ["cudaTypedefs.h", "cudaGLTypedefs.h", "cudaEGLTypedefs.h", "cudaVDPAUTypedefs.h", "cudaProfilerTypedefs.h"]
HEADERS = ["cuda.h", "cudaGL.h", "cudaEGL.h", "cudaVDPAU.h", "cudaProfiler.h"]
NOT_EXPORTED = {"cuGetProcAddress_v2_ptsz", "cuWGLGetDevice"}
# Rows that no PFN_ type tells of. cuda.h renames this one since 12.0, and older cuda-bindings ask for it by this name and version.
ALSO = [("cuGraphInstantiate", 11040, False, "cuGraphInstantiateWithFlags")]
PFN = re.compile(r"\*\s*PFN_(cu\w+?)_v(\d+)(_ptds|_ptsz)?\s*\)")


def read(folder: Path, names: list[str]) -> str:
    """The text of those of the headers that are there (some wheels lack the graphics ones)."""
    return "\n".join((folder / n).read_text(errors="replace") for n in names if (folder / n).exists())


def declared_symbols(text: str) -> set[str]:
    """Every ELF name that the headers declare, after their own renaming macros.

    Left out: an inline function that a macro names, and what exists on another system only.
    """
    names = set(re.findall(r"CUresult\s+CUDAAPI\s+(cu\w+)\s*\(", text))
    for line in re.findall(r"^\s*#\s*define\s+cu\w+\s+(.+)$", text, re.M):
        for ptds, ptsz, plain in re.findall(r"__CUDA_API_PTDS\((cu\w+)\)|__CUDA_API_PTSZ\((cu\w+)\)|^(cu\w+)", line.strip()):
            if plain:
                names.add(plain)
            else:
                base = ptds or ptsz
                names.update({base, base + ("_ptds" if ptds else "_ptsz")})
    return names - NOT_EXPORTED


def rows(folder: Path, declared: set[str]) -> list[tuple[str, int, bool, str]]:
    """(name, version, per thread, symbol) for every typed entry."""
    plain: dict[str, set[int]] = defaultdict(set)
    threaded: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for name, version, suffix in PFN.findall(read(folder, TYPEDEFS)):
        if suffix:
            threaded[name].add((int(version), suffix))
        else:
            plain[name].add(int(version))
    found, wrong = [], []
    # cudaProfiler.h is in no wheel; its three entries have one version each.
    unchecked = set(re.findall(PFN, read(folder, ["cudaProfilerTypedefs.h"])))
    unchecked = set() if (folder / "cudaProfiler.h").exists() else {n for n, _, _ in unchecked}
    for name in sorted((set(plain) | set(threaded)) - NOT_EXPORTED):
        versions = sorted(plain[name])

        def symbol(order: int, name: str = name) -> str:
            return name if order == 1 else f"{name}_v{order}"

        for order, version in enumerate(versions, 1):
            found.append((name, version, False, symbol(order)))
        for version, suffix in sorted(threaded[name]):
            order = sum(v <= version for v in versions)
            found.append((name, version, True, symbol(max(order, 1)) + suffix))
    found += [row for row in ALSO if row[3] in declared]
    for name, version, _, sym in found:
        if sym not in declared and name not in unchecked:
            wrong.append(f"{name} {version} -> {sym}")
    if wrong:
        sys.exit("gen_stubs.py: no header declares: " + ", ".join(wrong))
    return found


def parameters(folder: Path) -> dict[tuple[str, int, bool], list[tuple[str, str]]]:
    """(type, parameter) of each parameter of (name, version, per thread).

    Only of entries whose types cuda.h defines: those of graphics libraries have headers that are not here, and are stubs.
    """
    found = {}
    text = read(folder, ["cudaTypedefs.h"]) + "\n".join(
        line for line in read(folder, TYPEDEFS[1:]).splitlines() if line.rstrip().endswith("(void);")
    )
    declared = re.compile(r"CUresult\s*\(CUDAAPI\s*\*\s*PFN_(cu\w+?)_v(\d+)(_ptds|_ptsz)?\s*\)\s*\(([^;]*)\);")
    for name, version, suffix, text in declared.findall(text):
        listed = [] if text.strip() == "void" else [part.strip() for part in text.split(",")]
        pairs = []
        for part in listed:
            split = re.fullmatch(r"(.*?)(\w+)((?:\[\w*\])?)", part, re.S)
            if not split:
                sys.exit(f"gen_stubs.py: cannot read the parameter {part!r} of {name}")
            pairs.append((split[1].strip() + (" *" if split[3] else ""), split[2]))
        found[name, int(version), bool(suffix)] = pairs
    return found


def frame(symbol: str, index: int, pairs: list[tuple[str, str]]) -> str:
    """The exported entry: what call.h does before and after, and the stream that the call names, for the trace."""
    taken = ", ".join(f"{kind} {name}" for kind, name in pairs) or "void"
    passed = ", ".join(name for _, name in pairs)
    streams = [name for kind, name in pairs if kind == "CUstream"]
    configs = [name for kind, name in pairs if kind == "const CUlaunchConfig *"]
    if streams:
        where = f"sim_stream_named({streams[0]}, {int(symbol.endswith(('_ptsz', '_ptds')))})"
    elif configs:
        where = f"{configs[0]} ? sim_stream_named({configs[0]}->hStream, {int(symbol.endswith('_ptsz'))}) : SIM_NO_STREAM"
    else:
        where = "SIM_NO_STREAM"
    return f"FRAME({symbol}, ({taken}), ({passed}), {index}, {where})"


def write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(["/* Generated by gen_stubs.py. */", *lines, ""]))


def main(folder: Path, out: Path) -> None:
    """Write the files."""
    text = read(folder, HEADERS)
    declared = declared_symbols(text)
    table = rows(folder, declared)
    symbols = declared | {r[3] for r in table}
    out.mkdir(parents=True, exist_ok=True)
    signatures = parameters(folder)
    of_symbol = {s: signatures[n, v, t] for n, v, t, s in table if (n, v, t) in signatures}
    order = sorted(symbols)
    write(
        out / "entries.c",
        ["#define SIM_FRAMES", '#include "call.h"', '#include "entry_frame.h"', "const char *const sim_entry_names[] = {"]
        + [f'"{s}",' for s in order]
        + ["};", "const unsigned sim_entry_count = sizeof sim_entry_names / sizeof *sim_entry_names;"]
        + [frame(s, i, of_symbol.get(s, [])) for i, s in enumerate(order)],
    )
    write(
        out / "entry_names.h",
        [f"CUresult sim_do_{s}({', '.join(kind for kind, _ in of_symbol.get(s, [])) or 'void'});" for s in order]
        + ["#ifndef SIM_FRAMES"]
        + [f"#define {s} sim_do_{s}" for s in order]
        + ["#endif"],
    )
    # A stub without known parameters must stay one: a real body would not agree with its frame, so that it may not replace it.
    write(
        out / "stubs.c",
        ["int sim_stub(const char *name);"]
        + [
            f'static int stub_{s}(void) {{ return sim_stub("{s}"); }}\n'
            f'int sim_do_{s}(void) __attribute__(({"weak, " if s in of_symbol else ""}alias("stub_{s}")));'
            for s in order
        ]
        + ["int sim_is_stub(unsigned index);", "int sim_is_stub(unsigned index)", "{", "    switch (index) {"]
        + [f"    case {i}: return sim_do_{s} == stub_{s};" for i, s in enumerate(order)]
        + ["    default: return 0;", "    }", "}"],
    )
    write(
        out / "getproc_rows.inc",
        ["#ifdef SIM_ROW_DECLARE"]
        # Under other names, so that no declaration contradicts cuda.h.
        + [f'extern void sim_entry_{s}(void) __asm__("{s}");' for s in sorted({r[3] for r in table})]
        + ["#else"]
        + [f'{{"{n}", {v}, {int(t)}, (void *)sim_entry_{s}}},' for n, v, t, s in sorted(table)]
        + ["#endif"],
    )
    enum = re.search(r"typedef enum cudaError_enum \{(.*?)\}\s*CUresult", text, re.S)
    if not enum:
        sys.exit("gen_stubs.py: cuda.h has no enum CUresult")
    errors = []
    for comment, name in re.findall(r"/\*\*(.*?)\*/\s*(CUDA_\w+)\s*=", enum.group(1), re.S):
        words = re.sub(r"[*\s]+", " ", comment).replace("::", "").replace("\\p ", "").strip()
        sentence = words.split(". ")[0].rstrip(".").replace("\\", "").replace('"', "'")
        errors.append(f'{{{name}, "{name}", "{sentence}"}},')
    write(out / "errors.inc", errors)
    weak = '__attribute__((weak, visibility("default")))'
    nvml_text = read(folder, ["nvml.h"])
    write(
        out / "nvml_errors.inc",
        [f'{{{n}, "{t.strip()}"}},' for n, t in re.findall(r"^\s*(NVML_(?:SUCCESS|ERROR_\w+))\s*=[^/\n]*//!<\s*(.*)$", nvml_text, re.M)],
    )
    nvml = set(re.findall(r"nvmlReturn_t\s+DECLDIR\s+(nvml\w+)\s*\(", nvml_text))
    write(
        out / "nvml_stubs.c",
        ["int sim_nvml_stub(const char *name);"]
        + [f'{weak} int {s}(void) {{ return sim_nvml_stub("{s}"); }}' for s in sorted(nvml)],
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: gen_stubs.py HEADER_DIR OUTPUT_DIR")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
