"""Floating-point operations of a function, counted in its jaxpr.

XLA's own cost analysis takes the body of a loop once; here a scan counts as often as it runs.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

from ugc_jax.data.schema import Batch
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.train.state import Setup, abstract_state
from ugc_jax.train.step import train_step


class Flops(NamedTuple):
    """total: of matrix products and convolutions, 2 for a multiply-add.

    loops: `while` loops, of which nobody knows how often they run; each is counted once.
    """

    total: float
    loops: int


def step_flops(
    setup: Setup,
    batch: Batch | Any,
    remat: bool = False,
    make_step: Callable[[Setup], Callable] = train_step,
) -> float:
    """Operations of one train step on all devices together, without running it.

    batch: of arrays or jax.ShapeDtypeStructs, the global one. remat: with what the backward pass
    computes again (but for the head's logits, which the loss always computes twice): the operations
    executed. Without, those the model needs: what MFU is measured by (arXiv 2204.02311, app. B).
    make_step: Setup -> the jitted step, where it is not that of SFT.
    Attention is counted as XLA computes it, in blocks of the causal triangle.
    """
    setup = countable(setup)
    if not remat:
        setup = dataclasses.replace(setup, compute=dataclasses.replace(setup.compute, remat="none"))
    step, state = make_step(setup), abstract_state(setup)
    with jax.set_mesh(setup.mesh):
        return traced_flops(step.trace(state, batch), setup.model)


def countable(setup: Setup) -> Setup:
    """The same without the kernels, which count as if they skipped nothing."""
    return dataclasses.replace(setup, compute=dataclasses.replace(setup.compute, attention="xla"))


def traced_flops(program: jax.stages.Traced, model: OmniConfig) -> float:
    """Operations of a program of this model on all devices together; a `while` loop's, once."""
    # Only the vision encoder branches: into attention to whole grids or inside windows.
    full = len(model.vision.fullatt_block_indexes) / model.vision.depth
    return _of_jaxpr(program.jaxpr.jaxpr, full).total


def count_flops(function, *args, costly: float = 1.0) -> Flops:
    """Count what `function(*args)` executes; it is only traced, args may be jax.ShapeDtypeStructs.

    costly: how often `jax.lax.cond` takes the costliest of its branches and not the cheapest, of
      those that hold products; 1 is an upper bound.
    A Pallas kernel counts as if it skipped none of its blocks.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, costly)


def _of_jaxpr(jaxpr: core.Jaxpr, costly: float) -> Flops:
    parts = [_of_equation(equation, costly) for equation in jaxpr.eqns]
    return Flops(sum(part.total for part in parts), sum(part.loops for part in parts))


def _of_equation(equation: core.JaxprEqn, costly: float) -> Flops:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return _products(equation, math.prod(left[axis] for axis in contracted))
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return _products(equation, math.prod(kernel) // features)
    inner = [_of_jaxpr(jaxpr, costly) for jaxpr in _jaxprs(params.values())]
    if name == "cond":
        inner = sorted(part for part in inner if part.total) or [Flops(0.0, 0)]
        total = costly * inner[-1].total + (1 - costly) * inner[0].total
        return Flops(total, inner[-1].loops)
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "pallas_call":
        times = math.prod(params["grid_mapping"].grid)
    elif name == "shard_map":  # its jaxpr is one device's
        times = params["mesh"].size
    total = times * sum(part.total for part in inner)
    return Flops(total, sum(part.loops for part in inner) + (name == "while"))


def _products(equation: core.JaxprEqn, depth: int) -> Flops:
    """Of a product whose every output is a sum of `depth` terms."""
    return Flops(2.0 * depth * math.prod(equation.outvars[0].aval.shape), 0)


def _jaxprs(values) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
