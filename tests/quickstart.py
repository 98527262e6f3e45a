r"""Executes docs/quickstart.ipynb and writes it back with its outputs.

python -m tests.quickstart

To be done whenever a cell or what it shows has changed; minutes on two cores.  What the
notebook says of the machine on which it ran is taken out.
"""

import hashlib
import os
import pathlib
import tempfile

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[1]
PATH = ROOT / "docs" / "quickstart.ipynb"


def code_cells(notebook):
    """Its cells of code, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fingerprint(notebook):
    """Of the code; what was executed carries it in its metadata."""
    code = "\n\n".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(code.encode()).hexdigest()


def execute(folder, **environment):
    """The notebook with the outputs of an execution in a folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(PATH, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    # This checkout is imported, and nothing is written to the home folder.
    paths = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": os.path.join(folder, "ipython")}
    client.execute(env=os.environ | paths | environment)
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
        "executed": fingerprint(notebook),
    }
    return notebook


def main():
    """Executes the notebook with its own numbers of steps."""
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(folder), PATH)


if __name__ == "__main__":
    main()
