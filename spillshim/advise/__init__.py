# SPDX-License-Identifier: Apache-2.0
"""What `spillshim advise` knows: how fast a model of GGUF files would run on a machine, by arithmetic.

arithmetic (the formulas, pure) <- plan (ways to place a model; which is best) <- spillshim.cli.advise
header (the bytes of a GGUF file) <- model (layers, experts, KV cache); rates (of the machine, each with its source).
Rule: no figure from here is a measurement of a model, and every output says so.
"""
