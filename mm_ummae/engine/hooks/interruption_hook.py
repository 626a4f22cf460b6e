"""Hook that saves a run which a signal stops: time limits of clusters, preemption, Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import Any, NoReturn

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, barrier, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mm_ummae.registry import HOOKS

from .checkpoint_hook import SafeCheckpointHook
from .lookup import find_hook

# Exit status of a saved run: EX_TEMPFAIL of sysexits.h, "try again later", and that of a shell after Ctrl-C
REQUEUE, CANCELLED = 75, 130
TWICE = 1.0  # seconds between two presses of Ctrl-C
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@HOOKS.register_module()
class InterruptionHook(Hook):
    """Finish the iteration, save a checkpoint and exit when a signal asks for it.

    SIGTERM (time limit, preemption) and SIGUSR1 (Slurm's warning, ``--signal=USR1@120``) exit with status 75, so that
    a job script can queue the job again; the first Ctrl-C exits with 130, and a second one stops at once. A resumed run
    goes on at the same image. In validation the checkpoint holds the state after the last training iteration, and the
    resumed run starts with that validation.

    Several processes agree on the iteration every ``interval`` iterations, because signals reach them at different
    times.

    Args:
        interval (int): Iterations between two agreements of several processes. Default 10.

    Raises:
        ValueError: If ``interval`` is not positive.
    """

    priority = 'LOWEST'  # everything else of the iteration is done

    def __init__(self, interval: int = 10) -> None:
        if interval < 1:
            raise ValueError(f'interval is {interval}, but it must be at least 1')
        self.interval = interval
        self.received = 0
        self._time = 0.0

    @contextmanager
    def watching(self, runner: Runner) -> Iterator[None]:
        """Take the signals while training runs; those of a thread other than the main one cannot be taken."""
        if current_thread() is not main_thread():
            runner.logger.warning('training runs in a thread: signals are not taken, and a stopped run is not saved')
            yield
            return

        def receive(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self.received == number:
                # A terminal and torchrun each pass one Ctrl-C on
                if time.monotonic() - self._time > TWICE:
                    raise KeyboardInterrupt
                return
            self.received, self._time = number, time.monotonic()
            runner.logger.warning(f'received {signal.Signals(number).name}: saving after this iteration')
            if number == signal.SIGINT:
                runner.logger.warning('press Ctrl-C again to stop at once, without saving')

        previous = {number: signal.signal(number, receive) for number in SIGNALS}
        try:
            yield
        except SystemExit:
            if get_world_size() > 1:  # a launcher ends all processes when the first one exits: the status is to stay
                previous = dict.fromkeys(previous, signal.SIG_IGN)
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop if a signal was received."""
        due = get_world_size() == 1 or self.every_n_train_iters(runner, self.interval)
        if due and self._agreed():
            self._stop(runner, runner.epoch, runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop if a signal was received; several processes wait for the next training iterations."""
        if get_world_size() == 1 and self._agreed() and runner._train_loop is not None:
            self._stop(runner, runner.epoch, runner.iter)

    def _agreed(self) -> bool:
        if get_world_size() == 1:
            return bool(self.received)
        received = torch.tensor(self.received, device=get_device())
        all_reduce(received, op='max')
        if not self.received:  # the signal of this process may follow
            self.received, self._time = int(received), time.monotonic()
        return bool(self.received)

    def _stop(self, runner: Runner, epoch: int, iteration: int) -> NoReturn:
        hook = find_hook(runner, SafeCheckpointHook)
        if hook is not None:
            path = hook.save_interrupted(runner, epoch, iteration)
            runner.logger.warning(f'saved {path} after iteration {iteration}; --resume continues there')
        else:
            runner.logger.warning('default_hooks.checkpoint is not set: the run stops without a checkpoint')
        barrier()  # a launcher ends all processes when the first one exits
        raise SystemExit(CANCELLED if self.received == signal.SIGINT else REQUEUE)


def protect_worker() -> None:
    """Let a loader process outlive the signals of its job, which reach all processes, until the run is saved.

    It obeys SIGTERM of its own parent only, as the loader sends it. PyTorch ends it when its parent is gone.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # which tells the sender; macOS has none
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
