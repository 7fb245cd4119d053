# SPDX-License-Identifier: Apache-2.0
"""spillshim: unmodified CUDA programs keep running past the end of VRAM.

The Python half: the command line, and the helpers that find and describe the native parts. What runs inside
the program under the shim is csrc/ alone; nothing here is loaded there.
"""

from importlib import metadata as _metadata

try:
    __version__ = _metadata.version("spillshim")
except _metadata.PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "0+not-installed"

__all__ = ["__version__"]
