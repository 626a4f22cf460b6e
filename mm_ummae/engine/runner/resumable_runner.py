"""Runner whose runs survive: atomic checkpoints, a resume that is the same run, no training on garbage."""

from __future__ import annotations

import copy
import errno
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, is_main_process
from mmengine.model import BaseTTAModel
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mm_ummae.checkpoints.files import whole_file
from mm_ummae.datasets.batch_sampler import ResumableBatchSampler
from mm_ummae.datasets.batches import check_batches
from mm_ummae.datasets.labels import NUM_MAPS, check_annotation_files, check_labels
from mm_ummae.datasets.run_dataset import RunDataset
from mm_ummae.engine.hooks.checkpoint_hook import SafeCheckpointHook
from mm_ummae.engine.hooks.damaged_files_hook import DamagedFilesHook
from mm_ummae.engine.hooks.finite_loss_hook import FiniteLossHook
from mm_ummae.engine.hooks.interruption_hook import InterruptionHook, protect_worker
from mm_ummae.engine.hooks.lookup import find_hook
from mm_ummae.engine.hooks.run_state_hook import (
    KEY,
    RunStateHook,
    restore_gradients,
    restore_history,
    settings,
)
from mm_ummae.models.widths import check_widths
from mm_ummae.registry import RUNNERS

from .loops import ResumableEpochLoop, ResumableIterLoop, ResumableLoop
from .recovery import choose_checkpoint, find_checkpoints
from .resuming import (
    Place,
    advance,
    changed_groups,
    changed_schedulers,
    changed_settings,
    check_accumulation,
    own_groups,
    place_in_epochs,
    place_in_iterations,
)

# Parts of MMEngine in a config, and what this runner takes in their place
HOOKS_TAKEN = {'CheckpointHook': SafeCheckpointHook}
LOOPS_TAKEN = {'EpochBasedTrainLoop': ResumableEpochLoop, 'IterBasedTrainLoop': ResumableIterLoop}
ALWAYS = (RunStateHook, FiniteLossHook, DamagedFilesHook, InterruptionHook)


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """MMEngine's runner for runs that nothing spoils; ``runner_type='mm_ummae.ResumableRunner'`` in a config.

    * A run whose loss or weights are not finite stops, and keeps its last checkpoint (:class:`FiniteLossHook`).
    * Checkpoints are written under another name, synced and renamed, and old ones are deleted after that.
    * Signals save and exit (:class:`InterruptionHook`).
    * Labels are checked before the first iteration (:mod:`mm_ummae.datasets.labels`). ``check_labels=False`` in a
      config leaves that out, ``check_labels=dict(num_maps=1000)`` loads more label maps than 200.
    * ``resume`` takes the newest readable checkpoint, and continues at the same image with the same random draws. On a
      CPU the result equals that of an uninterrupted run bit for bit. A changed schedule, batch or number of processes
      is applied where that is exact, and refused where it is not.

    The hooks, MMEngine's checkpoint hook and its two training loops are replaced or added by the runner, so that any
    config gets them. A hook that the config lists is kept, to set its arguments.
    """

    last_saved: str | None = None  # the newest checkpoint of this run that can be resumed from

    @property
    def base_seed(self) -> int:
        """Seed of the run, the same on all processes; MMEngine adds the rank where ``diff_rank_seed`` is set."""
        shift = get_rank() if self._randomness_cfg.get('diff_rank_seed') else 0
        return self.seed - shift

    def train(self) -> nn.Module:
        """Train, and save the run if a signal stops it; returns the model."""
        with find_hook(self, InterruptionHook).watching(self):
            return super().train()

    def register_hooks(self, default_hooks: dict | None = None, custom_hooks: list | None = None) -> None:
        """Register the hooks of the config and those that every run needs."""
        taken = {name: _taken(hook, HOOKS_TAKEN) for name, hook in (default_hooks or {}).items()}
        taken.setdefault('checkpoint', dict(type=SafeCheckpointHook, interval=1))
        super().register_hooks(taken, custom_hooks)
        for kind in ALWAYS:
            if not any(isinstance(hook, kind) for hook in self.hooks):
                self.register_hook(kind())

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model of the config; parts whose widths do not fit are an error here."""
        built = super().build_model(model)
        check_widths(built.module if isinstance(built, BaseTTAModel) else built)
        return built

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop of the config, ours in place of MMEngine's."""
        if isinstance(loop, dict):
            loop = dict(loop)
            if 'type' not in loop and 'by_epoch' in loop:
                loop['type'] = 'EpochBasedTrainLoop' if loop.pop('by_epoch') else 'IterBasedTrainLoop'
            loop = _taken(loop, LOOPS_TAKEN)
        return super().build_train_loop(loop)

    def build_dataloader(
        self, dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader whose samples have their own random streams and whose errors name the file.

        Args:
            dataloader (DataLoader | dict): Config; a loader is returned as it is.
            seed (int, optional): Of loader processes, for draws outside of samples.
            diff_rank_seed (bool): Whether ``seed`` differs between processes. Default False.
        Raises:
            ValueError: If there are too few images for one iteration.
            DataError: If labels do not fit the classes, the heads or the images.
        """
        if isinstance(dataloader, DataLoader):
            self.logger.warning(
                'the data loader was built outside the runner: its random draws and its place are not restored when '
                'the run is resumed'
            )
            return dataloader
        cfg = copy.deepcopy(dict(dataloader))
        num_maps = self._num_checked_maps()
        if num_maps is not None:
            check_annotation_files(cfg['dataset'])
        cfg['dataset'] = RunDataset(cfg['dataset'])
        if dataloader is self._train_dataloader:
            cfg['batch_sampler'] = dict(
                type=ResumableBatchSampler,
                batch_sampler=cfg.get('batch_sampler'),
                drop_last=cfg.pop('drop_last', False),
            )
        loader = super().build_dataloader(cfg, seed=seed, diff_rank_seed=diff_rank_seed)
        loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)
        if isinstance(loader.batch_sampler, ResumableBatchSampler):
            endless = isinstance(loader.batch_sampler.sampler, InfiniteSampler)
            drop_last = loader.batch_sampler.drop_last and not endless
            check_batches(len(loader.dataset), loader.batch_sampler.batch_size, self.world_size, drop_last)
        if num_maps is not None:
            check_labels(loader.dataset, self.model, num_maps)
        return loader

    def _num_checked_maps(self) -> int | None:
        """Label maps to load for the check of labels; None if the config leaves the check out."""
        chosen = self.cfg.get('check_labels', True)
        if not chosen:
            self.logger.warning('labels are not checked: check_labels is off')
            return None
        return chosen.get('num_maps', NUM_MAPS) if isinstance(chosen, dict) else NUM_MAPS

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        *args: Any,
        save_optimizer: bool = True,
        meta: dict | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a checkpoint whole or not at all; every process calls this.

        Args:
            out_dir (str): Folder.
            filename (str): Name of the file.
            args: Of MMEngine's runner.
            save_optimizer (bool): Whether the file can be resumed from. Default True.
            meta (dict, optional): ``epoch`` and ``iter`` of the checkpoint.
            kwargs: Of MMEngine's runner.
        Raises:
            RuntimeError: If the weights are not finite.
            OSError: If the disk is full; the message says how much was needed. Nothing is left behind.
        """
        find_hook(self, FiniteLossHook).check_weights(self)
        if save_optimizer:
            find_hook(self, RunStateHook).collect(self, (meta or {}).get('iter', self.iter))
        save = partial(super().save_checkpoint, save_optimizer=save_optimizer, meta=meta, **kwargs)
        if '://' in str(out_dir):  # a store of objects, which are whole or absent
            save(out_dir, filename, *args)
        elif is_main_process():
            self._write_whole(save, Path(out_dir), filename, args)
        if save_optimizer and not is_main_process():
            self._assist_saving()
        if save_optimizer:
            self.last_saved = str(Path(out_dir) / filename)

    def _assist_saving(self) -> None:
        """What the other processes do while the main one saves the optimizer: nothing."""

    def _write_whole(self, save: partial, out_dir: Path, filename: str, args: tuple) -> None:
        self.checkpoint_bytes = 0
        try:
            with whole_file(out_dir / filename) as part:
                save(str(out_dir), part.name, *args)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            free = shutil.disk_usage(out_dir).free
            raise OSError(
                error.errno,
                f'the checkpoint {out_dir / filename} needs {self.checkpoint_bytes / 1e9:.3f} GB, but {free / 1e9:.3f} '
                f'GB are free ({error.strerror}). The partial file was removed, earlier checkpoints are intact: free '
                'space, or keep fewer with default_hooks.checkpoint.max_keep_ckpts, and continue with --resume',
            ) from error

    def load_or_resume(self) -> None:
        """Load or resume as MMEngine does; without a given file from the newest one that is whole.

        Raises:
            ValueError: If there are checkpoints, but none can be read.
        """
        auto = self._resume and self._load_from is None
        if self._has_loaded or not auto:
            if isinstance(self._train_loop, BaseLoop) and not self._resume and find_checkpoints(self._folders()):
                self.logger.warning(
                    f'{self.work_dir} holds checkpoints of an earlier run, which this one replaces; --resume would '
                    'continue it'
                )
            return super().load_or_resume()
        path = choose_checkpoint(self._folders())
        if path is None:
            self.logger.info(f'{self.work_dir} holds no checkpoint: training starts from the beginning')
            return None
        self.resume(path)
        return None

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = 'cpu',
    ) -> None:
        """Continue a run; see the module ``resuming`` for what comes from the checkpoint and what from the config.

        Args:
            filename (str): Checkpoint of a run.
            resume_optimizer (bool): Whether to restore the optimizer. Default True.
            resume_param_scheduler (bool): Whether to restore the schedule. Default True.
            map_location (Any): Where the file is read to. Default: the CPU.
        Raises:
            ValueError: If the file holds weights only, or a setting changed that cannot be carried over.
        """
        if not (isinstance(self.optim_wrapper, OptimWrapper) and isinstance(self.train_loop, ResumableLoop)):
            self.logger.warning('several optimizers, or a training loop of its own: resumed by MMEngine as it is')
            return super().resume(filename, resume_optimizer, resume_param_scheduler, map_location)
        checkpoint = self.load_checkpoint(filename, map_location=map_location)
        meta = checkpoint.get('meta') or {}
        missing = [key for key in ('epoch', 'iter') if key not in meta]
        missing += [key for key in ('optimizer', 'message_hub') if key not in checkpoint]
        if missing:
            raise ValueError(
                f'the checkpoint {filename} has no {", ".join(missing)}: it holds weights, not a run to resume. Start '
                'from its weights with load_from, or init_cfg of the backbone, in place of --resume'
            )
        self._restore_seed(checkpoint)
        restore_history(self, checkpoint)
        self.message_hub.load_state_dict(checkpoint['message_hub'])
        place, notes = self._restore_place(checkpoint)
        own = own_groups(self.optim_wrapper)
        if resume_optimizer:
            try:
                self.optim_wrapper.load_state_dict(checkpoint['optimizer'])
            except ValueError as error:
                raise ValueError(
                    f'the optimizer state of {filename} does not fit: {error}. Other parameters are trained, or '
                    'optim_wrapper.paramwise_cfg differs: resume with the former config, or start from the weights '
                    'with load_from'
                ) from error
        if resume_param_scheduler and self.param_schedulers is not None:
            notes += self._restore_schedule(checkpoint, place, own, bool(notes))
        for note in notes:
            self.logger.warning(f'resumed with other settings: {note}')
        count = restore_gradients(self, checkpoint)
        if count:
            self.logger.info(f'restored {count} gradients of accumulated iterations')
        if place.epoch >= self.max_epochs and isinstance(self.train_loop, EpochBasedTrainLoop):
            self.logger.warning(f'the run is finished: {place.epoch} of train_cfg.max_epochs={self.max_epochs} epochs')
        self._has_loaded, self.last_saved = True, filename
        self.logger.info(f'resumed epoch: {self.epoch}, iter: {self.iter} from {filename}')
        return None

    def _restore_seed(self, checkpoint: dict) -> None:
        saved = checkpoint.get(KEY, {}).get('settings', {})
        seed = saved.get('seed', checkpoint['meta'].get('seed'))
        given = self._randomness_cfg.get('seed')
        if seed is not None and seed != self.base_seed:
            if given is not None:
                self.logger.warning(f'randomness.seed is {given}, but the run continues with its seed {seed}')
            self._randomness_cfg.update(seed=seed)
            self.set_randomness(**self._randomness_cfg)
        sampler = getattr(self.train_dataloader.batch_sampler, 'sampler', None)
        if saved.get('sampler_seed') is not None and hasattr(sampler, 'seed'):
            sampler.seed = saved['sampler_seed']

    def _restore_place(self, checkpoint: dict) -> tuple[Place, list[str]]:
        loop, old = self.train_loop, checkpoint.get(KEY, {}).get('settings', {})
        new = settings(self, 0)
        notes = changed_settings(old, new)
        find = place_in_epochs if isinstance(loop, EpochBasedTrainLoop) else place_in_iterations
        place, more = find(checkpoint['meta'], old, new)
        if checkpoint.get(KEY, {}).get('gradients'):
            check_accumulation(checkpoint['meta']['iter'], place, old, new)
        loop.start_at(*place)
        return place, notes + more

    def _restore_schedule(self, checkpoint: dict, place: Place, own: list[dict], moved: bool) -> list[str]:
        """Restore the schedule, or compute that of the config up to the place if it is another one."""
        optimizer = self.optim_wrapper
        names = {scheduler.param_name for scheduler in self.param_schedulers}
        states = checkpoint.get('param_schedulers', [])
        changes = changed_groups(own, optimizer, names) + changed_schedulers(self.param_schedulers, states)
        by_metric = [type(s).__name__ for s in self.param_schedulers if getattr(s, 'need_val_args', False)]
        if by_metric and len(states) == len(self.param_schedulers):
            self.logger.info(f'{by_metric[0]} follows metrics: the schedule is that of the checkpoint')
            changes, moved = [], False
        if not changes and not moved:
            for scheduler, state in zip(self.param_schedulers, states, strict=True):
                scheduler.load_state_dict(state)
            return []
        before = optimizer.param_groups[0]['lr']
        for group, mine in zip(optimizer.param_groups, own, strict=True):
            group.update(mine)
        length = len(self.train_dataloader) if isinstance(self.train_loop, EpochBasedTrainLoop) else 0
        self.logger.info(f'computing the schedule of the config up to iteration {place.iteration}')
        advance(self.param_schedulers, place, length)
        after = optimizer.param_groups[0]['lr']
        return [*changes, f'learning rate of the first group {after:.4g}, before {before:.4g}']

    def _folders(self) -> list[Path]:
        """Folders that hold checkpoints of this run."""
        out_dir = getattr(find_hook(self, SafeCheckpointHook), 'out_dir', None)
        folders = [Path(self.work_dir)]
        if out_dir and '://' not in str(out_dir) and Path(out_dir) != folders[0]:
            folders.append(Path(out_dir) / folders[0].name)
        return folders


def _taken(component: Any, taken: dict[str, type]) -> Any:
    """A component with our class in place of MMEngine's; others as they are."""
    if not isinstance(component, dict) or 'type' not in component:
        return component
    kind = component['type']
    name = kind.removeprefix('mmengine.') if isinstance(kind, str) else getattr(kind, '__name__', None)
    own = not isinstance(kind, str) and not kind.__module__.startswith('mmengine.')
    return component if own or name not in taken else dict(component, type=taken[name])


def _init_worker(init: Any, worker_id: int) -> None:
    protect_worker()
    if init is not None:
        init(worker_id)
