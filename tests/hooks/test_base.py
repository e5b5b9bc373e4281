import subprocess
import sys

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


def test_importing_hooks_imports_neither_tensorboard_nor_rich():
    # Keras itself imports rich, so it goes first.
    code = (
        "import sys, keras, tensorflow\n"
        "before = set(sys.modules)\n"
        "import tfloss.hooks\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'tensorboard', 'rich', 'tensorflow_datasets'}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "[]\n", ran.stderr
