"""The house keeps its shape: imports run one way, heavy libraries stay in their rooms, every shipped YAML is valid."""

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

import seqrec_prompt
from seqrec_prompt.config import Config, load
from seqrec_prompt.verbs import VERBS

PACKAGE = Path(seqrec_prompt.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))

# A room may import its own floor and the floors below it.
FLOORS = [
    {"errors", "config", "console", "artifacts", "journal", "locks", "ragged"},
    {"data"},
    {"decoding", "prompting", "embeddings"},
    {"engines", "finetuning"},
    {"recommenders"},
    {"evaluation"},
    {"serving", "planning"},
    {"cli", "verbs", "__main__", "dry_run", "completion", "init", "steps", "quickstart", "reproduction", ""},
]
HEAVY = ("torch", "transformers", "peft", "trl", "vllm")
HEAVY_ROOMS = {"engines", "finetuning"}
# In the room of the sequential models these two are read by others, before any model is.
TORCH = "seqrec_prompt.recommenders.sequential."
LIGHT = {f"{TORCH}settings", f"{TORCH}recommender"}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def statements(node, *, whole):
    """Statements below `node`: all of them, or only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if not whole:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for other in child.orelse:
                    yield from statements(ast.Module([other], []), whole=whole)
                continue
        yield child
        yield from statements(child, whole=whole)


def imported(name, *, whole):
    """Dotted names that a module imports; `from a import b` counts as a.b where that is a module, else as a."""
    found = set()
    for node in statements(MODULES[name], whole=whole):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} line {node.lineno}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in MODULES else node.module for one in inner}
    return found


def room(module):
    return [*module.split("."), ""][1]


def is_heavy(module):
    return room(module) in HEAVY_ROOMS or (module.startswith(TORCH) and module not in LIGHT)


def floor(module):
    floors = [i for i, rooms in enumerate(FLOORS) if room(module) in rooms]
    assert floors, f"{module}: the room '{room(module)}' stands on no floor of this test"
    return floors[0]


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    upward = [
        other
        for other in sorted(imported(name, whole=True))
        if room(other) and other.startswith("seqrec_prompt.") and floor(other) > floor(name)
    ]
    assert not upward, f"{name} imports from a floor above it"


def test_no_import_cycles():
    graph = {name: {one for one in imported(name, whole=False) if one in MODULES} - {name} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("name", [name for name in MODULES if not is_heavy(name)])
def test_heavy_libraries_are_imported_only_in_their_rooms(name):
    heavy = {one.split(".")[0] for one in imported(name, whole=False)} & set(HEAVY)
    assert not heavy, f"{name} imports {heavy} when it is imported"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "seqrec_prompt.console"])
def test_progress_is_shown_in_one_place(name):
    """console.progress knows --quiet and whether anybody watches; a bar of another library does not."""
    assert "tqdm" not in {one.split(".")[0] for one in imported(name, whole=True)}, f"{name}: use console.progress"


def test_the_reading_of_import_statements():
    """The checks above see what they must: nested and guarded imports are told apart."""
    source = "if TYPE_CHECKING:\n import a\nelse:\n import b\ntry:\n import c\nexcept E: pass\ndef f():\n import d\n"
    MODULES["sample"] = ast.parse(source)
    try:
        assert imported("sample", whole=False) == {"b", "c"}
        assert imported("sample", whole=True) == {"a", "b", "c", "d"}
    finally:
        del MODULES["sample"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_help_loads_no_heavy_library():
    """Run in a fresh process: after the import of the command line, and after each verb's --help."""
    script = """
import contextlib, importlib.util, io, json, sys
from seqrec_prompt import cli, verbs
heavy = ("torch", "transformers", "datasets", "peft", "trl", "accelerate", "vllm")
loaded = {"import seqrec_prompt.cli": [name for name in heavy if name in sys.modules]}
for verb in verbs.VERBS:
    if importlib.util.find_spec(verbs.VERBS[verb].module) is None:
        continue
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        cli.main([verb, "--help"])
    assert "--config" in text.getvalue(), verb
    loaded[verb] = [name for name in heavy if name in sys.modules]
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert len(loaded) >= 4
    assert {name: libraries for name, libraries in loaded.items() if libraries} == {}


SECTIONS = [
    pytest.param(path, verb, id=f"{path.stem}-{verb}")
    for path in CONFIGS
    for verb in yaml.safe_load(path.read_text(encoding="utf-8"))
]


def config_class(verb):
    entry = VERBS[verb]
    if importlib.util.find_spec(entry.module) is None:
        pytest.skip(f"{entry.module} is not written yet")
    return getattr(importlib.import_module(entry.module), entry.config)


@pytest.mark.parametrize(("path", "verb"), SECTIONS)
def test_every_shipped_config_is_valid(path, verb):
    assert verb in VERBS, f"{path}: the section '{verb}' is no verb"
    config = load(config_class(verb), path, verb=verb)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))[verb]
    assert set(written) <= config.model_fields_set


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_config_a_function_and_an_example(verb):
    cls = config_class(verb)
    assert issubclass(cls, Config)
    assert callable(getattr(importlib.import_module(VERBS[verb].module), verb.split()[-1]))
    assert VERBS[verb].example.startswith(f"seqrec-prompt {verb} ")
