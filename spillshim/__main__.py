# SPDX-License-Identifier: Apache-2.0
"""`python -m spillshim`: the same program as the `spillshim` command."""

from spillshim.cli import main

if __name__ == "__main__":
    main(prog_name="spillshim")
