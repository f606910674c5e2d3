"""A training that is killed while it writes a checkpoint. Not forked: autograd and a fork do not go together."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from processes import Fault
from safetensors.numpy import load_file

from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune

FOLDER = Path(__file__).parent
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from processes import Fault, work
work(sys.argv[1:], Path({log!r}), Path({cache!r}), {fault!r})
"""


def losses(out):
    return {e["step"]: e["loss"] for e in json.loads((out / "log.json").read_text()) if "loss" in e}


def test_a_checkpoint_killed_half_written_is_passed_over(tiny_model, dataset_dir, tmp_path, outcome, capsys):
    def settings(out):
        return {
            "data": dataset_dir, "model": str(tiny_model), "context": 1024, "batch_size": 8, "max_steps": 5,
            "save_steps": 2, "logging_steps": 1, "dtype": "float32", "out": tmp_path / out,
        }  # fmt: skip

    (log := tmp_path / "log").touch()
    script = SCRIPT.format(folder=str(FOLDER), log=str(log), cache=str(tmp_path / "cache"), fault=Fault(die_in=FILE))
    words = [w for name, value in settings("out").items() for w in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run([sys.executable, "-c", script, "finetune", *words], check=False, capture_output=True)
    assert done.returncode == -9, (log.read_text(), done.stderr)
    out = tmp_path / "out"
    torn = out / "checkpoints" / "checkpoint-4" / FILE
    assert 0 < torn.stat().st_size < (out / "checkpoints" / "checkpoint-2" / FILE).stat().st_size
    assert not (torn.parent / "trainer_state.json").exists()
    capsys.readouterr()
    finetune(FinetuneConfig(**settings("out")))
    assert f"steps are done ({out / 'checkpoints' / 'checkpoint-2'})" in capsys.readouterr().out
    whole = finetune(FinetuneConfig(**settings("whole")))
    assert sorted(losses(out)) == [1, 2, 3, 4, 5]
    for step, loss in losses(whole).items():
        np.testing.assert_allclose(losses(out)[step], loss, rtol=1e-6)
    final, expected = (load_file(folder / "adapter_model.safetensors") for folder in (out, whole))
    for name, array in expected.items():
        np.testing.assert_allclose(final[name], array, rtol=1e-6, atol=1e-8)
    outcome("finetune", f"SIGKILL with {FILE} of a checkpoint half written", "checkpoint before it used, same losses")


FILE = "optimizer.pt"
