"""`selfflow data`: what a stranger reads, and what it exits with."""

import json
import subprocess
import sys

import pytest

from selfflow.cli import main

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
        *([action, "--help"] for action in ("list", "build", "show", "verify", "delete")),
    ):
        code, out, _ = run(capsys, *arguments)
        assert code == 0 and "example" in out and "selfflow data " in out
    for action, flag in (("show", "--count"), ("delete", "--ids"), ("verify", "--train-clips")):
        code, out, _ = run(capsys, action, "collisions", "--help")
        assert code == 0 and flag in out and "example: selfflow data " + action in out and "--data-dir" in out
    code, _, err = run(capsys, "verfy", "collisions")
    assert code == 2 and "did you mean verify?" in err
    code, _, err = run(capsys, "build", "colisions")
    assert code == 2 and "did you mean collisions?" in err and len(err.splitlines()) == 1
    code, _, err = run(capsys, "build", "media:films")
    assert code == 2 and "no data set 'media:films'" in err
    code, out, err = run(capsys, "delete", "collisions")
    assert code == 2 and "--ids" in out + err


def test_a_tfds_name_goes_to_its_settings(capsys, folder):
    code, _, err = run(capsys, "verify", "tfds:no_such_set/of:1.0.0", "--data-dir", folder)
    assert code == 2 and "tfds.name = 'no_such_set/of:1.0.0'" in err and "Traceback" not in err


def test_build_list_show_verify_and_delete(capsys, folder, tmp_path):
    code, out, _ = run(capsys, "list", "--data-dir", folder)
    assert code == 0 and all("not built" in line for line in out.splitlines()[:6])
    where = ["--data-dir", folder, *SMALL]
    code, out, _ = run(capsys, "build", "collisions", *where)
    assert code == 0 and "train        6 records" in out and str(folder / "collisions") in out
    code, out, _ = run(capsys, "list", "--data-dir", folder)
    (line,) = [line for line in out.splitlines() if line.startswith("collisions")]
    assert "1 built" in line and "video, audio, image" in line and "rigid bodies" in line

    code, out, _ = run(capsys, "show", "collisions", "--out", tmp_path / "samples", "--count", "1", *where)
    files = {"stills.png", "films.png", "film-0.mp4", "film-0.wav"}
    assert code == 0 and {path.name for path in (tmp_path / "samples").iterdir()} == files
    assert "# Collisions" in out and "film 0: train-00000" in out and "material" in out and "4 files in" in out
    code, _, err = run(capsys, "show", "collisions", "--count", "0", *where)
    assert code == 2 and "count is 0" in err

    code, out, _ = run(capsys, "verify", "collisions", *where)
    assert code == 0 and "11 records, no problems" in out
    ids = tmp_path / "ids.txt"
    ids.write_text("train-000001\nnobody-000000\n")
    code, out, _ = run(capsys, "delete", "collisions", "--ids", ids, *where)
    assert code == 0 and "1 record removed (train 1)" in out and "verified absent" in out and "nobody-000000" in out
    code, out, _ = run(capsys, "delete", "collisions", "--ids", ids, *where)
    assert code == 0 and "nothing was left to do" in out
    ids.write_text("nobody-000000\n")
    code, _, err = run(capsys, "delete", "collisions", "--ids", ids, *where)
    assert code == 2 and "none of the 1 ids" in err

    (shard,) = folder.glob("collisions/*/*/*test*")
    shard.write_bytes(shard.read_bytes()[:-5000])
    code, out, _ = run(capsys, "verify", "collisions", *where)
    assert (
        code == 1 and "unreadable records (1):" in out and shard.name in out and f"remedy: remove {shard.parent}" in out
    )


def test_verify_prints_at_most_twenty_lines_of_a_kind(capsys, folder):
    where = ["--data-dir", folder / "many", *SMALL, "--train-clips", "25"]
    run(capsys, "build", "collisions", *where)
    (features,) = folder.glob("many/collisions/*/*/features.json")
    told = json.loads(features.read_text())
    inner = told["featuresDict"]["features"]
    inner["audio"]["tensor"]["dtype"] = "uint16"
    features.write_text(json.dumps(told))
    code, out, _ = run(capsys, "verify", "collisions", *where)
    assert code == 1 and "wrong shapes or types (30):" in out and "and 10 more" in out
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
    assert code == 0 and "image: patch_pca-" in out and "psnr_db" in out
    (folder,) = (tmp_path / "latents").iterdir()
    assert json.loads((folder / "manifest.json").read_text())["modalities"]["image"]["latent"] == [4, 4, 16]
    for m, name, message in (
        ("video", "patch-pca", "--autoencoder.video: digits has image, and not video"),
        ("image", "mdct-pca", "autoencoders.image is mdct_pca, which is for audio"),
        ("image", "sd-vae", "write --autoencoder.image sd-vae=PATH"),
    ):
        code, _, err = run(capsys, "build", "digits", *size, f"--autoencoder.{m}", name)
        assert code == 2 and message in err
