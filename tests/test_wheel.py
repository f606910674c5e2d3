"""The wheel holds what its users need: run from it alone, far from the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
hatchling = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed (extra: test)")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A wheel built from this repository, unpacked as pip would."""
    place = tmp_path_factory.mktemp("wheel")
    (wheel,) = hatchling.WheelBuilder(str(ROOT)).build(directory=str(place / "dist"), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "unpacked")
    return place / "unpacked"


def run(unpacked, cwd, *words):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "import sys; from seqrec_prompt.cli import main; sys.exit(main())", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment | {"PYTHONPATH": str(unpacked)}, capture_output=True, text=True, check=False
    )


def test_every_file_of_the_package_is_in_the_wheel(unpacked):
    listed = subprocess.run(
        ["git", "ls-files", "seqrec_prompt"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not listed:
        pytest.skip("not a git checkout: there is no list of the package's files")
    assert [name for name in listed if not (unpacked / name).is_file()] == []
    assert not (unpacked / "tests").exists()
    assert not (unpacked / "docs").exists()


def test_the_quickstart_of_the_wheel_finds_its_recipe_and_its_sample(unpacked, tmp_path, tiny_model):
    """Up to the training, which tests/test_documentation.py runs."""
    script = "import seqrec_prompt.quickstart as q; print(q._recipe()); print(q.SAMPLE)"
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    recipe, sample = done.stdout.split()
    assert Path(recipe) == unpacked / "seqrec_prompt" / "quickstart.yaml"
    assert Path(recipe).read_bytes() == (ROOT / "recipes" / "configs" / "quickstart.yaml").read_bytes()
    files = [f"--{name}={sample}/{name}.csv.gz" for name in ("interactions", "items")]
    done = run(unpacked, tmp_path, "prepare", "--config", recipe, *files, "--out", "data")
    assert done.returncode == 0, done.stderr
    assert "2,490 sessions, 1,992 items" in done.stdout


def test_help_of_the_wheel_is_there_and_its_version_known(unpacked, tmp_path):
    assert run(unpacked, tmp_path, "--version").stdout == "seqrec-prompt 0.1.0\n"
    shown = run(unpacked, tmp_path, "recommend", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "example:" in shown.stdout
