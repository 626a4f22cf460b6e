"""Folder of a run that a command leaves: its config, written once and compared later, and the training itself."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, init_dist, is_distributed, is_main_process
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mm_ummae.checkpoints.files import whole_file

CONFIG, RUN = 'config.py', 'run'
CHECKPOINTS = 10  # times that a run is saved, so that a break costs a tenth of it at most


def processes() -> int:
    """Processes of ``torchrun``."""
    return int(os.environ.get('WORLD_SIZE', 1))


def start_processes() -> None:
    """Connect the processes of ``torchrun``, if there are several."""
    if processes() > 1 and not is_distributed():
        if torch.cuda.is_available():
            init_dist('pytorch')
        else:  # MMEngine's function sets a GPU
            torch.distributed.init_process_group('gloo')


def wait_for_all() -> None:
    """Wait until every process is here."""
    if is_distributed():
        barrier()


def share_of(batch: int, limit: int) -> tuple[int, int]:
    """Divide a batch among processes and iterations.

    Args:
        batch (int): Images of an update.
        limit (int): Largest number of images of an iteration on a device.
    Returns:
        tuple[int, int]: Images of an iteration on a device, a divisor of its share of the batch, so that accumulated
        iterations make exactly a batch; and the number of those iterations.
    Raises:
        ValueError: If the processes cannot share the batch.
    """
    world = processes()
    share = batch // world
    if share * world != batch:
        raise ValueError(f'batch is {batch}, but {world} processes share it: give a multiple of {world}')
    per_device = next(count for count in range(min(share, max(limit, 1)), 0, -1) if share % count == 0)
    return per_device, share // per_device


def loader_processes(workers: int | None) -> int:
    """Loader processes of a device: what is given, or the cores but one, 8 at most."""
    return min(max((os.cpu_count() or 1) // processes() - 1, 1), 8) if workers is None else workers


def write_config(path: Path, text: str) -> None:
    """Write the config of a run, unless its folder has it.

    Args:
        path (Path): File to write, in a folder that is new, empty, or holds the same run.
        text (str): Its content.
    Raises:
        ValueError: If the folder holds a run with other settings (the message names them), or something else.
    """
    if path.exists():
        if path.read_text() == text:
            return
        old, new = (_leaves(config) for config in (Config.fromfile(path), Config.fromstring(text, '.py')))
        changed = [key for key in [*old, *(new.keys() - old.keys())] if old.get(key) != new.get(key)]
        changed.sort(key=lambda key: isinstance(old.get(key), list))  # which are long
        what = '; '.join(f'{key} is {old.get(key)}, not {new.get(key)}' for key in changed[:4])
        raise ValueError(
            f'out is {path.parent}, but it holds a run with other settings ({what or "of another version"}): give '
            f'another folder, or train it on as it is: mim train ummae {path} --resume'
        )
    if path.parent.is_dir() and any(path.parent.iterdir()):
        raise ValueError(f'out is {path.parent}, but it holds something else than a run: give a new or empty folder')
    write_text(path, text)


def check_outside(out: Path, data: Path) -> None:
    """Refuse a run whose files would become data of its next call.

    Args:
        out (Path): Folder of the run.
        data (Path): Folder of the data, or a file.
    Raises:
        ValueError: If the run lies in the data.
    """
    if data.is_dir() and out.is_relative_to(data):
        raise ValueError(f'out is {out}, but it lies in data, {data}, whose files are read: give a folder elsewhere')


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(text, encoding='utf-8')


def plain(value: Any) -> Any:
    """Dicts and lists of Python's own, as a config file is written."""
    if isinstance(value, (dict, ConfigDict)):
        return {key: plain(each) for key, each in value.items()}
    return type(value)(plain(each) for each in value) if isinstance(value, (list, tuple)) else value


def last_checkpoint(out: Path, epochs: int) -> Path | None:
    """The checkpoint of the last epoch, if it is there."""
    path = out / RUN / f'epoch_{epochs}.pth'
    return path if path.exists() else None


def find_run(checkpoint: str | Path, config: str | Path | None, finished: str) -> tuple[Path, Path]:
    """A checkpoint and the config of its run.

    Args:
        checkpoint (str | Path): The file, or the folder of a run.
        config (str | Path, optional): The config. Default: ``config.py`` beside the checkpoint or one folder above.
        finished (str): File that a finished run has in its folder, or ``run`` for the last checkpoint of training.
    Returns:
        tuple[Path, Path]: Both.
    Raises:
        FileNotFoundError: If one does not exist.
    """
    path = Path(checkpoint).absolute()
    if path.is_dir() and finished != RUN:
        path = path / finished
    elif path.is_dir():
        pointer = path / RUN / 'last_checkpoint'
        if not pointer.is_file():
            raise FileNotFoundError(f'checkpoint is {checkpoint}, but the folder holds no run')
        path = path / RUN / Path(pointer.read_text().strip()).name
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint is {checkpoint}, but there is no file {path}')
    places = [Path(config)] if config else [path.parent / CONFIG, path.parent.parent / CONFIG]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f'{places[0]} does not exist: give the config of the run (config)')
    return path, found


def train(out: Path, epochs: int, announcement: str = '') -> Path:
    """Train the run of a folder to its end, from where it stopped.

    Args:
        out (Path): The folder.
        epochs (int): Epochs of the config.
        announcement (str): Line for the log before the first iteration.
    Returns:
        Path: The last checkpoint.
    Raises:
        SystemExit: If the run was stopped by a signal, after a save.
    """
    checkpoint = last_checkpoint(out, epochs)
    if checkpoint is not None:
        print_log(f'{out}: finished before ({epochs} epochs)', 'current')
        return checkpoint
    cfg = Config.fromfile(out / CONFIG)
    if (out / RUN / 'last_checkpoint').exists():
        cfg.resume, cfg.load_from = True, None
    runner = build_runner(cfg)
    for handler in runner.logger.handlers:
        if type(handler) is logging.StreamHandler:  # the terminal; files keep every line
            handler.addFilter(lambda record: not record.getMessage().startswith('paramwise_options'))
    if announcement and is_main_process():  # behind the environment and the config, which fill a page
        runner.logger.info(announcement)
    runner.train()
    wait_for_all()  # the main process may still write
    checkpoint = last_checkpoint(out, epochs)
    if checkpoint is None:
        raise SystemExit(f'{out}: interrupted; the same command resumes it')
    return checkpoint


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, also behind that of another host in the same process.

    MMEngine would give it the visualizer of the other one, since those of the hosts have the same name.

    Args:
        cfg (Config): Changed by the runner.
    Returns:
        Runner: Of the type that the config says.
    """
    if processes() > 1 and not torch.cuda.is_available():  # else MMEngine's wrapper names a GPU
        cfg.model_wrapper_cfg = dict(
            device_ids=None,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
            broadcast_buffers=False,
        )
        cfg.sync_bn = None  # for GPUs alone
    if cfg.get('visualizer'):
        cfg.visualizer.name = f'visualizer of {cfg.work_dir} at {time.time_ns()}'
    return RUNNERS.build(cfg)


def _leaves(node: Any, prefix: str = '') -> dict[str, Any]:
    """Dotted keys and values of a config; lists are values."""
    if not isinstance(node, (dict, Config)):
        return {prefix: node}
    return {
        name: leaf
        for key, value in node.items()
        for name, leaf in _leaves(value, f'{prefix}.{key}' if prefix else key).items()
    }
