"""`selfflow data`: what a stranger reads, and what it exits with."""

import json
import subprocess
import sys

import pytest

from selfflow.cli import main
from tests.cli.test_errors import refusal
from tests.conftest import mentions

SMALL = ["--train-clips", "6", "--validation-clips", "2", "--test-clips", "2", "--shifted-clips", "1", "--workers", "1"]


def run(capsys, *arguments) -> tuple[int, str, str]:
    old, sys.argv = sys.argv, ["selfflow", "data", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    finally:
        sys.argv = old
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder for the tests of this module."""
    return tmp_path_factory.mktemp("data")


def test_help_and_mistakes(capsys):
    for arguments in (
        [],
        ["--help"],
        *([action, "--help"] for action in ("list", "build", "show", "ids", "verify", "delete")),
    ):
        code, out, _ = run(capsys, *arguments)
        assert code == 0 and "example" in out and "selfflow data " in out
    for action, flag in (("show", "--count"), ("delete", "--ids"), ("verify", "--train-clips")):
        code, out, _ = run(capsys, action, "collisions", "--help")
        assert code == 0 and flag in out and "example: selfflow data " + action in out and "--data-dir" in out
    for arguments, words in (
        (["verfy", "collisions"], "verfy verify"),
        (["build", "colisions"], "colisions collisions"),
        (["build", "media:other"], "media:other"),
    ):
        assert mentions(words).search(refusal(capsys, "data", *arguments))
    code, out, err = run(capsys, "delete", "collisions")
    assert code == 2 and mentions("--ids").search(out + err)


def test_a_tfds_name_goes_to_its_settings(capsys, folder):
    line = refusal(capsys, "data", "verify", "tfds:no_such_set/of:1.0.0", "--data-dir", folder)
    assert mentions("tfds.name no_such_set/of:1.0.0").search(line)


def test_build_list_show_verify_and_delete(capsys, folder, tmp_path):
    code, out, _ = run(capsys, "list", "--data-dir", folder)
    assert code == 0 and all("not built" in line for line in out.splitlines()[:6])
    where = ["--data-dir", folder, *SMALL]
    code, out, _ = run(capsys, "build", "collisions", *where)
    assert code == 0 and mentions("train 6", folder / "collisions").search(out)
    code, out, _ = run(capsys, "list", "--data-dir", folder)
    (line,) = [line for line in out.splitlines() if line.startswith("collisions")]
    assert mentions("1 built video audio image").search(line)

    code, out, _ = run(capsys, "show", "collisions", "--out", tmp_path / "samples", "--count", "1", *where)
    files = {"images.png", "clips.png", "video-with-audio-0.mp4", "video-with-audio-0.wav"}
    assert code == 0 and {path.name for path in (tmp_path / "samples").iterdir()} == files
    assert mentions("# Collisions train-000000 material", *files).search(out)
    line = refusal(capsys, "data", "show", "collisions", "--count", "0", *where)
    assert mentions("count 0").search(line)

    code, out, _ = run(capsys, "verify", "collisions", *where)
    assert code == 0 and mentions("11 records").search(out) and "remedy" not in out
    ids = tmp_path / "ids.txt"
    ids.write_text("train-000001\nnobody-000000\n")
    line = refusal(capsys, "data", "delete", "collisions", "--ids", ids, *where)
    assert mentions("1 2 ids nobody-000000").search(line)
    code, out, _ = run(capsys, "ids", "collisions", *where)
    assert code == 0 and "train-000001" in out.splitlines()
    ids.write_bytes(b"\xef\xbb\xbftrain-000001\r\n")  # a byte order mark before the first id
    code, out, _ = run(capsys, "delete", "collisions", "--ids", ids, *where)
    assert code == 0 and mentions("train 1 absent").search(out)
    code, out, _ = run(capsys, "delete", "collisions", "--ids", ids, *where)
    assert code == 0 and mentions("1 ids absent").search(out) and "train 1" not in out
    code, out, _ = run(capsys, "ids", "collisions", *where)
    assert code == 0 and "train-000001" not in out.splitlines()
    ids.write_text("nobody-000000\n")
    line = refusal(capsys, "data", "delete", "collisions", "--ids", ids, *where)
    assert mentions("1 ids nobody-000000").search(line)

    (shard,) = folder.glob("collisions/*/*/*test*")
    shard.write_bytes(shard.read_bytes()[:-5000])
    code, out, _ = run(capsys, "verify", "collisions", *where)
    assert code == 1 and mentions("unreadable (1)", shard.name, "remedy", shard.parent).search(out)


def test_verify_prints_at_most_twenty_lines_of_a_kind(capsys, folder):
    where = ["--data-dir", folder / "many", *SMALL, "--train-clips", "25"]
    run(capsys, "build", "collisions", *where)
    (features,) = folder.glob("many/collisions/*/*/features.json")
    metadata = json.loads(features.read_text())
    metadata["featuresDict"]["features"]["audio"]["tensor"]["dtype"] = "uint16"
    features.write_text(json.dumps(metadata))
    code, out, _ = run(capsys, "verify", "collisions", *where)
    assert code == 1 and mentions("types (30) 10").search(out)
    assert len([line for line in out.splitlines() if "uint16" in line]) == 20


def test_list_is_light(folder):
    code = (
        "import sys; sys.argv = ['selfflow', 'data', 'list', '--data-dir', sys.argv[1]]\n"
        "import selfflow.cli\nselfflow.cli.main()\n"
        "print([m for m in ('jax', 'tensorflow_datasets', 'grain', 'array_record') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_build_encodes_by_a_named_autoencoder(capsys, tmp_path):
    size = ["--size", "16", "--data-dir", tmp_path]
    code, out, _ = run(capsys, "build", "digits", *size, "--autoencoder.image", "patch-pca")
    assert code == 0 and mentions("image patch_pca psnr_db").search(out)
    (folder,) = (tmp_path / "latents").iterdir()
    assert json.loads((folder / "manifest.json").read_text())["modalities"]["image"]["latent"] == [4, 4, 16]
    for m, name, words in (
        ("video", "patch-pca", "--autoencoder.video digits image video"),
        ("image", "mdct-pca", "autoencoders.image mdct_pca audio"),
        ("image", "sd-vae", "--autoencoder.image sd-vae=PATH"),
    ):
        assert mentions(words).search(refusal(capsys, "data", "build", "digits", *size, f"--autoencoder.{m}", name))
