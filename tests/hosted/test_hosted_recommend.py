"""`recommend --engine openai`: a server that tells probabilities gives the lists of the model itself; others do not."""

import re
import shlex

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seqrec_prompt.cli import main
from seqrec_prompt.errors import ArtifactError, ConfigError, HostedError, ModelError
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend


class Completions:
    """vLLM's completions over the tiny model: forwards of whole texts; keeps what it was asked."""

    def __init__(self, directory):
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.asked, self.change = [], lambda answer: answer

    @torch.inference_mode()
    def __call__(self, body):
        self.asked.append(body)
        assert body["max_tokens"] == 1
        assert body["temperature"] == 0
        assert len(body["logprob_token_ids"]) <= 128
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, add_special_tokens=body["add_special_tokens"])
        logp = self.model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        told = {f"token_id:{i}": float(logp[i]) for i in {*body["logprob_token_ids"], int(logp.argmax())}}
        logprobs = {"text_offset": [0], "token_logprobs": [float(logp.max())], "tokens": ["x"], "top_logprobs": [told]}
        choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": logprobs}
        if body.get("return_token_ids"):
            choice["prompt_token_ids"] = prompt
        return self.change(
            {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"], "choices": [choice]}
        )


def card(name, **more):
    return {"id": name, "object": "model", "created": 1, "owned_by": "vllm", **more}


@pytest.fixture
def server(fake, tiny_model):
    fake.complete = Completions(tiny_model)
    fake.models = [card("tiny", max_model_len=1024)]
    return fake


@pytest.fixture
def config_of(fake, tiny_model, dataset_dir, tmp_path):
    def build(engine="openai", **changes):
        settings = {"data": dataset_dir, "out": tmp_path / f"{engine}.parquet", "model": str(tiny_model), "k": 5}
        settings |= (
            {"base_url": fake.url, "key_variable": "OPENAI_API_KEY"} if engine == "openai" else {"dtype": "float32"}
        )
        return RecommendConfig(engine=engine, **settings | {"context": 1024, "max_sessions": 4} | changes)

    return build


def rows_of(path):
    return pq.read_table(path).to_pylist()


def assert_same_lists(one, other):
    one, other = rows_of(one), rows_of(other)
    for name in ("session_id", "rank", "item_id", "certified"):
        assert [row[name] for row in one] == [row[name] for row in other]
    assert [row["score"] for row in one] == pytest.approx([row["score"] for row in other], abs=1e-3)


@pytest.mark.parametrize("scoring", ["renormalised", "joint"])
def test_the_lists_are_those_of_the_model_itself(config_of, server, scoring):
    wanted = recommend(config_of("transformers", scoring=scoring))
    assert_same_lists(recommend(config_of(scoring=scoring)), wanted)
    assert {body["model"] for body in server.complete.asked} == {"tiny"}


def test_a_lost_connection_is_asked_again_and_a_stopped_run_goes_on(config_of, server, pauses, capsys):
    wanted = recommend(config_of("transformers"))
    config = config_of(batch_size=2)
    server.fault("POST", "/completions", "drop")
    server.fault("GET", "/models", "status", 503, "Loading.")
    complete, journal = server.complete, config.out.with_name("openai.parquet.journal")

    def closing(body):
        if journal.exists() and b"positions" in journal.read_bytes():
            server.fault("POST", "/completions", "status", 401, "Who are you?")
        return complete(body)

    server.complete = closing
    with pytest.raises(HostedError, match=r"asking for a completion: .* answered 401: Who are you"):
        recommend(config)
    assert len(pauses) == 2
    server.complete, server.faults = complete, []
    capsys.readouterr()
    assert_same_lists(recommend(config), wanted)
    assert "going on: 2/4 sessions are done" in capsys.readouterr().out


def test_a_name_that_is_not_served_is_refused_with_those_that_are(config_of, server):
    server.models = [card("base", max_model_len=700), card("tuned", parent="base")]
    with pytest.raises(ConfigError, match=r"serves several models\. Give --served one of: 'base', 'tuned'"):
        recommend(config_of())
    with pytest.raises(ConfigError, match=r"does not serve 'other'\. Give --served one of: 'base', 'tuned'"):
        recommend(config_of(served="other"))
    recommend(config_of(served="tuned"))
    assert {body["model"] for body in server.complete.asked} == {"tuned"}
    assert max(len(body["prompt"]) for body in server.complete.asked) < 700  # what an adapter's base reads


def logits(answer):
    told = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    told.update({name: value + 50 for name, value in told.items()})
    return answer


def low_logits(answer):
    """Of a model whose logits are all negative."""
    logprobs = answer["choices"][0]["logprobs"]
    logprobs["top_logprobs"] = [{name: value - 50 for name, value in logprobs["top_logprobs"][0].items()}]
    logprobs["token_logprobs"] = [logprobs["token_logprobs"][0] - 50]
    return answer


def without_names(answer):
    answer["choices"][0]["logprobs"]["top_logprobs"] = [{"x": -1.0}]
    return answer


def without_logprobs(answer):
    answer["choices"][0]["logprobs"] = None
    return answer


def other_tokens(answer):
    answer["choices"][0]["prompt_token_ids"] = [7]
    return answer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_names, r"does not tell the log-probabilities.*\n.*hosted generate --base-url http"),
        (without_logprobs, r"does not tell the log-probabilities"),
        (lambda answer: answer | {"choices": []}, r"does not tell the log-probabilities"),
        (logits, r"tells logits.*--logprobs-mode raw_logprobs"),
        (low_logits, r"tells logits.*--logprobs-mode raw_logprobs"),
        (other_tokens, r"tiny at http.* reads text by other tokens than"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_before_anything_is_decoded(config_of, server, change, words):
    server.complete.change = change
    config = config_of()
    with pytest.raises(ModelError, match=words):
        recommend(config)
    assert server.posts("/completions") == 1
    assert not list(config.out.parent.glob("openai.parquet*"))


def test_where_no_list_can_be_constrained_the_error_names_the_way_that_works(
    config_of, fake, dataset_dir, catalog, tmp_path
):
    fake.models = [card("tiny-chat")]
    titles = catalog.texts()
    fake.answer = lambda body: [titles[0], titles[1], "no title"]
    with pytest.raises(ModelError, match=r"No such thing: /completions") as told:
        recommend(config_of())
    generate, ground = re.findall(r"seqrec-prompt (.*) …", str(told.value))
    answers, lists = tmp_path / "answers.parquet", tmp_path / "lists.parquet"
    data = f"--data {dataset_dir} --n 3 --out {answers} --encoding tiny"
    assert main(shlex.split(f"{generate} {data}")) == 0
    assert main(shlex.split(f"{ground} --data {dataset_dir} --answers {answers} --out {lists} --k 5")) == 0
    found = {row["item_id"] for row in rows_of(lists)}
    assert found == {catalog.ids[0], catalog.ids[1]}


def test_what_is_refused_before_anything_is_sent(config_of, fake, tmp_path):
    for changes, words in (
        ({"base_url": None}, r"needs 'base_url'"),
        ({"base_url": "localhost:8000"}, r"must be an address"),
        ({"base_url": "http://me:secret@host/v1"}, r"must hold no key"),
        ({"dtype": "float32"}, r"'dtype' is the server's"),
        ({"adapter": tmp_path}, r"give it as 'served'"),
    ):
        with pytest.raises(ValueError, match=words):
            config_of(**changes)
    for setting in ({"served": "x"}, {"key_variable": "X"}, {"timeout": 3}):
        with pytest.raises(ValueError, match=rf"'{next(iter(setting))}' is for 'engine' openai"):
            config_of("transformers", **setting)
    assert fake.log == []


def test_a_key_is_sent_only_where_it_is_named(config_of, server):
    """OPENAI_API_KEY is set, and no business of a server of one's own."""
    said = r"answered 401: Incorrect API key provided: none\. Check the key in the environment variable that --key-var"
    with pytest.raises(HostedError, match=said):
        recommend(config_of(key_variable=None))
    recommend(config_of())


def test_an_address_where_nobody_listens_is_told_at_once(config_of, unused_address, pauses):
    words = rf"asking for the models: {unused_address}: no connection \(ConnectError.*Check --base-url"
    with pytest.raises(HostedError, match=words):
        recommend(config_of(base_url=unused_address))
    assert pauses == []


def test_a_server_that_moved_goes_on_with_the_run_and_another_model_is_another_run(config_of, server, capsys):
    wanted = recommend(config_of("transformers"))
    config, complete = config_of(batch_size=2), server.complete
    journal = config.out.with_name("openai.parquet.journal")

    def closing(body):
        if journal.exists() and b"positions" in journal.read_bytes():
            server.fault("POST", "/completions", "status", 401, "Who are you?")
        return complete(body)

    server.complete = closing
    with pytest.raises(HostedError):
        recommend(config)
    server.complete, server.faults = complete, []
    with pytest.raises(ArtifactError, match=r"config\.served: was None, is 'tiny'"):
        recommend(config_of(batch_size=2, served="tiny"))
    capsys.readouterr()
    moved = config_of(batch_size=2, base_url=server.url.replace("127.0.0.1", "localhost"))
    assert moved.base_url != config.base_url
    assert_same_lists(recommend(moved), wanted)
    assert "going on: 2/4 sessions are done" in capsys.readouterr().out
    assert recommend(config) == moved.out  # made, whatever the address
    assert "already recommended" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match=r"config\.served: was"):
        recommend(config_of(batch_size=2, served="tiny"))
