"""A small table, quickly made."""

import numpy as np
import pytest
import yaml

from seqrec_prompt.reproduction.plans import load_plan


@pytest.fixture
def table(tmp_path):
    """Raw files of sixty sessions that walk up a catalog of twenty items, and a plan of three rows over them."""
    draw = np.random.default_rng(0)
    lines = ["session_id,item_id"]
    for session in range(60):
        start = int(draw.integers(20))
        lines += [f"s{session},i{(start + step) % 20}" for step in range(int(draw.integers(3, 7)))]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "interactions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    titles = ["item_id,title", *(f"i{item},Hand Cream No {item}" for item in range(20))]
    (tmp_path / "raw" / "items.csv").write_text("\n".join(titles) + "\n", encoding="utf-8")
    base = load_plan("recsys23-beauty").model_dump(mode="json")
    rows = ("GRU4Rec", "MostPopular", "V-SKNN")
    plan = base | {
        "seeds": [0, 1],
        "prepare": {
            "interactions": "{raw}/interactions.csv",
            "items": "{raw}/items.csv",
            "split": "leave_one_out",
            "seed": "{seed}",
            "out": "{run}/data",
        },
        "rows": {name: base["rows"][name] for name in rows},
        "pairs": {"V-SKNN": "MostPopular"},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    return {"plan": str(tmp_path / "plan.yaml"), "data": tmp_path / "raw", "out": tmp_path / "out", "epochs": 1}
