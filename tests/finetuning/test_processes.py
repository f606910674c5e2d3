"""Several processes train what one does; the launch configs are ones that accelerate reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from seqrec_prompt.artifacts import read_manifest

ROOT = Path(__file__).parents[2]
LAUNCH = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


def finetune(out, processes, tiny_model, dataset_dir, **changes):
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
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"finetune": config}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, "recipes/finetune.py", "--config", str(file)]
    # `accelerate` would otherwise take a GPU, of which one machine has and the other has not.
    given = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


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


@pytest.mark.parametrize("file", LAUNCH, ids=lambda file: file.stem)
def test_launch_configs_are_read_by_accelerate(file):
    config = load_config_from_file(str(file))
    known = {"one_process": "NO", "several_gpus": "MULTI_GPU", "fsdp": "FSDP", "deepspeed_zero3": "DEEPSPEED"}
    assert str(config.distributed_type).rpartition(".")[2] == known[file.stem]
