"""A compiled program's text (optimized HLO of a TPU, GPU or CPU): instructions, loops, sizes."""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0, "c64": 64, "c128": 128}


class Instruction(NamedTuple):
    """One instruction. shape: its result, with layouts. text: what follows the operands.

    arguments: the operands' text. starts: whether it only begins its work (`all-gather-start`);
    opcode and shape are those of the work then.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    arguments: str
    starts: bool = False

    def attribute(self, name: str) -> str | None:
        """Return an attribute whose value is a name or a number; None without it."""
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


class Program:
    """The computations of a module by name: their instructions by name; the last is the root."""

    def __init__(self, hlo: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, current = "", {}
        for line in hlo.splitlines():
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
                one = parse(found[1], line[found.end() :])
                # The root is not always written last.
                current[one.name] = one
                if line.lstrip().startswith("ROOT"):
                    current["ROOT"] = one

    def reachable(self, name: str) -> Iterator[str]:
        """Yield a computation and those that it calls, but not the bodies of loops."""
        yield name
        for one in self.instructions(name):
            for called in one.called:
                yield from self.reachable(called)

    def instructions(self, name: str) -> list[Instruction]:
        """Return the instructions of a computation in their order."""
        return [one for key, one in self.computations[name].items() if key != "ROOT"]

    def open_loop(self) -> str:
        """Return the body of the first loop of unknown length. Raises ValueError without one."""
        for name in self.reachable(self.entry):
            for one in self.computations[name].values():
                if one.opcode == "while" and self.trips(one) is None:
                    return one.attribute("body")
        raise ValueError("the program has no loop of unknown length")

    def weights(self, one: Instruction, costly: float) -> list[tuple[str, float]]:
        """Return (computation, share of the runs) of what an instruction runs in place of itself.

        costly: share of the runs of a conditional whose branches both multiply matrices that takes
        the one with more such products. Where one branch alone does, it runs every time.
        """
        if one.opcode != "conditional":
            return [(name, 1.0) for name in one.called]
        branches = sorted(one.called, key=self._products)
        if self._products(branches[0]) == 0:
            return [(branches[-1], 1.0)]
        return [(branches[-1], costly), (branches[0], 1 - costly)]

    def _products(self, name: str) -> int:
        """Size of the results of a computation's matrix products and kernels."""
        found = 0
        for one in self.instructions(name):
            if one.opcode in ("dot", "convolution", "custom-call"):
                found += max(1, array_bytes(one.shape, everywhere=True))
            inner = [one.attribute("calls")] if one.opcode == "fusion" else one.called
            found += sum(map(self._products, inner))
        return found

    def collective_in(self, one: Instruction) -> Instruction | None:
        """Return the collective that a fusion begins, goes on with, ends or is; None without one.

        A TPU's compiler spreads a collective over the fusions that run at the same time: each of
        them holds it, from one that `begins_collective` to one that `ends_collective`.
        """
        if one.opcode in COLLECTIVES:
            return one
        if one.opcode != "fusion" or one.attribute("calls") is None:
            return None
        inside = self.instructions(one.attribute("calls"))
        return next((part for part in inside if part.opcode in COLLECTIVES), None)

    def passing(self, one: Instruction) -> set[str]:
        """Return the sizes of a spread collective's arrays in a fusion, which passes them on."""
        if not (begins_collective(one) or ends_collective(one) or spreads_collective(one)):
            return set()
        inner = self.collective_in(one)
        if inner is None:
            return set()
        operands = self.computations[one.attribute("calls")]
        shapes = [inner.shape, *(operands[name].shape for name in inner.operands)]
        return {sizes_of(part) for shape in shapes for part in parts(shape)}

    def trips(self, loop: Instruction) -> int | None:
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


def begins_collective(one: Instruction) -> bool:
    """Return whether a fusion begins a collective that is spread over further ones."""
    return one.opcode == "fusion" and one.name.startswith("async-collective-start")


def ends_collective(one: Instruction) -> bool:
    """Return whether a fusion waits for the end of such a collective."""
    return one.opcode == "fusion" and one.name.startswith("async-collective-done")


def spreads_collective(one: Instruction) -> bool:
    """Return whether a fusion computes something else while such a collective goes on."""
    called = one.attribute("calls") if one.opcode == "fusion" else None
    return called is not None and called.startswith("async_collective_fusion")


def parse(name: str, text: str) -> Instruction:
    """Parse what follows `name =`: the shape, the opcode, the operands and the attributes."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    arguments = rest[1 : end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    starts = opcode.endswith("-start")
    if starts:
        opcode = opcode.removesuffix("-start")
        shape = _result_of_start(opcode, shape, len(operands))
        opcode = "fusion" if opcode == "async" else opcode
    return Instruction(name, shape, opcode, operands, rest[end:], arguments, starts)


def _result_of_start(opcode: str, shape: str, operands: int) -> str:
    """The shape of the result in that of an instruction that begins the work: it has the operands,
    too.
    """
    if opcode == "all-reduce":
        return shape
    if opcode == "copy":
        return parts(shape)[0]
    return ", ".join(parts(shape)[operands : 2 * operands])


def _closing(text: str) -> int:
    """The index after the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0:
            return place + 1
    raise ValueError(f"no end of {text[:60]}")


@functools.lru_cache(4096)
def parts(shape: str) -> list[str]:
    """The arrays of a shape, such as `bf16[4,8]{1,0:T(8,128)S(1)}`."""
    return re.findall(r"\w+\[[^\]]*\](?:\{[^}]*\})?", shape)


def sizes_of(shape: str) -> str:
    """Return an array's dtype and sizes, such as `bf16[4,8]`, without its layout."""
    return shape.partition("{")[0]


def in_memory(shape: str) -> bool:
    """Whether an array lies in the device's main memory; S(n) names another one."""
    return not re.search(r"S\([1-9]", shape)


@functools.lru_cache(4096)
def array_bytes(shape: str, everywhere: bool = False) -> int:
    """Bytes of a shape's arrays in the main memory, or of all."""
    total = 0
    for part in parts(shape):
        if everywhere or in_memory(part):
            kind, sizes = re.match(r"(\w+)\[([^\]]*)\]", part).groups()
            bits = _BITS.get(kind) or int((re.search(r"\d+", kind) or [0])[0])
            count = math.prod(int(re.sub(r"\D", "", size)) for size in sizes.split(",") if size)
            total += count * bits // 8
    return total
