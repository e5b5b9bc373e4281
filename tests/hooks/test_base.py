from tfloss.hooks import Every, Hook


def test_every_method_is_optional_and_states_are_not_shared(make_trainer):
    class Forgetful(Hook):
        every = Every(steps=1)

        def __init__(self):
            pass  # no super()

    first, second = Forgetful(), Forgetful()
    first.state["n"] = 1
    assert second.state == {}
    make_trainer([first, second]).train(2)
