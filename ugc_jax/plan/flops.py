"""Floating-point operations of a function, counted in its jaxpr.

XLA's own cost analysis counts the body of a loop once; here a scan counts as often as it runs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

from ugc_jax.data.batching import Batch
from ugc_jax.train.state import Setup, abstract_state
from ugc_jax.train.step import train_step


def step_flops(
    setup: Setup, batch: Batch | Any, remat: bool = False, step: Callable = train_step
) -> float:
    """Return the operations of one train step on all devices together, without running it.

    batch: the global one, of arrays or jax.ShapeDtypeStructs. remat: True counts the operations
    executed, with those that the backward pass recomputes; False only those that the model needs,
    by which MFU is measured (arXiv 2204.02311, app. B). The head's logits, which the loss always
    computes twice, count twice in both. step: `step(state, batch, setup=setup)`, if not that of
    SFT. Attention is counted as XLA computes it, in blocks of the causal triangle.
    """
    setup = countable(setup)
    if not remat:
        setup = dataclasses.replace(setup, compute=dataclasses.replace(setup.compute, remat="none"))
    # Outside the mesh: it makes small arrays, and the devices of a topology hold none.
    state = abstract_state(setup)
    program = jax.jit(functools.partial(step, setup=setup))
    with jax.set_mesh(setup.mesh):
        traced = program.trace(state, batch)
    return program_flops(traced, setup.model.costly_share)


def countable(setup: Setup) -> Setup:
    """Return the setup without the kernels, which would count as if they skipped no block."""
    return dataclasses.replace(setup, compute=dataclasses.replace(setup.compute, attention="xla"))


def program_flops(program: jax.stages.Traced, costly: float = 1.0) -> float:
    """Return the operations of a program's matrix products and convolutions, on all devices.

    A multiply-add is 2. A `while` loop counts once, as its number of iterations is unknown, and a
    Pallas kernel as if it skipped no block. costly: share of the runs of a `jax.lax.cond` that take
    the costliest, not the cheapest, of its branches with products; 1 gives an upper bound.
    """
    return _of_jaxpr(program.jaxpr.jaxpr, costly)


def _of_jaxpr(jaxpr: core.Jaxpr, costly: float) -> float:
    return sum(_of_equation(equation, costly) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn, costly: float) -> float:
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
        branches = sorted(filter(None, inner)) or [0.0]
        return costly * branches[-1] + (1 - costly) * branches[0]
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "pallas_call":
        times = math.prod(params["grid_mapping"].grid)
    elif name == "shard_map":  # its jaxpr is one device's
        times = params["mesh"].size
    return times * sum(inner)


def _products(equation: core.JaxprEqn, depth: int) -> float:
    """Operations of a product each of whose outputs is a sum of `depth` terms."""
    return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def _jaxprs(values) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
