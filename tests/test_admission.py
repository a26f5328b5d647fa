"""Admission: who is let in, and what the others are told."""

from contextlib import ExitStack

import pytest

from sheen.serve.admission import Admission
from sheen.serve.errors import APIError


def test_beyond_the_limit_a_request_is_told_to_come_back_until_one_leaves() -> None:
    admission = Admission(limit=2, slots=1)
    with ExitStack() as first, admission.enter():
        first.enter_context(admission.enter())
        for _ in range(3):  # a refusal takes no place
            with pytest.raises(APIError, match="2 requests") as refused:
                first.enter_context(admission.enter())
            assert refused.value.status == 429
            assert isinstance(refused.value.retry_after_s, int)
            assert refused.value.retry_after_s >= 1
        first.close()
        assert admission.inside == 1
        with admission.enter():
            assert admission.inside == 2
    assert admission.inside == 0


def test_a_request_that_fails_gives_its_place_back() -> None:
    admission = Admission(limit=1, slots=1)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="broken"), admission.enter():
            raise RuntimeError("broken")
    admission.check()


def test_while_it_drains_those_inside_stay_and_nobody_is_let_in() -> None:
    admission = Admission(limit=2, slots=2)
    with admission.enter():
        admission.draining = True
        with pytest.raises(APIError, match="stopping") as refused:
            admission.check()
        assert refused.value.status == 503
        assert refused.value.retry_after_s
        assert admission.inside == 1
    assert admission.inside == 0
