"""Floating-point operations of matrix products, counted from the traced program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Counts the operations (2 per multiply-add) of all matrix products in `function(*args)`, by tracing it.

    A loop body counts once per iteration, a conditional as its most expensive branch.

    Args:
      function: a function that JAX can trace.
      *args: arrays or `jax.ShapeDtypeStruct`s.

    Raises:
      NotImplementedError: if a matrix product is inside a while loop, whose number of iterations is unknown.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            # Each element of the result is a sum over the contracted axes, of the size of their product.
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif name == "scan":
            total += params["length"] * _count(params["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        elif name == "while":
            if _count(params["body_jaxpr"].jaxpr):
                raise NotImplementedError("a matrix product in a while loop, whose number of iterations is unknown")
        else:
            # Other primitives may contain programs: jit, checkpoint, custom derivatives, shard_map.
            for value in params.values():
                total += sum(_count(inner) for inner in _jaxprs(value))
    return total


def _jaxprs(value: Any) -> list[Jaxpr]:
    """Returns the jaxprs in a parameter of an equation, closed or open."""
    if isinstance(value, tuple | list):
        programs = []
        for item in value:
            programs += _jaxprs(item)
        return programs
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    return [value] if isinstance(value, Jaxpr) else []
