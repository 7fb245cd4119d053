# SPDX-License-Identifier: Apache-2.0
"""The GPU proof kit: runs the experiments of tests/gpu one after the other and writes down what the device did.

Started by scripts/gpu-check as `python tests/gpu/kit`. Needs the standard library only; rich makes the table prettier.
  contract.py  what an experiment says and how it is found      runner.py   one child with a time limit
  build.py     compilers, headers, native parts                 device.py   what the machine is
  check.py     the run: order, budget, rows, totals             report.py   the JSON file
  beliefs.py   the ids in csrc/simgpu/BELIEFS.md                table.py    what is printed meanwhile
"""
