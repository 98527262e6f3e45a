"""docs/quickstart.ipynb: it runs, and shows what it did when it ran."""

import base64
import io
import re

import nbformat
import numpy as np
import pytest
from PIL import Image

from tests import quickstart


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(quickstart.PATH, as_version=4)


def outputs(notebook, kind):
    """(number of the cell, output) of one kind, in order."""
    return [
        (number, output)
        for number, cell in enumerate(quickstart.code_cells(notebook))
        for output in cell.outputs
        if output.output_type == kind
    ]


def shown(notebook):
    """Numbers of the cells that drew a picture, and of those that printed."""
    printed = outputs(notebook, "stream")
    return (
        [number for number, output in outputs(notebook, "display_data")],
        sorted({number for number, output in printed if output.name == "stdout"}),
    )


def text(notebook):
    """All that it printed."""
    printed = outputs(notebook, "stream")
    return "".join(o.text for _, o in printed if o.name == "stdout")


def mious(notebook):
    """Role -> mIoU in %, as the notebook says it in the end."""
    found = re.findall(r"(\w+): mIoU ([\d.]+) %\n", text(notebook))
    return {role: float(value) for role, value in found}


def test_the_committed_outputs_are_those_of_the_committed_code(committed):
    nbformat.validate(committed)
    assert committed.metadata.executed == quickstart.fingerprint(committed), (
        "its code has changed since it was executed: python -m tests.quickstart"
    )
    cells = quickstart.code_cells(committed)
    assert [c.execution_count for c in cells] == [*range(1, len(cells) + 1)]
    assert not outputs(committed, "error")


def test_it_learnt_something_and_names_the_control(committed):
    found = mious(committed)
    assert set(found) == {"phase1", "control", "adversarial"}
    assert min(found.values()) > 40  # the classes that fill the picture give 36
    gain = re.search(r"adversarial - control: (\S+) points", text(committed))
    difference = found["adversarial"] - found["control"]
    assert float(gain[1]) == pytest.approx(difference, abs=0.011)
    assert "Against the control: a lead, not a result" in text(committed)


def test_its_pictures_are_there_and_small(committed):
    pictures = [
        output.data["image/png"] for _, output in outputs(committed, "display_data")
    ]
    assert len(pictures) == 5
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert np.asarray(image.convert("L")).std() > 5
    assert quickstart.PATH.stat().st_size < 1_000_000


def test_it_says_nothing_of_the_machine_it_ran_on(committed):
    assert set(committed.metadata) == {"kernelspec", "language_info", "executed"}
    assert not any(cell.metadata for cell in committed.cells)
    said = quickstart.PATH.read_text(encoding="utf-8")
    assert not re.search(r'["\s(=]/\w+/\w+', re.sub(r'"image/png": ".*"', "", said))


def test_it_runs(committed, tmp_path):
    steps = {"QUICKSTART_PHASE1_STEPS": "6", "QUICKSTART_PHASE2_STEPS": "4"}
    notebook = quickstart.execute(tmp_path, **steps)  # a failing cell raises
    assert shown(notebook) == shown(committed)
    assert set(mious(notebook)) == set(mious(committed))
    assert (tmp_path / "quickstart" / "adversarial" / "export").is_dir()
