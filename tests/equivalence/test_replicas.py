import pytest

from tests.equivalence.kinds import KINDS, difference, train

QUICK = {(name, 2) for name in KINDS} | {("uneven batches", 8)}
CASES = [
    pytest.param(name, count, marks=[] if (name, count) in QUICK else pytest.mark.slow)
    for name in KINDS
    for count in (2, 4, 8)
]
_one: dict = {}


@pytest.mark.promise(9)
@pytest.mark.filterwarnings("ignore:No loss reaches")
@pytest.mark.parametrize(("name", "count"), CASES)
def test_weights_after_20_steps_are_those_of_one_replica(name, count, replicas):
    kind = KINDS[name]
    if name not in _one:
        _one[name] = train(kind, replicas(1))
    found = difference(_one[name], train(kind, replicas(count)))
    if kind.agrees:
        assert found < 1e-5
    else:
        assert found > 1e-3, "the comparison can't tell a wrong loss from a right one"
