"""InterruptionHook: signals finish the iteration, save and exit with a status."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from mmengine.runner import Runner

from mm_ummae.checkpoints import read_checkpoint
from mm_ummae.engine import InterruptionHook
from mm_ummae.engine.hooks import interruption_hook
from mm_ummae.engine.hooks.interruption_hook import protect_worker
from tests.engine.toy_runs import toy_runner


def send(*numbers: int) -> object:
    """Act that sends signals to this process, and lets Python handle each."""

    def act(runner: Runner) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    return act


@pytest.mark.parametrize(
    ('number', 'status'), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=str
)
def test_signal_saves_and_exits(number: int, status: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.raises(SystemExit) as stop:
        toy_runner(tmp_path, at=(6, send(number))).train()
    assert stop.value.code == status
    meta = read_checkpoint(tmp_path / 'interrupted_iter_6.pth')['meta']
    assert (meta['epoch'], meta['iter']) == (1, 6)
    assert (tmp_path / 'last_checkpoint').read_text().endswith('interrupted_iter_6.pth')
    log = capsys.readouterr().out
    assert f'received {signal.Signals(number).name}: saving after this iteration' in log
    assert 'after iteration 6; --resume continues there' in log
    assert handlers == [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]


def test_second_interrupt_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One press may arrive twice: from the terminal, and from torchrun."""
    with pytest.raises(SystemExit):
        toy_runner(tmp_path / 'saved', at=(6, send(signal.SIGINT, signal.SIGINT))).train()
    monkeypatch.setattr(interruption_hook, 'TWICE', 0.001)
    with pytest.raises(KeyboardInterrupt):
        toy_runner(tmp_path / 'not', at=(6, send(signal.SIGINT, signal.SIGINT))).train()
    assert [path.name for path in (tmp_path / 'not').glob('*.pth')] == ['epoch_1.pth']


def test_each_interruption_replaces_the_file_of_the_one_before(tmp_path: Path) -> None:
    for iteration, resume in ((5, False), (6, True)):
        with pytest.raises(SystemExit):
            toy_runner(tmp_path, resume=resume, at=(iteration, send(signal.SIGTERM))).train()
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['epoch_1.pth', 'interrupted_iter_6.pth']


def test_run_without_checkpoints_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = toy_runner(tmp_path, at=(2, send(signal.SIGTERM)))
    run._hooks = [hook for hook in run.hooks if type(hook).__name__ != 'SafeCheckpointHook']
    with pytest.raises(SystemExit):
        run.train()
    assert 'default_hooks.checkpoint is not set: the run stops without a checkpoint' in capsys.readouterr().out


def test_training_in_a_thread_warns(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = toy_runner(tmp_path, epochs=1)
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert 'training runs in a thread: signals are not taken' in capsys.readouterr().out
    assert (tmp_path / 'epoch_1.pth').exists()


def test_loader_process_outlives_the_signals_of_its_job() -> None:
    """They come from elsewhere; SIGTERM of its parent ends it at once, and is no failure."""
    process = os.fork()
    if not process:
        protect_worker()
        time.sleep(20)
        os._exit(1)
    time.sleep(0.2)
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        subprocess.run(['kill', f'-{number.value}', str(process)], check=True)
    time.sleep(0.2)
    assert os.waitpid(process, os.WNOHANG) == (0, 0)  # alive
    os.kill(process, signal.SIGTERM)
    assert os.waitpid(process, 0)[1] == 0


def test_interval_is_checked() -> None:
    with pytest.raises(ValueError, match='interval is 0, but it must be at least 1'):
        InterruptionHook(interval=0)
