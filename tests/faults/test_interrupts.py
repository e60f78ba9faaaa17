"""Signals that interrupt the command line: several together count once, a later one counts again."""

import signal

import pytest

from mesascope import cli


def test_signals_together_interrupt_once_and_a_later_one_again(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    before, caught = signal.signal(signal.SIGTERM, signal.SIG_DFL), list[float]()

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
    assert signal.signal(signal.SIGTERM, before) is signal.SIG_DFL


def test_an_interrupt_ends_with_its_exit_code_and_how_to_resume(capsys: pytest.CaptureFixture[str]):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(SystemExit) as stopped, cli._handle_interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err.strip() == "interrupted; run the same command again to resume"
