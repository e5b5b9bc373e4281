"""A notebook's cell shows a bar, a line and a table of losses, and nothing in red."""

import re
import sys
import types

import pytest

from tfloss.common.logger import in_notebook
from tfloss.common.notebook_display import NotebookDisplay

CELL = """
import keras, numpy as np, tfloss
net = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
trainer = tfloss.Trainer(
    tfloss.adapters.supervised(net, "mse"), keras.optimizers.SGD(0.1), workdir=WORKDIR, log_every=2,
    jit=False,
)
result = trainer.train((np.ones([8, 3]), np.ones([8, 1])), STEPS, batch_size=4)
"""


# Cells with an error in the user's model, and in the user's data.
FAILING = [
    """
class Wrong(keras.Model):
    def call(self, batch, training=False):
        return {"error": self.misspelt}
tfloss.Trainer(Wrong(), keras.optimizers.SGD(0.1)).train((np.ones([8, 3]),), 4, batch_size=4)
""",
    """
def batches():
    yield np.ones([4, 3], "f"), np.ones([4, 1], "f")
    yield np.ones([4, 3], "f"), np.ones([4, 1], "f")
    raise OSError("no such file")
tfloss.Trainer(
    tfloss.adapters.supervised(net, "mse"), keras.optimizers.SGD(0.1), jit=False
).train(batches, 4)
""",
]


class Handle:
    def __init__(self, shown):
        self.found = [shown]

    def update(self, shown):
        self.found.append(shown)


@pytest.fixture
def cell(monkeypatch):
    """The outputs of a cell: a stand-in for IPython with a kernel."""
    outputs = []

    def display(shown, display_id):
        outputs.append(Handle(shown))
        return outputs[-1]

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    shown = types.SimpleNamespace(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return outputs


def test_one_output_has_the_bar_the_line_and_the_last_ten_logs(cell):
    assert in_notebook()
    display = NotebookDisplay()
    display.start(0, 40)
    for step in range(1, 13):
        display.losses(step, {"total": step / 10, "<kl>": float("nan")})
        display.update(step, lambda width: f"step {step} & more")  # noqa: B023
    display.print_line("step 12  val/accuracy 0.5")
    display.headline(["  losses  <kl>", "  batch   4"])
    (output,) = cell
    last = output.found[-1]
    assert re.match(
        r'<pre style="[^"]*monospace">  losses  &lt;kl&gt;\n  batch   4</pre><prog', last
    )
    assert '<progress value="12" max="40" ' in last and ">step 12 &amp; more</div>" in last
    assert "<tr><th>step</th><th>total</th><th>&lt;kl&gt;</th></tr>" in last
    assert "<tr><td>12</td><td>1.2</td><td>nan</td></tr>" in last
    assert last.count("<tr>") == 11 and "<td>2</td>" not in last
    assert last.endswith('pre-wrap">step 12  val/accuracy 0.5</div>')
    display.stop()
    display.start(0, None)
    display.activity(lambda width: "saving")
    assert len(cell) == 1 and cell[0].found[-1] == last
    display.start(12, 20)
    display.update(12, lambda width: "again")
    assert len(cell) == 2 and "<table>" not in cell[1].found[-1]


def test_without_a_kernel_it_is_no_notebook(monkeypatch):
    shell = types.SimpleNamespace(get_ipython=lambda: None)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert not in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()


@pytest.mark.slow
def test_a_notebook_that_is_executed(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    quiet = "import os; os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'"
    cells = [quiet, *(CELL.replace("WORKDIR", repr(str(tmp_path / "run"))) for _ in range(2))]
    cells = [one.replace("STEPS", str(4 + 4 * i)) for i, one in enumerate(cells)] + FAILING
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells])
    nbclient.NotebookClient(notebook, timeout=300, allow_errors=True).execute()
    first, again, *failed = (cell.outputs for cell in notebook.cells[1:])
    for outputs, end in ((first, 8), (again, 12)):
        tables = [one.data["text/html"] for one in outputs if one.output_type == "display_data"]
        assert len(tables) == 1 and f'<progress value="{end}" max="{end}" ' in tables[0]
        assert "<th>total</th>" in tables[0] and f"step {end}/{end}" in tables[0]
        assert not [one for one in outputs if one.get("name") == "stderr" and "tfloss" in one.text]
    # The second cell has made the model again, and resumes.
    said = "".join(one.text for one in again if one.output_type == "stream")
    assert "resuming at step 8" in said and "Keras has counted on" in said
    # Tracebacks have the frames of the cells, and nothing else.
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(one[-1].traceback)) for one in failed]
    assert re.findall(r"^(?:Cell|File) .*", plain[0], re.M) == [
        "Cell In[4], line 4",
        "Cell In[4], line 3, in Wrong.call(self, batch, training)",
    ]
    assert re.findall(r"^(?:Cell|File) .*", plain[1], re.M) == ["Cell In[5], line 7"]
    assert "OSError: no such file" in plain[1] and "In: Cell In[5]:4 (in batches)" in plain[1]
