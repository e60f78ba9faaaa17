"""Signals that interrupt the command line: several together count once, a later one counts again."""

import signal

import pytest

from mesascope import cli


def test_signals_together_interrupt_once_and_a_later_one_again(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    before, caught = signal.getsignal(signal.SIGTERM), []

    def send() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            caught.append(now[0])

    with cli._handle_interrupts():
        send()
        now[0] += 0.5
        send()
        now[0] += cli.MIN_INTERRUPT_INTERVAL + 1
        send()
    assert caught == [100.0, 103.5]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_ends_with_its_exit_code_and_how_to_resume(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped, cli._handle_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.code == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err.strip() == "interrupted; run the same command again to resume"
