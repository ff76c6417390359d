"""Communication of a compiled program, parsed from its HLO text.

This module accounts for four properties of the TPU compiler's output: a loop body occurs once, without its trip count;
a collective that overlaps with computation is split into a chain of parts, each with a copy of the collective; a
reduce-scatter is an all-reduce in a fusion; and transfers between slices are operations of the hosts.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

# `%body (arguments) -> type {` opens a computation; `ROOT %name = type opcode(operands), attributes` is an instruction.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
# Attributes that contain names of computations, without `condition`, which `_trips` reads, and `to_apply`, which mostly
# names scalar reducers.
_CALLED = re.compile(
    r"(?:calls|body|branch_computations|called_computations|\w+_computation)=\{?((?:%?[\w.\-]+(?:, )?)+)"
)
# Compact notations of groups: `[16,16]T(1,0)`, and named axes of a mesh.
_IOTA = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? ?\{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """Transfer between chips.

    Attributes:
      kind: one of `KINDS`.
      dtype: HLO name of the dtype, such as bf16.
      bytes: bytes received by a chip per step, over all iterations of enclosing loops; an all-reduce counts twice,
        because it consists of a reduce-scatter and an all-gather.
      count: number of executions per step.
      groups: groups of partitions that exchange data; for a permute the pairs.
      between_slices: whether the transfer uses the network between slices instead of the links within a slice.
    """

    kind: str
    dtype: str
    bytes: float
    count: int
    groups: tuple[tuple[int, ...], ...]
    between_slices: bool = False


class _Instruction(NamedTuple):
    """Instruction of a computation; `rest` contains operands and attributes as text."""

    root: bool
    name: str
    type: str
    opcode: str
    rest: str


def collectives(text: str, partitions: int, slices: int = 1) -> list[Collective]:
    """Returns all transfers between chips in a program.

    Args:
      text: optimised HLO of a program for TPUs, from `Compiled.as_text()`.
      partitions: number of devices of one slice.
      slices: number of slices that the program runs on.

    Raises:
      NotImplementedError: if a transfer is in a loop with unknown trip count.
    """
    program = _computations(text)
    rounds = _rounds(program)
    transfers = []
    for name, instructions in program.items():
        for instruction in instructions:
            transfer = _collective(instruction, name, partitions, slices)
            if transfer is None or not rounds[name]:
                continue
            if math.isnan(rounds[name]):
                raise NotImplementedError(f"{instruction.name} is in a loop whose trip count is unknown")
            count = round(rounds[name])
            transfers.append(replace(transfer, bytes=count * transfer.bytes, count=count))
    return transfers


def _computations(text: str) -> dict[str, list[_Instruction]]:
    """Parses HLO text into computations by name, with callees before callers, as in the text."""
    program: dict[str, list[_Instruction]] = {}
    current = None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        instruction = _INSTRUCTION.match(line)
        if header:
            current = program.setdefault("ENTRY" if header[1] else header[2], [])
        elif line.rstrip() == "}":
            current = None
        elif current is not None and instruction:
            current.append(_Instruction(bool(instruction[1]), *instruction.groups()[1:]))
    return program


def _rounds(program: dict[str, list[_Instruction]]) -> dict[str, float]:
    """Returns the number of executions of each computation in the program; NaN if a trip count is unknown."""
    rounds = dict.fromkeys(program, 0.0) | {"ENTRY": 1.0}
    # Callers are visited first, so that the count of a computation is complete before its callees are visited.
    for name in reversed(program):
        for instruction in program[name]:
            times = _trips(instruction, program, program[name]) if instruction.opcode == "while" else 1
            for called in _called(instruction):
                if called in rounds:
                    rounds[called] += rounds[name] * times
    return rounds


def _called(instruction: _Instruction) -> list[str]:
    """Returns the computations that an instruction calls, without scalar reducers and comparators."""
    called = []
    for names in _CALLED.findall(instruction.rest):
        called += [name.strip(" %") for name in names.split(",")]
    if instruction.opcode == "call":
        called += re.findall(r"to_apply=%?([\w.\-]+)", instruction.rest)
    return called


def _trips(loop: _Instruction, program: dict[str, list[_Instruction]], around: list[_Instruction]) -> float:
    """Returns the trip count of a loop whose counter increases by 1; NaN if it is unknown.

    It is the constant in the condition of the loop minus the counter's initial value.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    # The comparison may be fused into a computation that the condition calls.
    name = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
    condition = list(program[name])
    for instruction in program[name]:
        for called in _called(instruction):
            condition += program.get(called, [])
    integers: dict[str, str] = {}
    comparisons = 0
    for instruction in condition:
        if instruction.opcode == "constant" and re.match(r"[su]\d+\[\]", instruction.type):
            integers[instruction.name] = instruction.rest.partition(")")[0]
        elif instruction.opcode == "compare" and "direction=LT" in instruction.rest:
            comparisons += 1
    if len(integers) != 1 or comparisons != 1:
        return math.nan
    (end,) = integers.values()
    return int(end) - _initial_count(loop, condition, around)


def _initial_count(loop: _Instruction, condition: list[_Instruction], around: list[_Instruction]) -> int:
    """Returns the counter's initial value if it is a constant in the program; otherwise 0, as in JAX's loops."""
    by_name = {instruction.name: instruction for instruction in around}
    # The only element of the carry that the condition reads is the counter.
    indices = []
    for instruction in condition:
        if instruction.opcode == "get-tuple-element":
            indices.append(int(re.search(r"index=(\d+)", instruction.rest)[1]))
    carry = by_name.get(_operands(loop)[0])
    if len(indices) != 1 or carry is None or carry.opcode != "tuple":
        return 0
    counter = by_name.get(_operands(carry)[indices[0]])
    value = re.match(r"(\d+)\)", counter.rest) if counter and counter.opcode == "constant" else None
    return int(value[1]) if value else 0


def _operands(instruction: _Instruction) -> list[str]:
    """Returns the names of the operands, without types and comments such as `/*index=5*/`."""
    operands = re.sub(r"/\*.*?\*/", "", instruction.rest.partition(")")[0])
    return [operand.split()[-1].lstrip("%") for operand in operands.split(", ") if operand.strip()]


def _collective(instruction: _Instruction, computation: str, partitions: int, slices: int) -> Collective | None:
    """Returns the transfer of one execution of an instruction; None for other instructions and for copies."""
    if instruction.opcode == "send" and "xla_megascale_runtime" in instruction.rest:
        return _between_slices(instruction, slices)
    kind = instruction.opcode.removesuffix("-start")
    # The flag marks copies of a collective in a chain of parts; only the part without the flag is counted.
    if kind not in KINDS or re.search(r'"flag_start":"\d', instruction.rest):
        return None
    groups = _groups(instruction.rest, partitions)
    members = len(groups[0]) if groups else 1
    arrays = _arrays(instruction.type)
    if instruction.opcode == "all-gather-start":
        arrays = arrays[len(arrays) // 2 :]  # the type lists operands, then results
    if instruction.opcode == "collective-permute-start":
        arrays = arrays[1:2]
    # Each chip receives the parts of all other members. Shares are relative to the size of the result.
    ring = (members - 1) / members
    if kind == "all-reduce" and "all-reduce-scatter" in computation:
        kind, share = "reduce-scatter", ring  # relative to the size of the input
    else:
        shares = {"all-gather": ring, "all-to-all": ring, "all-reduce": 2 * ring, "reduce-scatter": members - 1}
        share = shares.get(kind, 1)
    dtype = max(arrays, key=lambda array: array[1])[0]
    between = any(member // partitions != group[0] // partitions for group in groups for member in group)
    return Collective(kind, dtype, share * sum(size for _, size in arrays), 1, groups, between)


def _between_slices(send: _Instruction, slices: int) -> Collective:
    """Returns a chip's part of a collective between slices, which its host sends after reduction in the slice."""
    how = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.rest)
    kind = how[1].lower().replace("_", "-") if how else "collective-permute"
    dtype, size = _arrays(send.type)[0]
    # Each slice receives the data of the other S - 1 slices; an all-reduce also sends the results back.
    share = {"all-reduce": 2 * (slices - 1) / slices, "all-gather": slices - 1}.get(kind, (slices - 1) / slices)
    return Collective(kind if kind in KINDS else "collective-permute", dtype, share * size, 1, (), True)


def _arrays(type_text: str) -> list[tuple[str, float]]:
    """Returns (dtype, bytes) of each array in a type, without the counters of asynchronous operations."""
    arrays = []
    for dtype, sizes in _ARRAY.findall(type_text):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        count = math.prod(int(size) for size in sizes.split(",") if size)  # a scalar has no sizes
        arrays.append((dtype, count * bits / 8))
    return arrays


def _groups(rest: str, partitions: int) -> tuple[tuple[int, ...], ...]:
    """Parses the groups of partitions in any notation of HLO."""
    mesh = _MESH.search(rest)
    if mesh:
        return _mesh_groups(*mesh.groups())
    lists = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest)
    if lists:
        groups = re.findall(r"\{([\d,]+)\}", lists[1])
        return tuple(tuple(map(int, group.split(","))) for group in groups)
    # `[groups,members]<=[...]`: rows of an iota.
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest)
    if iota:
        members, count = _iota(iota[3]), int(iota[2])
        return tuple(tuple(members[i : i + count]) for i in range(0, len(members), count))
    return (tuple(range(partitions)),)  # without groups, one group of all partitions


def _mesh_groups(axes: str, devices: str | None, grouped: str) -> tuple[tuple[int, ...], ...]:
    """Returns the groups along named axes of a mesh: `mesh['a'=16,'b'=16], device_ids=([16,16]T(1,0)) {'a'}`."""
    names, shape = [], []
    for name, size in re.findall(r"'([^']+)'=(\d+)", axes):
        names.append(name)
        shape.append(int(size))
    along = [names.index(name) for name in re.findall(r"'([^']+)'", grouped)]
    ids = np.array(_iota(devices) if devices else range(math.prod(shape))).reshape(shape)
    # With the grouped axes last, each row of the flattened array is a group.
    others = [axis for axis in range(ids.ndim) if axis not in along]
    count = math.prod(ids.shape[axis] for axis in along)
    return tuple(tuple(map(int, group)) for group in ids.transpose(*others, *along).reshape(-1, count))


def _iota(text: str) -> list[int]:
    """Parses `[16,16]T(1,0)`, an iota of this shape, transposed and flattened, or a plain list of numbers."""
    match = _IOTA.search(text)
    if match is None:
        return [int(number) for number in re.findall(r"\d+", text)]
    shape = [int(size) for size in match[1].split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    if match[2]:
        ids = ids.transpose([int(axis) for axis in match[2].split(",")])
    return ids.ravel().tolist()
