"""Precision policies: which dtype each part of the network computes in, and how weights lie in memory at run time."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from trocr_jax.sharding import platform_of

# How a kernel lies in memory: Flax's [in, out], [out, in], or [out / PANEL, in, PANEL], filled up with zeros; or the
# first or last as 8-bit integers, with a scale for each output.
Layout = Literal["in_out", "out_in", "panels", "int8_in_out", "int8_panels"]
INT8 = "int8_"  # what the latter begin with
PANEL = 64


@dataclasses.dataclass(frozen=True)
class Policy:
    """How the network computes. Hashable, so that it can be a field of a linen module and static under jit.

    `operand` is the dtype that both sides of every matrix product are rounded to; products accumulate and arrive in
    `result`, which is also the dtype of the residual stream, norms, softmax, logits and scores (float32 at least).
    `param_dtype` is what `init` creates. With `remat` a gradient computes what is inside a block a second time rather
    than keep it. The layouts describe the tree that `prepare` makes: canonical trees have separate query, key and
    value kernels, all in Flax's [in, out] layout.
    """

    name: str
    operand: str = "float32"
    precision: lax.Precision = lax.Precision.HIGHEST
    param_dtype: str = "float32"
    # A prepared tree has the decoder's kernels as 8-bit integers; what they multiply is rounded to 16 bits.
    has_int8_decoder: bool = False
    remat: bool = False
    is_prepared: bool = False
    encoder_layout: Layout = "in_out"
    decoder_layout: Layout = "in_out"
    head_layout: Layout = "in_out"
    parts: int = 1  # of a kernel in panels, each an array of its own
    # XLA's CPU backend multiplies two rows by panels faster than one, and has no fast bfloat16 product of less than
    # four: rows are padded up to this number.
    min_rows: int = 1
    keeps_products_apart: bool = False  # keep transpositions out of attention's products
    # Encode one image at a time, so that a CPU's caches hold what is being worked on.
    by_image: bool = False
    # Decoding remembers keys and values as they are multiplied, rounded; on CPU, whose backend in jax 0.10 rewrites a
    # whole bfloat16 buffer to update one slot of it, in `result`. The products are the same.
    rounds_cache: bool = False

    @property
    def result(self) -> jnp.dtype:
        """Dtype of everything that is not an operand: float32, or float64 under the float64 policy."""
        return jnp.promote_types(self.operand, jnp.float32)


FLOAT32 = Policy("float32")
FLOAT64 = Policy("float64", operand="float64", param_dtype="float64")
BFLOAT16 = Policy("bfloat16", operand="bfloat16", precision=lax.Precision.DEFAULT)
INT8_DECODER = Policy("int8", has_int8_decoder=True)

POLICIES = {policy.name: policy for policy in (FLOAT32, FLOAT64, BFLOAT16, INT8_DECODER)}


def get_policy(dtype: Any, mesh: Mesh | None = None) -> Policy:
    """The policy of a dtype or its name: "float32" (strict), "bfloat16", "float64" (where x64 is on), "int8" or "auto".

    "int8" is float32 with the decoder's kernels and head as 8-bit integers.

    "auto" is float32 on CPU, where most machines have no fast bfloat16 product, and bfloat16 on GPU and TPU: by the
    mesh's devices, or JAX's default one.
    """
    if not isinstance(dtype, str):
        dtype = jnp.dtype(dtype).name
    if dtype == "auto":
        dtype = "float32" if platform_of(mesh) == "cpu" else "bfloat16"
    if dtype not in POLICIES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {['auto', *POLICIES]}")
    if dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError('dtype "float64" needs 64-bit numbers: call jax.config.update("jax_enable_x64", True) first')
    return POLICIES[dtype]


def prepared(policy: Policy, backend: str | None = None) -> Policy:
    """The policy of the run-time tree on a backend (default: JAX's), to be used with `prepare`.

    On CPU a float32 product of 2 to 16 rows takes a third to two thirds of the time with weights in panels, each of
    which stays in the caches while it meets all rows; in bfloat16, where it gains less and AMX has not been tried with
    it, weights are [out, in]. Where there are many rows, [in, out] is best in float32. GPU and TPU compilers choose
    layouts themselves.
    """
    is_cpu = (backend or platform_of(None)) == "cpu"
    is_half = policy.operand == "bfloat16"
    layout: Layout = "in_out"
    if policy.has_int8_decoder:
        layout = "int8_panels" if is_cpu else "int8_in_out"
    elif is_cpu:
        layout = "out_in" if is_half else "panels"
    return dataclasses.replace(
        policy,
        is_prepared=True,
        encoder_layout="out_in" if is_cpu and is_half else "in_out",
        decoder_layout=layout,
        head_layout="out_in" if layout == "in_out" else layout,  # the former can be a tied embedding's own buffer
        parts=_num_parts() if layout.endswith("panels") else 1,
        min_rows=1 if not is_cpu or policy.has_int8_decoder else 2 if layout == "panels" else 4,
        keeps_products_apart=is_cpu and not is_half,
        by_image=is_cpu,
        rounds_cache=not is_cpu,
    )


def _num_parts() -> int:
    # XLA's CPU backend of jax 0.10 runs a product by panels on one core, and independent operations on a
    # second one only where more than 8 are ready, of which it hands on half at a time.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if cores == 1 else min(8 * cores, 64)
