# SPDX-License-Identifier: Apache-2.0
"""Errors that end a command, each with its exit code. Raised anywhere in the package, printed once by the command line.

Exit codes (as timeout(1) and docker): 1 a check failed, 2 wrong usage, 125 spillshim failed before the program ran,
126 the program is not executable, 127 the program was not found.
"""

EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_SPILLSHIM = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


class SpillshimError(Exception):
    """spillshim itself cannot go on. The message says what happened, with the numbers; `fix` says what to do."""

    exit_code = EXIT_SPILLSHIM

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  {self.fix}" if self.fix else self.message


class ProgramNotFound(SpillshimError):
    """No such program, by path or on PATH."""

    exit_code = EXIT_NOT_FOUND


class ProgramNotExecutable(SpillshimError):
    """The program exists but cannot be executed (a folder, no x permission, a format the kernel does not know)."""

    exit_code = EXIT_NOT_EXECUTABLE


class NotCatchable(SpillshimError):
    """The dynamic loader will not load a preloaded library into this program, so the shim would silently do nothing."""
