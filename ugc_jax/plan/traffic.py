"""What a program moves through memory: of a decode step by its arrays, of any by its compiled text.

`step_bytes` is the least that a decode step reads. `loop_traffic` and `program_traffic` read the
compiler's text (hlo.py) for what the program moves: bytes, kernels, copies, and the largest arrays
that it writes.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax

from ugc_jax.generate.decode import DecodeState
from ugc_jax.plan.hlo import (
    Instruction,
    Program,
    array_bytes,
    begins_collective,
    ends_collective,
    in_memory,
    parts,
    sizes_of,
)

# Instructions that move nothing, or whose bytes count elsewhere.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier",
    "partition-id", "replica-id",
}  # fmt: skip
# Instructions that compute nothing, alone or in a fusion.
_MOVES = {
    "copy", "reshape", "transpose", "slice", "dynamic-slice", "concatenate", "pad",
    "reverse", "broadcast",
}  # fmt: skip
_SLICES = {"slice", "dynamic-slice", "gather"}


class Write(NamedTuple):
    """An array that an instruction writes to the device's memory `times` times a pass."""

    instruction: str
    shape: str
    bytes: int
    times: int
    copies: bool  # whether the instruction only moves data


class Traffic(NamedTuple):
    """One pass through a loop.

    bytes: read and written in the device's memory. kernels: instructions that run on the device.
    copies: those of them that only move data. writes: largest first.
    """

    bytes: int
    kernels: int
    copies: int
    writes: tuple[Write, ...]


def step_bytes(
    params: dict, state: DecodeState, prompt_share: float = 1.0, own_share: float = 1.0
) -> int:
    """Return the bytes of all that one decode step must read: weights and caches, once each.

    params: the thinker's tree, arrays or jax.ShapeDtypeStructs; the encoders are not read, and of
    the token embeddings a row for each row of the state. prompt_share, own_share: of the caches of
    prompts and of generated tokens, the part that holds tokens.
    """
    model = params["model"]
    table = model["embed_tokens"]["weight"]

    def size(tree) -> int:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    caches = size(state.prompt) * prompt_share + size(state.own) * own_share
    weights = size((model["layers"], model["norm"], params["lm_head"]))
    return weights + round(caches) + len(state.done) * table.shape[1] * table.dtype.itemsize


def program_traffic(hlo: str, costly: float = 1.0) -> Traffic:
    """Return the traffic of one run of a program, counted as by `loop_traffic`.

    A loop of unknown length counts once. costly: share of the conditionals' runs, see
    `hlo.Program.weights`.
    """
    program = _Moves(hlo, costly)
    return program.traffic(program.entry)


def loop_traffic(hlo: str) -> Traffic:
    """Return the traffic of one pass through a program's loop of unknown length.

    hlo: `jax.stages.Compiled.as_text()`. Loops of known length inside it count as often as they
    run, and the costliest branch of a conditional. Arrays that a TPU's compiler keeps in another
    memory than its HBM do not count, nor does what a slice or a gather leaves out, nor an array
    that is updated in place. Raises ValueError if there is no such loop.
    """
    program = _Moves(hlo)
    return program.traffic(program.open_loop())


class _Moves(Program):
    """A program, and what it moves. costly: see `Program.weights`."""

    def __init__(self, hlo: str, costly: float = 1.0):
        super().__init__(hlo)
        self.costly = costly
        self.traffic = functools.cache(self._traffic)

    def _traffic(self, name: str) -> Traffic:
        moved, kernels, copies = 0, 0, 0
        writes: list[Write] = []

        def add(part: Traffic, times: float):
            nonlocal moved, kernels, copies
            moved += times * part.bytes
            kernels += times * part.kernels
            copies += times * part.copies
            writes.extend(one._replace(times=one.times * times) for one in part.writes)

        for one in self.instructions(name):
            if one.opcode in _FREE or one.opcode.endswith("-done"):
                continue
            if one.opcode == "while":
                add(self.traffic(one.attribute("body")), self.trips(one) or 1)
            elif one.called:
                for called, share in self.weights(one, self.costly):
                    if share:
                        add(self.traffic(called), share)
            else:
                read, written = self._read(name, one), self._written(name, one)
                copy = self._copies(one)
                write = Write(one.name, one.shape, written, 1, copy)
                add(Traffic(read + written, 1, int(copy), (write,) if written else ()), 1)
        writes.sort(key=lambda one: -one.bytes)
        return Traffic(round(moved), round(kernels), round(copies), tuple(writes))

    def _copies(self, one: Instruction) -> bool:
        if one.opcode != "fusion":
            return one.opcode in _MOVES
        inside = self.instructions(one.attribute("calls"))
        work = [part for part in inside if part.opcode not in _FREE]
        return bool(work) and all(
            self._copies(part) if part.opcode == "fusion" else part.opcode in _MOVES
            for part in work
        )

    def _read(self, computation: str, one: Instruction) -> int:
        """Bytes that an instruction reads from memory."""
        shapes = [self.computations[computation][name].shape for name in one.operands]
        passing = set() if begins_collective(one) else self.passing(one)
        read = 0
        for place, shape in enumerate(shapes):
            if in_memory(shape) and sizes_of(shape) not in passing:
                read += min(array_bytes(shape), self._taken(one, place, shape))
        return read

    def _taken(self, one: Instruction, place: int, shape: str) -> int:
        """Bytes that an instruction takes of its operand number `place`."""
        if one.opcode in _SLICES and place == 0:
            return array_bytes(one.shape, everywhere=True)
        if one.opcode == "dynamic-update-slice" and place == 0:
            return 0
        if self._is_view(one):
            return 0  # its users take something
        if one.opcode != "fusion":
            return array_bytes(shape, everywhere=True)
        inside = one.attribute("calls")
        parameter = next(
            part for part in self.instructions(inside)
            if part.opcode == "parameter" and part.arguments == str(place)
        )  # fmt: skip
        return sum(
            self._taken(user, user.operands.index(alias), shape)
            for alias, user in self._users(inside, parameter.name)
        )

    def _users(self, computation: str, name: str) -> Iterator[tuple[str, Instruction]]:
        """Yield (name or a view of it, instruction that takes that)."""
        for one in self.instructions(computation):
            if name in one.operands:
                yield name, one
                if self._is_view(one):
                    yield from self._users(computation, one.name)

    def _is_view(self, one: Instruction) -> bool:
        """Whether an instruction's result is its operand, read in another shape."""
        if one.opcode != "fusion":
            return one.opcode in ("bitcast", "get-tuple-element")
        inside = self.instructions(one.attribute("calls"))
        # A "copy" that is its operand only tells how its tiles are read, of arrays in int8.
        is_operand = "output_to_operand_aliasing={{}: (0, {})}" in one.text
        return all(
            part.opcode == "parameter" or (is_operand and part.opcode == "copy")
            or self._is_view(part)
            for part in inside
        )  # fmt: skip

    def _written(self, computation: str, one: Instruction) -> int:
        """Bytes that an instruction writes to memory."""
        results, updates = parts(one.shape), self._updates(computation, one)
        passing = set() if ends_collective(one) else self.passing(one)
        return sum(
            min(array_bytes(part), update) if update is not None else array_bytes(part)
            for part, update in zip(results, updates + [None] * len(results), strict=False)
            if sizes_of(part) not in passing
        )

    def _updates(self, computation: str, one: Instruction) -> list[int | None]:
        """For each result, the bytes that it writes if it updates an array in place."""
        if one.opcode == "dynamic-update-slice":
            update = self.computations[computation][one.operands[1]]
            return [array_bytes(update.shape, everywhere=True)]
        if one.opcode != "fusion":
            return []
        inside = one.attribute("calls")
        root = self.computations[inside]["ROOT"]
        roots = root.operands if root.opcode == "tuple" else (root.name,)
        return [self._update_of(inside, name) for name in roots]

    def _update_of(self, computation: str, name: str) -> int | None:
        one = self.computations[computation][name]
        while one.opcode == "bitcast":
            one = self.computations[computation][one.operands[0]]
        found = self._updates(computation, one)
        return found[0] if one.opcode in ("dynamic-update-slice", "fusion") and found else None
