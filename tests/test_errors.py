"""Errors come whole from another process."""

import pickle

import pytest

from seqrec_prompt.errors import CostError, DataError, HostedError, MissingExtraError


@pytest.mark.parametrize(
    "error",
    [
        DataError(["row 1: no value", "row 2: no value"], "Drop them."),
        DataError(["row 1: no value"]),
        MissingExtraError("vLLM", 'pip install "seqrec_prompt[vllm]"'),
        HostedError("no answer", 503, retry_after=2.0),
        CostError("too much"),
    ],
)
def test_an_error_is_told_the_same_by_another_process(error):
    found = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)
