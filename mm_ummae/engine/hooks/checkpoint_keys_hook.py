"""Refuse checkpoints that do not fit the whole model."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from mm_ummae.checkpoints.loading import compare_state
from mm_ummae.registry import HOOKS


@HOOKS.register_module()
class CheckpointKeysHook(Hook):
    """Raise if a checkpoint loaded by ``load_from``, ``resume`` or a test does not fit the model.

    MMEngine only warns about names that do not fit and goes on with random weights. To start a network from *part* of
    a checkpoint use ``init_cfg`` of that part (a backbone, say), not ``load_from``.

    Args:
        new_parts (tuple[str, ...]): Starts of parameter names. A training's ``load_from`` may lack such a part
            altogether: one adds it to a trained network. Resumed runs and tests may not. Default none.
    """

    def __init__(self, new_parts: tuple[str, ...] = ()) -> None:
        self.new_parts = tuple(new_parts)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes.

        Args:
            runner (Runner): Its model receives the weights.
            checkpoint (dict): What was read from the file.
        Raises:
            ValueError: If names or shapes do not fit; all three kinds are listed.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        state = checkpoint.get('state_dict', checkpoint)
        state = {name.removeprefix('module.'): value for name, value in state.items()}
        own = model.state_dict()
        starts_training = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        if starts_training:
            new = tuple(part for part in self.new_parts if not any(name.startswith(part) for name in state))
            own = {name: value for name, value in own.items() if not name.startswith(new)}
        problems = compare_state(own, state)
        if problems:
            raise ValueError(f'the checkpoint{_origin(runner)} does not fit {type(model).__name__}. {problems}')


def _origin(runner: Runner) -> str:
    if runner._load_from is not None:
        return f' {runner._load_from} (load_from)'
    return f' to resume from in {runner.work_dir}'
