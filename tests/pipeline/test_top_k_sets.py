"""The sets of layers that race, against sets written down by hand."""

import pytest

from autolayer.pipeline.top_k_sets import candidate_sets
from autolayer.search.records import Candidate


def singles(predicted: list[float], layers: list[int] | None = None) -> list[Candidate]:
    return [
        Candidate(layers=(layer,), predicted=value, predicted_sd=0.2, learning_rate=1e-3)
        for layer, value in zip(layers or range(len(predicted)), predicted, strict=True)
    ]


def test_the_sets_are_those_that_the_docstring_names() -> None:
    found = candidate_sets(singles([0.1, 0.9, 0.8, 0.2, 0.7, 0.1, 0.6, 0.0]), 3, 8)
    assert [each.layers for each in found] == [
        (1, 2, 4),  # the best
        (1, 2, 6),  # the runner-up for the weakest
        (1, 4, 6),  # no neighbours
        (1, 2, 3),  # the best block: 1.9, as 2-4 has 1.7
        (3, 4, 5),  # the middle
    ]
    assert found[0].predicted == pytest.approx(0.8) and found[0].predicted_sd == 0.2
    assert found[0].learning_rate == pytest.approx(1e-3 / 3**0.5)


def test_what_is_the_same_set_races_once_and_all_layers_are_one_set() -> None:
    falling = candidate_sets(singles([0.9, 0.8, 0.7, 0.6]), 2, 4)
    assert len({each.layers for each in falling}) == len(falling)
    assert falling[0].layers == (0, 1)
    assert [each.layers for each in candidate_sets(singles([0.9, 0.8, 0.7]), 3, 3)] == [(0, 1, 2)]
    assert [each.layers for each in candidate_sets(singles([0.9, 0.8, 0.7]), 7, 3)] == [(0, 1, 2)]


def test_candidates_far_apart_have_no_block() -> None:
    found = candidate_sets(singles([0.5, 0.6, 0.7], layers=[0, 10, 20]), 2, 24)
    # The best; the runner-up for the weakest; the best apart are the best; no two are consecutive; the middle is 12.
    assert [each.layers for each in found] == [(10, 20), (0, 20)]
