"""`recommend` and `embed` with --engine vllm: what transformers gives, with an adapter, resumed, refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.engines.embed import EmbedConfig, embed
from seqrec_prompt.errors import ModelError
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.recommenders.recommend import recommend
from seqrec_prompt.serving.ready import Question, load_ready
from seqrec_prompt.serving.serve import ServeConfig


def test_an_adapter_is_served_as_transformers_merges_it_and_a_stopped_run_goes_on(
    config_of, assert_same_lists, monkeypatch, capsys
):
    wanted = recommend(config_of("transformers"))
    untuned = recommend(config_of("transformers", adapter=None, out=wanted.with_name("untuned.parquet")))
    assert pq.read_table(untuned, columns=["item_id"]) != pq.read_table(wanted, columns=["item_id"])

    from seqrec_prompt.engines.vllm import VLLMEngine

    config, calls, generate = config_of("vllm", batch_size=4), [], VLLMEngine._generate

    def stopped(self, *given):
        calls.append(given)
        if len(calls) > 6:
            raise KeyboardInterrupt
        return generate(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(VLLMEngine, "_generate", stopped)
        with pytest.raises(KeyboardInterrupt):
            recommend(config)
    journal = config.out.with_name("vllm.parquet.journal")
    done = sum("positions" in line for line in journal.read_text(encoding="utf-8").splitlines())
    assert done in (1, 2)  # of three batches
    capsys.readouterr()
    assert_same_lists(recommend(config), wanted)
    assert f"going on: {4 * done}/12 sessions are done" in capsys.readouterr().out
    assert not journal.exists()


def test_embeddings_are_those_of_transformers(wide_model, dataset_dir, catalog, tmp_path, adapter):
    for pooling, tuned in (("weighted-mean", adapter), ("mean", None), ("last", None)):
        tables = []
        for engine in ("transformers", "vllm"):
            config = EmbedConfig(
                data=dataset_dir, out=tmp_path / f"{engine}-{pooling}", model=str(wide_model), adapter=tuned,
                pooling=pooling, engine=engine, max_tokens=64,
            )  # fmt: skip
            tables.append(EmbeddingTable.load(embed(config), catalog).vectors)
        assert np.abs(tables[0]).max() > 0.1
        assert tables[1] == pytest.approx(tables[0], abs=1e-4)


def test_what_vllm_does_not_serve_is_refused_with_the_way_out(config_of, tmp_path, wide_model, dataset_dir):
    settings = {"context": 1024, "max_steps": 1, "dtype": "float32", "method": "dora"}
    dora = finetune(FinetuneConfig(data=dataset_dir, out=tmp_path / "dora", model=str(wide_model), **settings))
    with pytest.raises(ModelError, match=r"dora is a DoRA adapter.*--engine transformers"):
        recommend(config_of("vllm", adapter=dora))


def test_it_answers_from_the_thread_that_serves(dataset_dir, wide_model, adapter):
    """As `serve` and `demo` ask it: sessions with lists of different lengths, off the main thread."""
    data = Dataset.load(dataset_dir)
    prompts = [prompt.astype(np.int32) for prompt in data.split.test.prompts]
    questions = [Question(prompt, 3 + row % 2, exclude_seen=row % 3 == 0) for row, prompt in enumerate(prompts)]
    found = []
    for engine in ("transformers", "vllm"):
        config = ServeConfig(
            data=dataset_dir, model=str(wide_model), adapter=adapter, engine=engine, dtype="float32", context=1024
        )
        ready = load_ready(config, data)
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(ready["llm"].answer, questions).result())
    for one, other in zip(*found, strict=True):
        assert one.items.tolist() == other.items.tolist()
        assert one.scores == pytest.approx(other.scores, abs=1e-3)
