"""How far it is: lines with the time that is left, or a bar."""

from data_prep import progress
from data_prep.progress import SplitProgress


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    show = SplitProgress()
    show("train", 1, 1000)
    now[0] += 15  # seconds
    show("train", 200, 1000)
    show("train", 201, 1000)
    now[0] += 60
    show("train", 1000, 1000)
    show("val", 1, 1)
    # 15 s for 200 examples: 60 s for the other 800.
    assert capsys.readouterr().err.splitlines() == [
        "train: 200 of 1000 examples, 00:01:00 left",
        "train: 1000 of 1000 examples, 00:00:00 left",
        "val: 1 of 1 examples, 00:00:00 left",
    ]


def test_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    show = SplitProgress()
    for done in range(1, 4):
        show("train", done, 3)
    shown = capsys.readouterr().err
    assert "train: 100%" in shown and "3/3" in shown
