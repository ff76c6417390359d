import copyreg
import io
import pickle
import struct

import numpy as np
import pytest

from selfflow.errors import UserError
from selfflow.weights.unpickler import Damaged, Refused, Storage, Tensor, unpickle
from tests.weights.hostile import CallOnLoad

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89}tR"
NAMES = [
    "torch\nFloatStorage",
    "collections\nOrderedDict",
    "torch._utils\n_rebuild_tensor",
    "torch._utils\n_rebuild_tensor_v2",
    "torch._utils\n_rebuild_parameter",
]


def load(program: bytes):
    return unpickle(io.BytesIO(program))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_are_read_in_every_protocol(protocol):
    plain = {"a": [1, -2.5, "ü", None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "b": {}, "c": 2**70}
    plain |= {"again": plain["a"], 3: list(range(300))}
    assert load(pickle.dumps(plain, protocol)) == plain


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_in_a_row_are_read_one_by_one(protocol):
    file = io.BytesIO(b"".join(pickle.dumps(value, protocol) for value in ("first", ["second"], 3)) + b"rest")
    assert [unpickle(file), unpickle(file), unpickle(file), file.read()] == ["first", ["second"], 3, b"rest"]


@pytest.mark.parametrize(
    "thing",
    [CallOnLoad(eval, "1"), CallOnLoad(getattr, "", "join"), np.float64(1), {1, 2}, bytearray(1), UserError("x")],
)
def test_anything_but_plain_data_is_refused(thing):
    with pytest.raises(Refused):
        load(pickle.dumps([thing]))


@pytest.mark.parametrize(
    "program, name",
    [
        (b"(S'touch x'\nios\nsystem\n.", "INST os system"),
        (b"\x80\x02\x82\x01.", "EXT1 1"),
        (b"\x80\x02cos\nsystem\n)\x81.", "os.system"),
        (b"\x80\x02cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02cos\x1b[2J\nsystem\n.", r"'os\\x1b\[2J.system'"),
    ],
)
def test_every_way_to_a_name_is_shut(program, name):
    with pytest.raises(Refused, match=name):
        load(program)


def test_a_registered_extension_code_is_no_way_around_the_names():
    """Python's unpickler looks into this registry, and into its cache, without asking `find_class`."""
    copyreg.add_extension("builtins", "eval", 0xE7A1)
    try:
        assert pickle.loads(b"\x80\x02\x83\xa1\xe7.") is eval
        with pytest.raises(Refused, match="EXT2"):
            load(b"\x80\x02\x83\xa1\xe7.")
    finally:
        copyreg.remove_extension("builtins", "eval", 0xE7A1)


@pytest.mark.parametrize(
    "program", [b"", b"\x80\x02", b"]0", b".", b"t.", b"]K\x01s.", b"h\x05.", b"K\x01)R.", b"}]K\x01s."]
)
def test_what_is_not_a_pickle_is_damaged(program):
    with pytest.raises((Damaged, Refused)):
        load(program)


@pytest.mark.parametrize("state", [b"}X\x01\x00\x00\x00aK\x01s", b"N}X\x08\x00\x00\x00functionK\x01s\x86", b"K\x01"])
@pytest.mark.parametrize("name", NAMES)
def test_no_state_is_set_on_what_a_name_stands_for(name, state):
    """BUILD would set attributes of functions and classes for the whole process."""
    with pytest.raises(Damaged):
        load(b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
    assert load(b"\x80\x02" + TENSOR + b".") == Tensor(Storage("0", np.dtype("<f4"), 4), 0, (4,), (1,))


@pytest.mark.parametrize("value", [TENSOR, STORAGE, b"]", b"K\x01", b"X\x01\x00\x00\x00a"])
def test_no_state_is_set_on_values(value):
    with pytest.raises(Damaged):
        load(b"\x80\x02" + value + b"}X\x05\x00\x00\x00shapeK\x01sb.")


def test_the_state_of_an_ordered_dict_is_discarded():
    content = load(b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00a}sb.")
    assert content == {} and not hasattr(content, "a")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "arguments",
    [
        b"(K\x01t",
        b"(K\x01K\x00))t",
        b"(" + STORAGE + b"K\x00]]t",
        b"(" + STORAGE + b"K\x00K\x04\x85)t",
        b"(" + STORAGE + b"J\xff\xff\xff\xffK\x04\x85K\x01\x85t",
        b"(" + STORAGE + b"K\x00K\x04\x85NK\x01\x86t",
        b"(" + STORAGE + b"K\x00G?\xf0\x00\x00\x00\x00\x00\x00\x85K\x01\x85t",
        b"(" + STORAGE + STORAGE + STORAGE + STORAGE + b"t",
        b"(](](K\x01K\x01eet",
        b"(ccollections\nOrderedDict\ntt",
    ],
)
def test_every_argument_of_a_name_is_checked(name, arguments):
    with pytest.raises((Damaged, Refused)):
        load(b"\x80\x02c" + name.encode() + b"\n" + arguments + b"R.")


def test_no_name_makes_an_instance_of_a_class():
    for name in NAMES:
        with pytest.raises(Damaged):
            load(b"\x80\x02c" + name.encode() + b"\n)\x81.")


@pytest.mark.parametrize(
    "parts",
    [b"X\x01\x00\x00\x00aX\x01\x00\x00\x000NK\x04", b"ctorch\nFloatStorage\nK\x00NK\x04", b"ctorch\nFloatStorage\n"]
    + [b"ctorch\nFloatStorage\nX\x01\x00\x00\x000N" + elements for elements in (b"J\xff\xff\xff\xff", b"]", b"N")],
)
def test_every_part_of_a_storage_is_checked(parts):
    with pytest.raises(Damaged):
        load(b"\x80\x02(X\x07\x00\x00\x00storage" + parts + b"tQ.")
    with pytest.raises(Refused, match="a view into a storage"):
        load(b"\x80\x02" + STORAGE[:-2] + b"K\x01tQ.")


def test_an_index_of_the_memo_allocates_nothing():
    """Python's unpickler would make a table of twice as many entries: here of 64 GiB."""
    with pytest.raises(Damaged, match="index 4294967295 of the memo"):
        load(b"\x80\x02Nr" + struct.pack("<I", (1 << 32) - 1) + b".")


@pytest.mark.parametrize(
    "opcode, length", [(b"\x8d", 1 << 62), (b"\x8e", 1 << 40), (b"\x8b", 1 << 30), (b"T", 1 << 30)]
)
def test_a_length_beyond_the_end_allocates_nothing(opcode, length):
    with pytest.raises(Damaged):
        load(b"\x80\x04" + opcode + length.to_bytes(8 if opcode in b"\x8d\x8e" else 4, "little") + b".")


@pytest.mark.parametrize(
    "key",
    [
        b")" + b"\x85" * 3_000_000,  # its hash would exhaust the stack of the process
        b")q\x00" + b"h\x00\x86q\x00" * 100,  # its hash would take 2^100 steps
        b")" + b"q\x000"[:2] + b"h\x00h\x00\x87q\x00" * 100,
        b"(" * 1000 + b"t" * 1000,
    ],
)
def test_a_deeply_nested_key_is_refused_before_it_is_hashed(key):
    with pytest.raises(Refused, match="tuples nested more than 8 deep"):
        load(b"\x80\x02}" + key + b"K\x01s.")
