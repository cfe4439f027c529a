"""What a compiled program sends between chips: collectives by kind, with bytes.

Bytes are those that one chip receives: of an all-gather, a reduce-scatter or an all-to-all over n
chips (n - 1) / n of the whole array, of an all-reduce twice that, of a permutation the array.
"""

import math
import re
from typing import NamedTuple

from ugc_jax.plan.hlo import (
    Instruction,
    Program,
    array_bytes,
    begins_collective,
    ends_collective,
    spreads_collective,
)

# Instructions that take no time worth mentioning: nothing is computed beside a collective by them.
_IDLE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier",
    "partition-id", "replica-id", "add", "subtract", "compare",
}  # fmt: skip


class Collective(NamedTuple):
    """All collectives of a kind in one run of a program.

    count: how many run. bytes: that one chip receives. waits: of these bytes, those of collectives
    beside which nothing is computed.
    """

    kind: str
    count: float
    bytes: float
    waits: float


def collectives(hlo: str, costly: float = 1.0, of_loop: bool = False) -> tuple[Collective, ...]:
    """Return what a program sends, largest first.

    hlo, costly: as of `traffic.program_traffic`. of_loop: in one pass through its loop of unknown
    length, as `traffic.loop_traffic`.
    """
    program = Program(hlo)
    found: dict[str, list[float]] = {}

    def add(name: str, times: float):
        inside = program.instructions(name)
        for place, one in enumerate(inside):
            if one.opcode == "while":
                add(one.attribute("body"), times * (program.trips(one) or 1))
            elif one.called:
                for called, share in program.weights(one, costly):
                    if share:
                        add(called, times * share)
            elif not (ends_collective(one) or spreads_collective(one)):
                inner = program.collective_in(one)
                if inner is None:
                    continue
                size = times * received(one, inner)
                total = found.setdefault(inner.opcode, [0.0, 0.0, 0.0])
                total[0] += times
                total[1] += size
                total[2] += 0 if _overlaps(program, inside, place) else size

    add(program.open_loop() if of_loop else program.entry, 1)
    ranked = sorted(found.items(), key=lambda item: -item[1][1])
    return tuple(Collective(kind, *total) for kind, total in ranked)


def received(one: Instruction, inner: Instruction) -> float:
    """Return the bytes that one chip receives in one run of a collective.

    inner: the collective; one: itself or the fusion that holds it.
    """
    result = array_bytes(inner.shape, everywhere=True)
    if inner.opcode in ("collective-permute", "collective-broadcast"):
        return result
    size, whole, times = group_size(inner), result, 1
    if inner.opcode == "reduce-scatter":
        whole = result * size
    elif inner.opcode == "all-reduce" and (
        # A TPU's reduce-scatter: a fusion of an all-reduce and the slice of it that is kept.
        inner is one or array_bytes(one.shape, everywhere=True) * size > 1.1 * result
    ):
        times = 2
    return times * whole * (size - 1) / size


def group_size(one: Instruction) -> int:
    """Return among how many chips a collective is.

    `{{0,1},{2,3}}`, `[2,2]<=[4]`, and `mesh['a'=2,'b'=2] {'b'}` with parts `'b':(1)2` of an axis.
    """
    text = one.text
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", found[1]))
        axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    raise ValueError(f"no replica groups of {one.name} in: {text[:200]}")


def _overlaps(program: Program, inside: list[Instruction], place: int) -> bool:
    """Whether something is computed between the beginning of a collective and its end."""
    one = inside[place]
    if not (one.starts or begins_collective(one)):
        return False
    names = {one.name}
    for later in inside[place + 1 :]:
        held = not names.isdisjoint(later.operands)
        if held and (later.opcode.endswith("-done") or ends_collective(later)):
            return False
        if held and (spreads_collective(later) or later.opcode == "while"):
            return True
        if held and later.opcode in ("get-tuple-element", "tuple", "bitcast", "copy"):
            names.add(later.name)
        elif later.opcode not in _IDLE and not later.opcode.endswith("-done") and not later.starts:
            return True
    return True  # it ends elsewhere: in the next pass of a loop, or after it
