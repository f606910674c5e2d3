"""The card of an adapter: what it is for, what it was made from, how good it is, under which terms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from seqrec_prompt.evaluation import tables
from seqrec_prompt.evaluation.tables import Result


def model_card(adapter: Path, identity: str, trained: Mapping[str, Any], result: Result, licence: str | None) -> str:
    """Write the card as Markdown with the YAML head that model hubs read.

    identity, trained: hash and manifest of the adapter. result: an evaluation; the card says which of its rows are the
    adapter's.
    """
    config, facts, inputs = trained["config"], trained["facts"], trained["inputs"]
    head = {
        "base_model": config["model"],
        "library_name": "transformers" if config.get("method") == "full" else "peft",
        "license": licence or "unknown",
        "tags": ["sequential-recommendation", "seqrec_prompt"],
    }
    of_adapter = [row["name"] for row in result["recommenders"] if row["made_from"].get("adapter") == identity]
    same_data = result["inputs"]["data"] == inputs["data"]
    whose = (
        f"Rows of this adapter: {', '.join(of_adapter)}."
        if of_adapter
        else "No row of this evaluation is this adapter's."
    )
    loss = facts.get("loss") or []
    facts_of_training = {
        "Objective": config.get("objective"),
        "Method": config.get("method", "lora"),
        "Steps": facts.get("steps"),
        "Time": f"{facts['seconds']:,.0f} s" if "seconds" in facts else None,
        "Loss, first and last": " → ".join(f"{value:.3f}" for value in loss),
        "Validation NDCG@10, best": facts.get("validation"),
        "Learning rate": config.get("learning_rate"),
        "Batch": f"{config.get('batch_size')} × {config.get('gradient_accumulation')}",
        "Seed": config.get("seed"),
        "Hardware": facts.get("hardware"),
        "Versions": ", ".join(f"{name} {version}" for name, version in sorted(trained["versions"].items())),
    }
    facts_of_data = {
        "Training examples": f"{facts['examples']:,}" if "examples" in facts else None,
        "Data": inputs["data"],
        "Catalog": inputs["catalog"],
        "Template": inputs["template"],
        "Base model": inputs["model"],
        "Adapter": identity,
    }
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n",
            f"# {adapter.resolve().name}\n",
            f"Tuned from `{config['model']}` to continue sessions with an item of one catalog. It knows the titles of",
            "that catalog only; with `seqrec-prompt recommend` every list holds real items of it, none twice.\n",
            "```",
            f"seqrec-prompt recommend --data DATA --model {config['model']} --adapter {adapter} --out recs.parquet",
            "```\n",
            "## Data\n",
            "Hashes (SHA-256) say what it was made from; the licence of the data is not recorded.\n",
            *_list(facts_of_data),
            "\n## Prompt\n",
            f"```json\n{json.dumps(config['template'], indent=2, ensure_ascii=False)}\n```\n",
            "## Training\n",
            *_list(facts_of_training),
            "\n## Metrics\n",
            f"{whose} "
            + (
                "Evaluated on the test part of the same data."
                if same_data
                else "Evaluated on other data than it was trained on."
            )
            + "\n",
            tables.markdown(result),
            "\n".join(f"- {note}" for note in result["notes"]),
            "\n## Licence\n",
            f"{licence}."
            if licence
            else "Not stated. The terms of the base model and of the data apply to what is made from them.",
            "",
        ]
    )


def _list(facts: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in facts.items() if value not in (None, "")]
