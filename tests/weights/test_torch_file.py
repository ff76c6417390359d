import os
import pickle
import random
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from selfflow.errors import UserError
from selfflow.weights.read import read_weights
from selfflow.weights.torch_file import read_torch_file
from tests.interop.released import PT, SAFETENSORS, entries, pickle_of, write_entries
from tests.weights.hostile import CallOnLoad

WRAPPED = {f"module.{key}": value for key, value in load_file(SAFETENSORS).items()}


def test_every_tensor_is_read():
    tensors = read_torch_file(PT)
    assert sorted(tensors) == sorted(WRAPPED)
    assert all(tensors[key].tobytes() == WRAPPED[key].tobytes() for key in WRAPPED)


@pytest.mark.parametrize("storage, dtype", [("HalfStorage", np.float16), ("BFloat16Storage", jnp.bfloat16)])
def test_half_precision_is_read(tmp_path, storage, dtype):
    parts = entries()
    for name in [name for name in parts if name.startswith("data/")]:
        parts[name] = np.frombuffer(parts[name], np.float32).astype(dtype).tobytes()
    parts["data.pkl"] = parts["data.pkl"].replace(b"torch\nFloatStorage\n", f"torch\n{storage}\n".encode())
    tensors = read_torch_file(write_entries(tmp_path / "half.pt", parts))
    for key, value in WRAPPED.items():
        np.testing.assert_array_equal(tensors[key].astype(np.float32), value.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_a_command_is_refused_by_name_and_does_not_run(tmp_path, protocol):
    marker = tmp_path / "ran"
    evil = pickle.dumps({"model": {"a": CallOnLoad(os.system, f"touch {marker}")}}, protocol)
    pickle.loads(evil)
    assert marker.exists()  # Python's own unpickler runs it
    marker.unlink()
    path = write_entries(tmp_path / "evil.pt", {"data.pkl": evil, "byteorder": b"little"})
    with pytest.raises(UserError, match=r"evil.pt .* (posix|nt)\.system"):
        read_torch_file(path)
    assert not marker.exists()


def test_torch_never_compresses_and_a_bomb_is_not_unpacked(tmp_path):
    parts = entries() | {"data/0": bytes(1 << 24)}
    path = write_entries(tmp_path / "bomb.pt", parts, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="bomb.pt: .* is compressed"):
        read_torch_file(path)


def test_lies_about_sizes_are_named(tmp_path):
    """The first tensor is module.pos_embed, of shape (1, 16, 48) and 768 elements."""
    parts = entries()
    program = parts["data.pkl"]
    sized, shape = b"M\x00\x03tq\x09Q", b"K\x01K\x10K0\x87"
    assert program.count(sized) and program.count(shape)

    def refuse(changed: bytes, reason: str, **entries: bytes):
        path = write_entries(tmp_path / "lie.pt", parts | {"data.pkl": changed} | entries)
        with pytest.raises(UserError, match=f"lie.pt: module.pos_embed .*{reason}"):
            read_torch_file(path)

    # The pickle states 2^40 elements; the entry has 3072 bytes.
    huge = b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"tq\x09Q"
    refuse(program.replace(sized, huge, 1), "3072 bytes .*4398046511104")
    refuse(program, "2 bytes .*3072", **{"data/0": b"ab"})
    refuse(program.replace(shape, b"K\x01K\x10K1\x87", 1), r"\(1, 16, 49\) reaches beyond")
    # Strides of 0 would make an array of any size out of one element.
    strides = b"M\x00\x03K0K\x01\x87"
    assert program.count(strides)
    refuse(
        program.replace(shape, b"K\x01K\x10Mp\xff\x87", 1).replace(strides, b"K\x00K\x00K\x00\x87", 1),
        r"\(1, 16, 65392\) repeats",
    )
    refuse(program.replace(b"Q" + b"K\x00" + shape, b"QK\x09" + shape, 1), r"\(1, 16, 48\) reaches beyond .* 768")


def test_two_tensors_cannot_disagree_over_one_storage(tmp_path):
    """The second states more elements than the storage has: a view of them would reach into other memory."""
    program = pickle_of({"a": ("0", 4, (2, 2), (2, 1)), "b": ("0", 1 << 20, (1 << 20,), (1,))})
    path = write_entries(tmp_path / "shared.pt", {"data.pkl": program, "data/0": bytes(16)})
    with pytest.raises(UserError, match="shared.pt: b and another tensor disagree"):
        read_torch_file(path)
    agreed = pickle_of({"a": ("0", 4, (2, 2), (1, 2)), "b": ("0", 4, (4,), (1,))})
    write_entries(path, {"data.pkl": agreed, "data/0": np.arange(4, dtype=np.float32).tobytes()})
    tensors = read_torch_file(path)
    np.testing.assert_array_equal(tensors["a"], [[0, 2], [1, 3]])
    np.testing.assert_array_equal(tensors["b"], [0, 1, 2, 3])


def test_many_names_for_one_storage_do_not_fill_the_memory(tmp_path):
    program = pickle_of({f"blocks.{i}.a": ("0", 1 << 16, (1 << 16,), (1,)) for i in range(100)})
    path = write_entries(tmp_path / "many.pt", {"data.pkl": program, "data/0": bytes(4 << 16)})
    with pytest.raises(UserError, match="many.pt: its tensors have more elements than the file"):
        read_weights(path)


def test_wrong_lengths_in_the_directory_of_the_zip_are_detected(tmp_path):
    """Pickle and directory agree on 2^30 bytes; the entry has 16."""
    parts = {"data/0": bytes(16), "data.pkl": pickle_of({"a": ("0", 1 << 28, (4,), (1,))})}
    path = write_entries(tmp_path / "lie.pt", parts)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    assert raw[at + 20 : at + 28] == struct.pack("<II", 16, 16)
    raw[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(raw)
    with pytest.raises(UserError, match="lie.pt is damaged or cut short .*data/0 ends early"):
        read_torch_file(path)


def test_missing_parts_are_named(tmp_path):
    parts = entries()
    path = tmp_path / "part.pt"
    for missing, error in (("data.pkl", "0 entries data.pkl"), ("data/0", "lacks the elements of module.pos_embed")):
        write_entries(path, {name: data for name, data in parts.items() if name != missing})
        with pytest.raises(UserError, match=f"part.pt.*{error}"):
            read_torch_file(path)
    with pytest.raises(UserError, match="byte order b'big'"):
        read_torch_file(write_entries(path, parts | {"byteorder": b"big"}))
    with pytest.raises(UserError, match="part.pt: epoch is of type int"):
        read_torch_file(write_entries(path, {"data.pkl": pickle.dumps({"epoch": 3}, 2)}))
    with pytest.raises(UserError, match="part.pt has no state dict"):
        read_torch_file(write_entries(path, {"data.pkl": pickle.dumps([1], 2)}))


def test_truncated_and_foreign_files(tmp_path):
    path, whole = tmp_path / "cut.pt", PT.read_bytes()
    for length in (2, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut.pt is damaged or cut short"):
            read_torch_file(path)
    for other in (b"", b"GIF89a", SAFETENSORS.read_bytes()):
        path.write_bytes(other)
        with pytest.raises(UserError, match=f"{path.name} is not a file of torch.save"):
            read_torch_file(path)


def test_a_flipped_bit_in_the_elements_is_detected(tmp_path):
    path, raw = tmp_path / "flipped.pt", bytearray(PT.read_bytes())
    raw[raw.index(WRAPPED["module.pos_embed"].tobytes()) + 1000] ^= 4
    path.write_bytes(raw)
    with pytest.raises(UserError, match="flipped.pt .*CRC"):
        read_torch_file(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_mutation_does_more_than_an_error(tmp_path):
    """Random bytes of the pickle become instructions: it is read as something else, or refused with a UserError."""
    parts, dice = entries(), random.Random(0)
    program, refused = parts["data.pkl"], 0
    for _ in range(300):
        changed = bytearray(program)
        for _ in range(dice.choice([1, 2, 10])):
            changed[dice.randrange(len(changed))] = dice.choice(b"cRbioX}](tqrhjQ0123\x81\x82\x85\x86\x87\x8a\x93\x94.")
        path = write_entries(tmp_path / "mutant.pt", parts | {"data.pkl": bytes(changed)})
        try:
            read_torch_file(path)
        except UserError:
            refused += 1
    assert refused > 100


MAGIC = 0x1950A86A20F9469CFC6C
MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def write_legacy(path, tensors, elements, magic=MAGIC, machine=MACHINE, keys=None):
    """The format before torch 1.6, of float32 tensors: {key: (storage, elements, shape, strides)}."""
    # In this format, the description of a storage has a sixth part.
    program = pickle_of(tensors).replace(b"tQ", b"NtQ")
    stored = b"".join(struct.pack("<q", len(array)) + array.tobytes() for array in elements.values())
    head = [pickle.dumps(value, 2) for value in (magic, 1001, machine)]
    path.write_bytes(b"".join([*head, program, pickle.dumps(list(elements) if keys is None else keys, 2), stored]))
    return path


def test_files_from_before_torch_1_6_are_read(tmp_path):
    elements = {"7": np.arange(6, dtype=np.float32), "8": np.full(1, 3, np.float32)}
    tensors = {"a.weight": ("7", 6, (2, 3), (3, 1)), "b": ("8", 1, (), ()), "a.transposed": ("7", 6, (3, 2), (1, 3))}
    path = write_legacy(tmp_path / "old.pth", tensors, elements)
    read = read_torch_file(path)
    np.testing.assert_array_equal(read["a.weight"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(read["a.transposed"], read["a.weight"].T)
    assert read["b"] == 3 and read["b"].shape == ()
    whole = path.read_bytes()
    for length in range(4, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="old.pth is damaged or cut short"):
            read_torch_file(path)


def test_files_that_python_2_wrote_are_read(tmp_path):
    """There, an ordered dict is made from a list of pairs, and strings are bytes."""
    stored = b"(U\x07storagectorch\nFloatStorage\nU\x017U\x03cpuK\x02NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + stored + b"K\x00K\x02\x85K\x01\x85tR"
    program = b"\x80\x02ccollections\nOrderedDict\n(](](U\x08a.weight" + tensor + b"eetR."
    head = [pickle.dumps(value, 2) for value in (MAGIC, 1001, MACHINE)]
    path = tmp_path / "two.pt"
    path.write_bytes(b"".join(head) + program + b"\x80\x02]U\x017a." + struct.pack("<qff", 2, 3, 4))
    tensors = read_torch_file(path)
    assert list(tensors) == ["a.weight"] and tensors["a.weight"].tolist() == [3, 4]
    path.write_bytes(b"".join(head) + program.replace(b"eetR.", b"eK\x01etR."))
    with pytest.raises(UserError, match=r"two.pt .*collections\.OrderedDict"):
        read_torch_file(path)


def test_damaged_and_executing_files_from_before_torch_1_6_are_refused(tmp_path):
    path, tensors, elements = tmp_path / "old.pth", {"a": ("7", 4, (4,), (1,))}, {"7": np.ones(4, np.float32)}
    with pytest.raises(UserError, match=f"{path.name} is not a file of torch.save"):
        read_torch_file(write_legacy(path, tensors, elements, magic=7))
    with pytest.raises(UserError, match="old.pth .*little-endian"):
        read_torch_file(write_legacy(path, tensors, elements, machine={"little_endian": False}))
    with pytest.raises(UserError, match="old.pth lacks the elements of a"):
        read_torch_file(write_legacy(path, tensors, {}))
    with pytest.raises(UserError, match="old.pth: a and another tensor disagree"):
        read_torch_file(write_legacy(path, tensors, {"7": np.ones(3, np.float32)}))
    with pytest.raises(UserError, match="old.pth is damaged or cut short .*no tensor uses"):
        read_torch_file(write_legacy(path, tensors, elements, keys=["7", "9"]))
    with pytest.raises(UserError, match=r"old.pth: a of shape \(5,\) reaches beyond .* 4 "):
        read_torch_file(write_legacy(path, {"a": ("7", 4, (5,), (1,))}, elements))
    path.write_bytes(pickle.dumps(MAGIC, 2) + b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little"))
    with pytest.raises(UserError, match="damaged or cut short"):
        read_torch_file(path)
    marker = tmp_path / "ran"
    evil = pickle.dumps({"a": CallOnLoad(os.system, f"touch {marker}")}, 2)
    path.write_bytes(b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, MACHINE)) + evil)
    with pytest.raises(UserError, match=r"old.pth .* (posix|nt)\.system"):
        read_torch_file(path)
    assert not marker.exists()


def test_counters_of_batch_normalisations_are_left_out(tmp_path):
    program = pickle_of({"bn.weight": ("0", 2, (2,), (1,)), "bn.num_batches_tracked": ("1", 1, (), ())})
    program = program.replace(b"FloatStorage", b"LongStorage", 2).replace(b"LongStorage", b"FloatStorage", 1)
    parts = {"data.pkl": program, "data/0": np.ones(2, np.float32).tobytes(), "data/1": bytes(8)}
    path = write_entries(tmp_path / "bn.pt", parts)
    assert read_torch_file(path)["bn.num_batches_tracked"].dtype == np.int64
    assert list(read_weights(path)) == ["bn.weight"]


@pytest.mark.parametrize("file, suffix", [(PT, ".PT"), (SAFETENSORS, ".SafeTensors")])
def test_the_case_of_a_suffix_does_not_matter(tmp_path, file, suffix):
    (tmp_path / f"weights{suffix}").write_bytes(file.read_bytes())
    weights = read_weights(tmp_path / f"weights{suffix}")
    assert weights and weights.keys() == read_weights(file).keys()
