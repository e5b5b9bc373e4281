"""TensorFlow is imported without its start-up messages."""

import os
import sys


def test_other_messages_stay(capfd):
    from tfloss.app.quiet import _START_UP_MESSAGES, _without

    with _without(_START_UP_MESSAGES):
        os.write(2, b"I0000 00:00 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"E0000 00:00 alloc.cc:1] out of memory\n")
        print("a warning", file=sys.stderr)

    err = capfd.readouterr().err
    assert "port.cc" not in err
    assert "out of memory\n" in err
