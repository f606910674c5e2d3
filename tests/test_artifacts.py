"""Results on disk: whole or not at all, never of another making, and nothing lost when a process dies."""

import json
import os

import pytest

from seqrec_prompt.artifacts import (
    MANIFEST,
    atomic_file,
    hash_file,
    hash_json,
    is_done,
    manifest,
    peek_manifest,
    read_manifest,
    refuse_inputs_inside,
    staged_directory,
    write_json,
    write_text,
)
from seqrec_prompt.errors import ArtifactError

IDENTITY = manifest("bake", {"flour": 1, "oven": {"heat": 180}, "out": "cake"}, {"eggs": "abc"})


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_an_atomic_file_replaces_the_old_one_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_text(path, "old")
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.parent == path.parent
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_atomic_file_keeps_the_old_one_when_the_block_raises(tmp_path, error):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(error), atomic_file(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_an_atomic_file_that_never_was_is_not_there_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="stop"), atomic_file(tmp_path / "file.txt") as partial:
        partial.write_text("half")
        raise ValueError("stop")
    assert names(tmp_path) == []


def test_files_and_directories_have_the_usual_rights(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
        with staged_directory(tmp_path / "folder") as staged:
            (staged / "a").write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_staged_directory_replaces_the_old_one_as_a_whole(tmp_path):
    path = tmp_path / "deep" / "folder"
    for content in ("a", "b"):
        with staged_directory(path) as staged:
            (staged / content).write_text(content)
            assert staged.parent == path.parent
    assert (names(path), names(path.parent)) == (["b"], ["folder"])


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").symlink_to("real.json")
    with staged_directory(tmp_path / "link") as staged:
        (staged / "a").write_text("a")
    with atomic_file(tmp_path / "file") as partial:
        partial.write_text("b")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").is_symlink()
    assert names(tmp_path / "real") == ["a"]
    assert (tmp_path / "real.json").read_text() == "b"
    assert names(tmp_path) == ["file", "link", "real", "real.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_staged_directory_keeps_the_old_one_when_the_block_raises(tmp_path, error):
    path = tmp_path / "folder"
    with staged_directory(path) as staged:
        (staged / "a").write_text("old")
    with pytest.raises(error), staged_directory(path) as staged:
        (staged / "a").write_text("half")
        raise error
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_where_an_input_lies_is_not_what_it_is(tmp_path):
    """An input is known by its hash: the same data under another path is the same work."""
    one, other = ({"flour": 1, "eggs": place} for place in ("shelf", "fridge"))
    assert is_done(
        tmp_path, manifest("bake", one, {"eggs": "abc"}), manifest("bake", other, {"eggs": "abc"}), overwrite=False
    )
    with pytest.raises(ArtifactError, match=r"inputs\.eggs"):
        is_done(
            tmp_path, manifest("bake", one, {"eggs": "abc"}), manifest("bake", one, {"eggs": "old"}), overwrite=False
        )


def test_what_another_stage_made_is_not_overwritten(tmp_path):
    with pytest.raises(ArtifactError, match="was not made by 'fry'"):
        is_done(tmp_path, IDENTITY, IDENTITY | {"stage": "fry"}, overwrite=True)


def test_an_output_that_would_replace_its_input_is_refused(tmp_path):
    (tmp_path / "out" / "data").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"'data' = .* lies inside 'out'"):
        refuse_inputs_inside(tmp_path / "out", {"data": tmp_path / "out" / "data"})
    refuse_inputs_inside(tmp_path / "out" / "data" / "run", {"data": tmp_path / "out" / "data", "model": None})


def test_nothing_there_is_not_done(tmp_path):
    (tmp_path / "empty").mkdir()
    assert not is_done(tmp_path / "none", None, IDENTITY, overwrite=False)
    assert not is_done(tmp_path / "empty", None, IDENTITY, overwrite=False)


def test_the_same_settings_are_done_wherever_and_whenever_they_were_run(tmp_path):
    found = manifest(
        "bake", {"flour": 1, "oven": {"heat": 180}, "out": "elsewhere", "overwrite": True}, {"eggs": "abc"}, {"s": 3}
    )
    found["created"], found["versions"] = "1999", {}
    assert is_done(tmp_path, json.loads(json.dumps(found)), IDENTITY, overwrite=False)
    assert not is_done(tmp_path, found, IDENTITY, overwrite=True)


def test_other_settings_are_refused_by_name(tmp_path):
    with pytest.raises(ArtifactError, match=r"config\.oven\.heat: was 180, is 90\nChoose another --out, or --overw"):
        is_done(
            tmp_path, IDENTITY, manifest("bake", {"flour": 1, "oven": {"heat": 90}}, {"eggs": "abc"}), overwrite=False
        )
    with pytest.raises(ArtifactError, match=r"inputs\.eggs: was 'abc', is 'changed'"):
        is_done(tmp_path, IDENTITY, IDENTITY | {"inputs": {"eggs": "changed"}}, overwrite=False)
    with pytest.raises(ArtifactError, match=r"was not made by 'fry'\. Choose another --out"):
        is_done(tmp_path, IDENTITY, IDENTITY | {"stage": "fry"}, overwrite=False)


def test_a_directory_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match="exists and was not made by seqrec_prompt"):
            is_done(tmp_path, None, IDENTITY, overwrite=overwrite)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no manifest.json; expected a directory made by 'bake'"),
        ("{torn", r"manifest.json is damaged .*Run 'seqrec-prompt bake' again"),
        ("[1]", "was not made by 'seqrec-prompt bake'"),
        ('{"stage": "fry"}', "was not made by 'seqrec-prompt bake'"),
    ],
)
def test_a_manifest_that_is_none_is_explained(tmp_path, content, message):
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path, "bake")
    with pytest.raises(
        ArtifactError, match=r"/no is not a directory; expected .* by 'bake'\. See: seqrec-prompt bake --help"
    ):
        read_manifest(tmp_path / "no", "bake")


def test_a_manifest_is_read_back(tmp_path):
    write_json(tmp_path / MANIFEST, IDENTITY)
    assert read_manifest(tmp_path, "bake") == peek_manifest(tmp_path) == IDENTITY
    assert peek_manifest(tmp_path / "no") is None
    (tmp_path / MANIFEST).write_text("{torn")
    assert peek_manifest(tmp_path) is None
    assert {"python", "torch", "numpy"} <= set(IDENTITY["versions"])


def test_the_hash_of_a_file_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert hash_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_hash_of_a_directory_depends_on_names_and_bytes_alone(tmp_path):
    for folder, order in (("one", "abc"), ("two", "cab")):
        for name in order:
            (tmp_path / folder / "sub").mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "sub" / name).write_text(name)
    first = hash_file(tmp_path / "one")
    assert hash_file(tmp_path / "two") == first
    (tmp_path / "two" / "sub" / "a").rename(tmp_path / "two" / "a")
    assert hash_file(tmp_path / "two") != first
    (tmp_path / "one" / "sub" / "a").write_text("A")
    assert hash_file(tmp_path / "one") != first


def test_the_hash_of_json_is_independent_of_key_order():
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1}) != hash_json({"a": 1, "b": [2, 1]})
