"""The type of the options is the signature of the step."""

import inspect
import typing

from tfloss.step.step_options import StepOptions
from tfloss.step.train_step import TrainStep


def test_the_options_are_the_keyword_arguments_of_the_step():
    signature = inspect.signature(TrainStep.__init__)
    hints = typing.get_type_hints(TrainStep.__init__)
    keywords = [name for name, one in signature.parameters.items() if one.kind is one.KEYWORD_ONLY]
    assert typing.get_type_hints(StepOptions) == {name: hints[name] for name in keywords}
    assert StepOptions.__required_keys__ == set()
