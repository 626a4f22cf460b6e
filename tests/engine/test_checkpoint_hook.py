"""SafeCheckpointHook and the writing of checkpoints: whole files only, old ones deleted after the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from mmengine.fileio import LocalBackend
from pytest import MonkeyPatch

from mm_ummae.checkpoints import read_checkpoint
from tests.engine.toy_runs import Killed, toy_runner


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.endswith('.py'))


def break_writing(monkeypatch: MonkeyPatch, error: BaseException, file: int) -> None:
    """Let the n-th checkpoint fail after half of its bytes."""
    put, written = LocalBackend.put, []

    def half(self: LocalBackend, content: bytes, path: Any) -> None:
        if '.pth' not in str(path):
            return put(self, content, path)
        written.append(path)
        if len(written) < file:
            return put(self, content, path)
        Path(path).write_bytes(content[: len(content) // 2])
        raise error

    monkeypatch.setattr(LocalBackend, 'put', half)


@pytest.mark.parametrize('keep', [1, 2])
def test_old_files_go_after_the_new_one(keep: int, tmp_path: Path) -> None:
    toy_runner(tmp_path, epochs=4, checkpoint=dict(max_keep_ckpts=keep)).train()
    assert files(tmp_path) == [*(f'epoch_{4 - i}.pth' for i in reversed(range(keep))), 'last_checkpoint']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_4.pth')


def test_fewer_files_than_are_kept(tmp_path: Path) -> None:
    toy_runner(tmp_path, epochs=3, checkpoint=dict(max_keep_ckpts=5)).train()
    assert files(tmp_path) == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'last_checkpoint']


def test_kill_inside_a_save_costs_nothing(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """MMEngine deletes the only file first, and leaves half of the new one under its name."""
    break_writing(monkeypatch, Killed(), file=2)
    with pytest.raises(Killed):
        toy_runner(tmp_path, checkpoint=dict(max_keep_ckpts=1)).train()
    assert files(tmp_path) == ['epoch_1.pth', 'last_checkpoint']
    assert read_checkpoint((tmp_path / 'last_checkpoint').read_text())['meta']['epoch'] == 1


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    break_writing(monkeypatch, full, file=2)
    with pytest.raises(
        OSError, match=r'epoch_2\.pth needs \d\.\d{3} GB, but \d+\.\d{3} GB are free.*max_keep_ckpts'
    ) as e:
        toy_runner(tmp_path, checkpoint=dict(max_keep_ckpts=1)).train()
    assert e.value.errno == errno.ENOSPC
    assert files(tmp_path) == ['epoch_1.pth', 'last_checkpoint']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_1.pth')


def test_needed_space_is_that_of_all_tensors(tmp_path: Path) -> None:
    run = toy_runner(tmp_path, epochs=1)
    run.train()
    size = (tmp_path / 'epoch_1.pth').stat().st_size
    assert 0 < run.checkpoint_bytes < size < run.checkpoint_bytes + 20_000  # names and other values


def test_best_file_is_replaced_after_the_new_one(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    run = toy_runner(tmp_path, epochs=1, checkpoint=dict(save_best='score', rule='greater'))
    run.train()
    hook = next(hook for hook in run.hooks if type(hook).__name__ == 'SafeCheckpointHook')
    hook._save_best_checkpoint(run, dict(score=1.0))
    first = [path.name for path in tmp_path.glob('best*')]
    assert len(first) == 1
    hook._save_best_checkpoint(run, dict(score=0.5))  # no better
    assert [path.name for path in tmp_path.glob('best*')] == first
    run.train_loop._epoch += 1
    break_writing(monkeypatch, Killed(), file=1)
    with pytest.raises(Killed):
        hook._save_best_checkpoint(run, dict(score=2.0))
    assert [path.name for path in tmp_path.glob('best*')] == first
    monkeypatch.undo()
    hook.best_ckpt_path = str(tmp_path / first[0])
    hook._save_best_checkpoint(run, dict(score=3.0))
    assert [path.name for path in tmp_path.glob('best*')] == ['best_score_epoch_2.pth']
