"""Refuse checkpoints that do not fit the whole model."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mm_ummae.models.pretrained import compare_state
from mm_ummae.registry import HOOKS


@HOOKS.register_module()
class CheckpointKeysHook(Hook):
    """Raise if a checkpoint loaded by ``load_from``, ``resume`` or a test does not fit the model.

    MMEngine only warns about names that do not fit and goes on with random weights. To start a network from *part* of
    a checkpoint use ``init_cfg`` of that part (a backbone, say), not ``load_from``.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes.

        Args:
            runner (Runner): Its model receives the weights.
            checkpoint (dict): What was read from the file.
        Raises:
            ValueError: If names or shapes do not fit; all three kinds are listed.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        state = checkpoint.get('state_dict', checkpoint)
        state = {name.removeprefix('module.'): value for name, value in state.items()}
        problems = compare_state(model.state_dict(), state)
        if problems:
            raise ValueError(f'the checkpoint{_origin(runner)} does not fit {type(model).__name__}. {problems}')


def _origin(runner: Runner) -> str:
    if runner._load_from is not None:
        return f' {runner._load_from} (load_from)'
    return f' to resume from in {runner.work_dir}'
