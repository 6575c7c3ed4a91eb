"""Matrix products, and how kernels lie in memory for them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from trocr_jax.modeling.policy import INT8, PANEL, Layout, Policy

Array = jax.Array

# From so many rows on a product with panels is slower than one with an [in, out] kernel.
MANY_ROWS = 48


def pays_in_panels(rows: int, layout: Layout) -> bool:
    """Whether a product of so many rows is faster with a kernel's panels than with the same kernel as [in, out]."""
    return (2 * rows if layout.startswith(INT8) else rows) < MANY_ROWS


def panel_shapes(in_features: int, features: int, parts: int) -> list[tuple[int, int, int]]:
    """The shapes [panels, in, PANEL] of a kernel's parts in panels, at most so many of them.

    In:  1024 -> 300 features, 3 parts
    Out: [(2, 1024, 64), (2, 1024, 64), (1, 1024, 64)]
    """
    panels = -(-features // PANEL)
    parts = min(parts, panels)
    return [(panels // parts + (i < panels % parts), in_features, PANEL) for i in range(parts)]


def arrange(kernel: Any, policy: Policy, layout: Layout, xp: Any) -> Any:
    """A kernel [in, out] in another layout, by numpy or jax.numpy."""
    order = layout.removeprefix(INT8)
    if order != "panels":
        return kernel if order == "in_out" else kernel.T
    in_features, features = kernel.shape
    if features % PANEL:
        kernel = xp.pad(kernel, ((0, 0), (0, -features % PANEL)))
    panels = kernel.reshape(in_features, -1, PANEL).swapaxes(0, 1)
    parts, start = [], 0
    for shape in panel_shapes(in_features, features, policy.parts):
        parts.append(panels[start : start + shape[0]])
        start += shape[0]
    return tuple(parts)


def assemble(parts: Sequence[Array], features: int | None = None) -> Array:
    """The parts of a kernel in panels, each [panels, in, PANEL] -> [in, features], by default with the padding."""
    return jnp.concatenate([part.swapaxes(0, 1).reshape(part.shape[1], -1) for part in parts], axis=1)[:, :features]


def quantized(kernel: Any, axis: int, xp: Any) -> tuple[Any, Any]:
    """(8-bit integers, the scales along `axis` that give the numbers back up to rounding), by numpy or jax.numpy."""
    scale = xp.max(xp.abs(kernel), axis=axis, keepdims=True) / 127
    scale = xp.where(scale == 0, xp.ones_like(scale), scale)
    return xp.round(kernel / scale).astype(xp.int8), scale


def matmul(x: Array, kernel: Any, policy: Policy, layout: Layout) -> Array:
    """X [..., in] times a kernel -> [..., out], in the policy's result dtype; panels' padding is part of `out`.

    With a kernel of integers the result is still to be multiplied by its scales.
    """
    rows = x.size // x.shape[-1]
    flat = x.reshape(rows, x.shape[-1])  # [..., in] -> [rows, in]
    if rows < policy.min_rows:
        flat = jnp.pad(flat, ((0, policy.min_rows - rows), (0, 0)))
    times = functools.partial(product, policy=policy)
    y = _times_int8(flat, kernel, policy, layout) if layout.startswith(INT8) else _times(flat, kernel, layout, times)
    return y[:rows].reshape(*x.shape[:-1], y.shape[-1])  # [rows, out] -> [..., out]


def _times_int8(x: Array, kernel: Any, policy: Policy, layout: Layout) -> Array:
    # Two integers a number, the second for what the first leaves: as exact as 16 bits, and one product of twice the
    # rows. With one alone, ids differ in three to four times as many lines.
    coarse, scale = quantized(x, 1, jnp)
    fine = jnp.round((x / scale - coarse) * 254).astype(jnp.int8)
    times = functools.partial(jnp.einsum, preferred_element_type=jnp.int32)
    y = _times(jnp.concatenate([coarse, fine]), kernel, layout.removeprefix(INT8), times)
    coarse, fine = jnp.split(y.astype(policy.result), 2)
    return (coarse + fine / 254) * scale


def _times(x: Array, kernel: Any, order: str, times: Callable[[str, Array, Array], Array]) -> Array:
    """X [rows, in] times a kernel, by a function that multiplies as einsum does -> [rows, out]."""
    if order == "out_in":
        return times("ri,oi->ro", x, kernel)
    if order == "panels" and x.shape[0] < MANY_ROWS:
        y = [times("pri,pio->pro", jnp.broadcast_to(x, (panels.shape[0], *x.shape)), panels) for panels in kernel]
        # [panels, rows, PANEL] -> [rows, panels * PANEL]
        return jnp.concatenate(y).swapaxes(0, 1).reshape(x.shape[0], -1)
    return times("ri,io->ro", x, assemble(kernel) if order == "panels" else kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(equation: str, x: Array, y: Array, policy: Policy) -> Array:
    """The einsum of x and y, rounded to the policy's operand dtype, in its result dtype.

    Its gradients are products of rounded factors in the result dtype as well: JAX's own rule multiplies by the
    unrounded gradient, which in bfloat16 takes a matrix unit twice the time or more, and then rounds a weight's. Every
    letter of one factor must stand in the other or in the result. There is no forward-mode derivative (jax.jvp).
    """
    x, y = x.astype(policy.operand), y.astype(policy.operand)
    return jnp.einsum(equation, x, y, precision=policy.precision, preferred_element_type=policy.result)


def _product_forward(equation: str, x: Array, y: Array, policy: Policy) -> tuple[Array, tuple[Array, ...]]:
    # Empty arrays remember the dtypes.
    factors = (x.astype(policy.operand), y.astype(policy.operand), jnp.zeros(0, x.dtype), jnp.zeros(0, y.dtype))
    return product(equation, x, y, policy), factors


def _product_backward(
    equation: str, policy: Policy, factors: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array]:
    x, y, x_dtype, y_dtype = factors
    of_x, of_y, of_result = re.split(",|->", equation)
    gradient = gradient.astype(policy.operand)
    # With a kernel of two axes it is a product like the one that gave the result.
    times = product if len(of_y) == 2 else _widened_product
    return (
        times(f"{of_result},{of_y}->{of_x}", gradient, y, policy).astype(x_dtype.dtype),
        _widened_product(f"{of_result},{of_x}->{of_y}", gradient, x, policy).astype(y_dtype.dtype),
    )


def _widened_product(equation: str, x: Array, y: Array, policy: Policy) -> Array:
    """`product`, on CPU of rounded factors in the result dtype.

    XLA's CPU backend of jax 0.10 fails on some bfloat16 products that contract the rows, and those that are a kernel's
    gradient are no faster.
    """
    return lax.platform_dependent(
        x,
        y,
        cpu=lambda x, y: jnp.einsum(equation, x.astype(policy.result), y.astype(policy.result), precision="highest"),
        default=lambda x, y: product(equation, x, y, policy),
    )


product.defvjp(_product_forward, _product_backward)
