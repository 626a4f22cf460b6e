"""Checkpoint hook that deletes an old file only after the new one is written."""

from __future__ import annotations

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mm_ummae.checkpoints.files import whole_file
from mm_ummae.registry import HOOKS

INTERRUPTED = 'interrupted_iter_{}.pth'  # the checkpoint of a run that a signal stopped
POINTER = 'last_checkpoint'  # file of the work folder that names the newest checkpoint


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's checkpoint hook in a safe order: write the new file, point to it, then delete old ones.

    MMEngine deletes first, so that a full disk, or a kill while it writes, costs a checkpoint, the only one where
    ``max_keep_ckpts`` is 1. Arguments are those of MMEngine's hook. :class:`ResumableRunner` takes this hook in place
    of MMEngine's.
    """

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0:
            kept = [kept for kept in self.keep_ckpt_ids if kept != step]
            outdated = kept[: max(len(kept) + 1 - self.max_keep_ckpts, 0)]
            if step not in self.keep_ckpt_ids:
                self.keep_ckpt_ids.append(step)  # drops the oldest
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self._write(runner, self.out_dir, name, meta)
        if is_main_process():
            for old in outdated:
                self._delete(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))
            for path in Path(runner.work_dir).glob(INTERRUPTED.format('*')):
                path.unlink()

    def save_interrupted(self, runner: Runner, epoch: int, iteration: int) -> str:
        """Save where a signal stopped the run; the next regular checkpoint replaces the file.

        Args:
            runner (Runner): The runner.
            epoch (int): Finished epochs.
            iteration (int): Finished iterations.
        Returns:
            str: Path of the file.
        """
        self._write(runner, runner.work_dir, INTERRUPTED.format(iteration), dict(epoch=epoch, iter=iteration))
        if is_main_process():
            for path in Path(runner.work_dir).glob(INTERRUPTED.format('*')):
                if str(path) != self.last_ckpt:
                    path.unlink()
        return self.last_ckpt

    def _write(self, runner: Runner, out_dir: str, name: str, meta: dict) -> None:
        path = self.file_backend.join_path(out_dir, name)
        runner.message_hub.update_info('last_ckpt', path)
        runner.save_checkpoint(
            out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self.last_ckpt = path
        if is_main_process():
            with whole_file(Path(runner.work_dir) / POINTER) as part:
                part.write_text(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        single = getattr(self, 'best_ckpt_path', None)
        several = dict(getattr(self, 'best_ckpt_path_dict', {}))
        # MMEngine deletes the previous best files that it knows, before it writes the new ones
        if single:
            self.best_ckpt_path = None
        for key in several:
            self.best_ckpt_path_dict[key] = None
        super()._save_best_checkpoint(runner, metrics)
        if single:
            self.best_ckpt_path = self._replaced(single, self.best_ckpt_path)
        for key, previous in several.items():
            self.best_ckpt_path_dict[key] = self._replaced(previous, self.best_ckpt_path_dict[key])

    def _replaced(self, previous: str | None, new: str | None) -> str | None:
        if new is None:
            return previous
        if previous and previous != new and is_main_process():
            self._delete(previous)
        return new

    def _delete(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
