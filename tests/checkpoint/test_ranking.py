"""The stored ranking of the best checkpoints."""

import json

import pytest

from tfloss.checkpoint.ranking import Ranking, ranking_of_checkpoint, ranking_of_state

RANKING = Ranking("val/accuracy", "max", ((0.9, 200), (0.8, 100)))


def test_a_ranking_survives_json():
    state = json.loads(json.dumps(RANKING.to_state()))
    assert state == {"metric": "val/accuracy", "mode": "max", "best": [[0.9, 200], [0.8, 100]]}
    assert ranking_of_state(state) == RANKING and RANKING.steps == {100, 200}


@pytest.mark.parametrize("state", [{}, {"best": []}])
def test_a_state_without_a_metric_has_no_ranking(state):
    assert ranking_of_state(state) is None


def test_the_first_hook_with_a_ranking_counts_whatever_its_number():
    hooks = {"Evaluate": {}, "SaveCheckpoint": {}, "SaveCheckpoint_1": RANKING.to_state()}
    assert ranking_of_checkpoint({"hooks": hooks}) == RANKING


@pytest.mark.parametrize("name", ["EarlyStopping", "SaveCheckpointToBucket", "MySaveCheckpoint"])
def test_the_states_of_other_hooks_are_not_rankings(name):
    assert ranking_of_checkpoint({"hooks": {name: RANKING.to_state()}}) is None
    assert ranking_of_checkpoint({}) is None


def test_the_hook_has_the_name_that_is_searched_for():
    from tfloss.hooks import SaveCheckpoint

    extra = {"hooks": {SaveCheckpoint.__name__: RANKING.to_state()}}
    assert ranking_of_checkpoint(extra) == RANKING
