"""What a decode step moves through memory: by its arrays, and by its compiled program.

`step_bytes` is the least that a step reads. `loop_traffic` reads the compiler's text (optimized HLO
of a TPU, GPU or CPU) for what the program of generate/engine.py moves: bytes, kernels, copies, and
the largest arrays that it writes.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

from ugc_jax.generate.decode import DecodeState

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
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


def loop_traffic(hlo: str) -> Traffic:
    """Return the traffic of one pass through a program's loop of unknown length.

    hlo: `jax.stages.Compiled.as_text()`. Loops of known length inside it count as often as they
    run, and the costliest branch of a conditional. Arrays that a TPU's compiler keeps in another
    memory than its HBM do not count, nor does what a slice or a gather leaves out, nor an array
    that is updated in place. Raises ValueError if there is no such loop.
    """
    program = _Program(hlo)
    for name in program.reachable(program.entry):
        for one in program.computations[name].values():
            if one.opcode == "while" and program.trips(one) is None:
                return program.traffic(one.attribute("body"))
    raise ValueError("the program has no loop of unknown length")


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str  # what follows the operands
    arguments: str  # the operands' text

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.text)
        return found and found[1]

    @property
    def called(self) -> list[str]:
        """Computations that it runs in place of itself."""
        if self.opcode == "call":
            return [self.attribute("to_apply")]
        if self.opcode == "conditional":
            names = re.search(r"branch_computations=\{([^}]*)\}", self.text)
            if names:
                return re.findall(r"%?([\w.\-]+)", names[1])
            return [self.attribute(f"{side}_computation") for side in ("true", "false")]
        return []


class _Program:
    """The computations of a module by name: their instructions by name; the last is the root."""

    def __init__(self, hlo: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.entry, current = "", {}
        for line in hlo.splitlines():
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
                one = _instruction(found[1], line[found.end() :])
                # The root is not always written last.
                current[one.name] = one
                if line.lstrip().startswith("ROOT"):
                    current["ROOT"] = one
        self.traffic = functools.cache(self._traffic)

    def reachable(self, name: str) -> Iterator[str]:
        """Yield a computation and those that it calls, but not the bodies of loops."""
        yield name
        for one in self.instructions(name):
            for called in one.called:
                yield from self.reachable(called)

    def instructions(self, name: str) -> list[_Instruction]:
        return [one for key, one in self.computations[name].items() if key != "ROOT"]

    def trips(self, loop: _Instruction) -> int | None:
        """How often a loop runs; None if the program decides."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(known[1])
        condition = self.computations[loop.attribute("condition")]
        root = condition["ROOT"]
        limits = [condition[name] for name in root.operands if name in condition]
        limits = [one.arguments for one in limits if one.opcode == "constant"]
        if root.opcode == "compare" and "direction=LT" in root.text and limits:
            return int(limits[0])
        return None

    def _traffic(self, name: str) -> Traffic:
        moved, kernels, copies = 0, 0, 0
        writes: list[Write] = []

        def add(part: Traffic, times: int):
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
                add(max(map(self.traffic, one.called), key=lambda part: part.bytes), 1)
            else:
                read, written = self._read(name, one), self._written(name, one)
                copy = self._copies(one)
                write = Write(one.name, one.shape, written, 1, copy)
                add(Traffic(read + written, 1, int(copy), (write,) if written else ()), 1)
        writes.sort(key=lambda one: -one.bytes)
        return Traffic(moved, kernels, copies, tuple(writes))

    def _copies(self, one: _Instruction) -> bool:
        if one.opcode != "fusion":
            return one.opcode in _MOVES
        inside = self.instructions(one.attribute("calls"))
        work = [part for part in inside if part.opcode not in _FREE]
        return bool(work) and all(
            self._copies(part) if part.opcode == "fusion" else part.opcode in _MOVES
            for part in work
        )

    def _read(self, computation: str, one: _Instruction) -> int:
        """Bytes that an instruction reads from memory."""
        shapes = [self.computations[computation][name].shape for name in one.operands]
        read = 0
        for place, shape in enumerate(shapes):
            if _in_memory(shape):
                read += min(_bytes(shape), self._taken(one, place, shape))
        return read

    def _taken(self, one: _Instruction, place: int, shape: str) -> int:
        """Bytes that an instruction takes of its operand number `place`."""
        if one.opcode in _SLICES and place == 0:
            return _bytes(one.shape, everywhere=True)
        if one.opcode == "dynamic-update-slice" and place == 0:
            return 0
        if self._is_view(one):
            return 0  # its users take something
        if one.opcode != "fusion":
            return _bytes(shape, everywhere=True)
        inside = one.attribute("calls")
        parameter = next(
            part for part in self.instructions(inside)
            if part.opcode == "parameter" and part.arguments == str(place)
        )  # fmt: skip
        return sum(
            self._taken(user, user.operands.index(alias), shape)
            for alias, user in self._users(inside, parameter.name)
        )

    def _users(self, computation: str, name: str) -> Iterator[tuple[str, _Instruction]]:
        """Yield (name or a view of it, instruction that takes that)."""
        for one in self.instructions(computation):
            if name in one.operands:
                yield name, one
                if self._is_view(one):
                    yield from self._users(computation, one.name)

    def _is_view(self, one: _Instruction) -> bool:
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

    def _written(self, computation: str, one: _Instruction) -> int:
        """Bytes that an instruction writes to memory."""
        parts = _parts(one.shape)
        updates = self._updates(computation, one)
        return sum(
            min(_bytes(part), update) if update is not None else _bytes(part)
            for part, update in zip(parts, updates + [None] * len(parts), strict=False)
        )

    def _updates(self, computation: str, one: _Instruction) -> list[int | None]:
        """For each result, the bytes that it writes if it updates an array in place."""
        if one.opcode == "dynamic-update-slice":
            update = self.computations[computation][one.operands[1]]
            return [_bytes(update.shape, everywhere=True)]
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


def _instruction(name: str, text: str) -> _Instruction:
    """Parse what follows `name =`: the shape, the opcode, the operands and the attributes."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    arguments = rest[1 : end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    if opcode.endswith("-start"):  # its shape has the operands, too
        opcode = opcode.removesuffix("-start")
        shape = _parts(shape)[0 if opcode == "copy" else len(operands)]
        opcode = "fusion" if opcode == "async" else opcode
    return _Instruction(name, shape, opcode, operands, rest[end:], arguments)


def _closing(text: str) -> int:
    """The index after the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0:
            return place + 1
    raise ValueError(f"no end of {text[:60]}")


@functools.lru_cache(4096)
def _parts(shape: str) -> list[str]:
    """The arrays of a shape, such as `bf16[4,8]{1,0:T(8,128)S(1)}`."""
    return re.findall(r"\w+\[[^\]]*\](?:\{[^}]*\})?", shape)


def _in_memory(shape: str) -> bool:
    """Whether an array lies in the device's main memory; S(n) names another one."""
    return not re.search(r"S\([1-9]", shape)


@functools.lru_cache(4096)
def _bytes(shape: str, everywhere: bool = False) -> int:
    """Bytes of a shape's arrays in the main memory, or of all."""
    total = 0
    for part in _parts(shape):
        if everywhere or _in_memory(part):
            kind, sizes = re.match(r"(\w+)\[([^\]]*)\]", part).groups()
            bits = _BITS.get(kind) or int((re.search(r"\d+", kind) or [0])[0])
            count = math.prod(int(re.sub(r"\D", "", size)) for size in sizes.split(",") if size)
            total += count * bits // 8
    return total
