"""The log of a training, as a kill leaves it."""

from __future__ import annotations

from trocr_jax.training.history import History


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    path, rows = tmp_path / "log.csv", [{"step": 140, "loss": 0.5}, {"step": 150, "loss": 0.25}]
    history = History(path, last_step=-1)
    for row in rows:
        history.add(row)
    whole = path.read_bytes()
    assert History(path, last_step=150).rows == rows
    *before, last = whole.splitlines(keepends=True)
    for count in range(len(last)):  # "15" of "150" among them
        path.write_bytes(b"".join(before) + last[:count])
        assert History(path, last_step=150).rows == rows[:1]
        assert path.read_bytes() == b"".join(before)
