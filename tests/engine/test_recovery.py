"""Choice of the checkpoint to resume from: every damaged state of a work folder that was seen in the field."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mm_ummae.checkpoints import read_checkpoint
from tests.engine.toy_runs import toy_runner


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder with epoch_1.pth and epoch_2.pth of two epochs."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    toy_runner(folder, epochs=2).train()
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(finished, tmp_path / 'run'))
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_2.pth'))
    return folder


def resumed(folder: Path) -> int:
    """Epoch at which a run in the folder continues."""
    run = toy_runner(folder, epochs=3, resume=True)
    run.train()
    assert run.epoch == 3
    return 3 - len(run.model.seen) // 4


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    """Flip a bit of a weight."""
    content = bytearray(path.read_bytes())
    weight = read_checkpoint(path)['state_dict']['layer.weight'].numpy().tobytes()
    content[content.index(weight) + 1] ^= 4
    path.write_bytes(content)


def poison(path: Path) -> None:
    content = read_checkpoint(path)
    content['state_dict']['layer.weight'][0, 0] = float('nan')
    torch.save(content, path)


def weights_only(path: Path) -> None:
    torch.save(dict(state_dict=read_checkpoint(path)['state_dict']), path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    'empty': lambda path: path.write_bytes(b''),
    'truncated': truncate,
    'zeroed': zero,
    'gone': Path.unlink,
    'flipped bit': flip,
    'NaN': poison,
    'weights only': weights_only,
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_newest_file_is_damaged(kind: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    DAMAGE[kind](folder / 'epoch_2.pth')
    assert resumed(folder) == 1
    log = capsys.readouterr().out
    assert 'not resumed: the checkpoint' in log and 'epoch_2.pth' in log
    assert f'resuming from {folder}/epoch_1.pth, the newest checkpoint that is whole' in log


@pytest.mark.parametrize('state', ['is empty', 'is missing'])
def test_pointer_is_damaged(state: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """MMEngine starts at iteration 0 without it, and replaces the files."""
    pointer = folder / 'last_checkpoint'
    pointer.write_text('') if state == 'is empty' else pointer.unlink()
    assert resumed(folder) == 2
    assert f'last_checkpoint {state}: the newest checkpoint is looked for in {folder}' in capsys.readouterr().out


def test_newest_is_taken_by_time_and_then_by_number(folder: Path) -> None:
    (folder / 'last_checkpoint').unlink()
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        os.utime(folder / name, (1e9, 1e9))
    assert resumed(folder) == 2


def test_folder_was_copied(folder: Path, finished: Path) -> None:
    truncate(folder / 'epoch_1.pth')
    (folder / 'last_checkpoint').write_text(str(finished / 'epoch_1.pth'))
    assert resumed(folder) == 2


def test_no_file_is_whole(folder: Path) -> None:
    for path in folder.glob('*.pth'):
        truncate(path)
    with pytest.raises(ValueError, match=r'holds 2 checkpoints, but none can be resumed from: .*epoch_2.*--work-dir'):
        resumed(folder)
    assert (folder / 'epoch_1.pth').stat().st_size == 2000  # nothing was replaced


def test_no_file_at_all(tmp_path: Path) -> None:
    assert resumed(tmp_path) == 0


def test_given_file_is_damaged(folder: Path) -> None:
    truncate(folder / 'epoch_2.pth')
    with pytest.raises(ValueError, match=r'epoch_2\.pth cannot be read'):
        toy_runner(folder, epochs=3, resume=folder / 'epoch_2.pth').train()


def test_fresh_start_in_a_used_folder_is_logged(folder: Path, capsys: pytest.CaptureFixture) -> None:
    toy_runner(folder, epochs=1).train()
    assert 'holds checkpoints of an earlier run, which this one replaces' in capsys.readouterr().out


def test_what_a_killed_run_did_not_finish_is_removed(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / '.interrupted_iter_9.pth.part').write_bytes(b'PK')
    assert resumed(folder) == 2
    assert not list(folder.glob('.*.part'))
    assert 'interrupted_iter_9.pth.part, which a killed run did not finish' in capsys.readouterr().out
