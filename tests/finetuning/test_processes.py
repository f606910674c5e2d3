"""Several processes train what one does; the launch configs are ones that accelerate reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

from seqrec_prompt.artifacts import read_manifest

ROOT = Path(__file__).parents[2]
LAUNCH = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


def launched(out, processes, tiny_model, dataset_dir, before="", **changes):
    """The finished process of recipes/finetune.py under torchrun; before: code that runs first in every process."""
    config = {
        "data": str(dataset_dir),
        "out": str(out),
        "model": str(tiny_model),
        "context": 1024,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 0.01,
        "dtype": "float32",
        "lora": {"r": 2, "alpha": 4},
    } | changes
    file, script = out.with_suffix(".yaml"), ROOT / "recipes" / "finetune.py"
    file.write_text(yaml.safe_dump({"finetune": config}))
    if before:
        text, script = script.read_text(encoding="utf-8"), out.with_suffix(".py")
        script.write_text(text.replace('if __name__ == "__main__":', before + '\nif __name__ == "__main__":'))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, str(script), "--config", str(file)]
    # `accelerate` would otherwise take a GPU, of which one machine has and the other has not.
    given = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=240, check=False)


def finetune(out, processes, **settings):
    done = launched(out, processes, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


STOP = """
from seqrec_prompt.finetuning.trainers import CatalogTrainer

real = CatalogTrainer.training_step


def training_step(self, *args, **kwargs):
    if self.state.global_step == {step}:
        raise RuntimeError("pulled the plug")
    return real(self, *args, **kwargs)


CatalogTrainer.training_step = training_step
"""


def stop_after(out, processes, step, **settings):
    """Let every process fail after `step` steps; returns what they say."""
    done = launched(out, processes, before=STOP.format(step=step), **settings)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize("objective", ["catalog", "all_items"])
def test_two_processes_train_as_one_with_batches_of_both(tiny_model, dataset_dir, tmp_path, objective):
    common = {"tiny_model": tiny_model, "dataset_dir": dataset_dir, "objective": objective}
    one, two = tmp_path / "one", tmp_path / "two"
    finetune(one, 1, batch_size=6, **common)
    shown = finetune(two, 2, batch_size=3, **common)
    assert shown.count("adapter: ") == 1, "only one process speaks and writes"
    losses = [read_manifest(out, "finetune")["facts"]["loss"] for out in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    weights = [load_file(out / "adapter_model.safetensors") for out in (one, two)]
    assert any(tensor.abs().max() > 0 for name, tensor in weights[0].items() if "lora_B" in name)
    for name, tensor in weights[0].items():
        assert (weights[1][name] - tensor).abs().max() < 1e-3, name


def test_a_run_goes_on_with_the_processes_that_it_began_with(tiny_model, dataset_dir, tmp_path):
    """`batch_size` is of each process: with others, batches and their order would be others."""
    out, common = tmp_path / "out", {"tiny_model": tiny_model, "dataset_dir": dataset_dir, "batch_size": 3}
    settings = {"save_steps": 2, "objective": "catalog"} | common
    whole = tmp_path / "whole"
    finetune(whole, 2, **settings)
    assert read_manifest(whole, "finetune")["facts"]["processes"] == 2
    stopped = stop_after(out, 2, 3, **settings)
    assert "pulled the plug" in stopped
    refused = launched(out, 1, **settings)
    assert refused.returncode != 0
    assert "this run was begun by 2 processes and would go on with 1" in refused.stderr
    finetune(out, 2, **settings)
    one, other = (load_file(place / "adapter_model.safetensors") for place in (whole, out))
    for name, tensor in one.items():
        assert (other[name] - tensor).abs().max() < 1e-5, name


@pytest.mark.parametrize("file", LAUNCH, ids=lambda file: file.stem)
def test_launch_configs_are_read_by_accelerate(file):
    config = load_config_from_file(str(file))
    known = {"one_process": "NO", "several_gpus": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero3": "DEEPSPEED"}
    assert str(config.distributed_type).rpartition(".")[2] == known[file.stem]


@pytest.mark.parametrize("file", LAUNCH, ids=lambda file: file.stem)
def test_every_key_of_a_launch_config_is_one_that_accelerate_knows(file):
    """Reading one goes by without a word on the keys of its inner parts."""
    known = {action.dest for action in launch_command_parser()._actions}
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    inner = [key for part in ("fsdp_config", "deepspeed_config") for key in config.get(part, {})]
    assert [key for key in inner if key not in known] == []
    assert bool(inner) == (file.stem in ("fsdp", "deepspeed_zero3"))
