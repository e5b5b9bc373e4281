from tfloss import hooks
from tfloss.hooks import Every, Hook
from tfloss.hooks.base import is_own


def test_every_method_is_optional_and_states_are_not_shared(make_trainer):
    class Forgetful(Hook):
        every = Every(steps=1)

        def __init__(self):
            pass  # no super()

    first, second = Forgetful(), Forgetful()
    first.state["n"] = 1
    assert second.state == {}
    make_trainer([first, second]).train(2)


def test_a_hook_has_six_methods():
    methods = [name for name, value in vars(Hook).items() if callable(value)]
    public = [name for name in methods if not name.startswith("_")]
    assert public == [
        "before_train",
        "after_step",
        "on_log",
        "before_save",
        "dry_run",
        "after_train",
    ]


def test_tfloss_knows_its_own_classes_whatever_their_module_is():
    exported = [one for one in vars(hooks).values() if isinstance(one, type)]
    theirs = [one for one in exported if issubclass(one, Hook) and one is not Hook]
    assert len(theirs) > 15 and all(is_own(object.__new__(one)) for one in theirs)

    class Mine(hooks.EarlyStopping):
        __module__ = "tfloss.hooks.early_stopping"

    assert not is_own(object.__new__(Mine))
