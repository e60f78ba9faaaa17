"""Signals that interrupt the command line: several together count once, a later one counts again."""

import signal
import time
import weakref

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


class Watched:
    """An object whose end a weak reference reports."""


def test_an_interrupt_in_a_callback_is_not_lost(capsys: pytest.CaptureFixture[str]):
    """Python prints a traceback of an exception in the callback of a weak reference, and goes on."""
    before, held = signal.signal(signal.SIGINT, signal.default_int_handler), [Watched()]
    reference = weakref.ref(held[0], lambda _: signal.raise_signal(signal.SIGINT))

    def interrupt_in_callback() -> None:
        held.clear()
        time.sleep(30)

    try:
        with pytest.raises(SystemExit) as stopped, cli._handle_interrupts():
            interrupt_in_callback()
    finally:
        signal.signal(signal.SIGINT, before)
    assert reference() is None
    assert stopped.value.code == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err.strip() == "interrupted; run the same command again to resume"


def test_an_interrupt_ends_with_its_exit_code_and_how_to_resume(capsys: pytest.CaptureFixture[str]):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(SystemExit) as stopped, cli._handle_interrupts():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err.strip() == "interrupted; run the same command again to resume"
