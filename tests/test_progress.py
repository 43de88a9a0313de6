"""Progress: silent where nobody looks; on a terminal a count, a rate and the time left; the same items either way."""

import io
import sys
from contextlib import contextmanager, redirect_stderr

import pytest

from scale_interp.core.progress import StageBars, lines_above_bars, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@contextmanager
def terminal():
    with redirect_stderr(Terminal()) as stream:
        yield stream


def test_silent_where_nobody_looks(capsys):
    assert list(track(range(5), "sweep", 5)) == list(range(5))
    with StageBars() as bars:
        bars("pretraining", 1, 2, 0.5)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_count_rate_and_time_left():
    with terminal() as stream:
        assert list(track(range(5), "sweep", 5)) == list(range(5))
    shown = stream.getvalue()
    assert "sweep" in shown and "0/5" in shown and "it/s" in shown and "<" in shown
    assert shown.endswith("\r")  # the bar is gone


def test_a_user_can_switch_bars_off(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with terminal() as stream:
        assert list(track(range(5), "sweep", 5)) == list(range(5))
    assert stream.getvalue() == ""


def test_one_item_has_no_bar():
    with terminal() as stream:
        assert list(track(["only"], "sweep", 1)) == ["only"]
    assert stream.getvalue() == ""


def test_a_bar_is_cleared_when_the_work_fails():
    def failing():
        yield 0
        raise ValueError("stop")

    with terminal() as stream, pytest.raises(ValueError, match="stop"):
        list(track(failing(), "sweep", 5))
    assert stream.getvalue().endswith("\r")


def test_each_stage_has_its_own_bar_with_its_loss():
    with terminal() as stream, StageBars() as bars:
        for stage in ("pretraining", "finetuning"):
            for step in (3, 4):  # resumed after the second step
                bars(stage, step, 4, 1 / step)
    shown = stream.getvalue()
    assert "pretraining" in shown and "finetuning" in shown and "4/4" in shown and "loss 0.250" in shown


def test_lines_do_not_run_into_an_open_bar():
    with terminal() as stream:
        for _ in track(range(2), "sweep", 2):
            with lines_above_bars():
                sys.stderr.write("a warning\n")
    assert stream.getvalue().split("a warning\n")[0].endswith("\r")
