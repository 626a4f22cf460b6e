"""Hook that rejects checkpoints which do not match the whole model."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from mm_ummae.checkpoints.loading import compare_state
from mm_ummae.registry import HOOKS


@HOOKS.register_module()
class CheckpointKeysHook(Hook):
    """Raise if a checkpoint loaded by ``load_from``, ``resume`` or a test run does not match the model.

    MMEngine only warns about mismatched names and continues with random weights. To initialise only a *part* of the
    model from a checkpoint, such as the backbone, use the ``init_cfg`` of that part instead of ``load_from``.

    Args:
        new_parts (tuple[str, ...]): Prefixes of parameter names. When training starts from ``load_from``, the
            checkpoint may lack such a part completely, so that a new part can be added to a trained network. Resumed
            and test runs still need every parameter. Default: none.
    """

    def __init__(self, new_parts: tuple[str, ...] = ()) -> None:
        self.new_parts = tuple(new_parts)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the names and shapes of the checkpoint with those of the model.

        Args:
            runner (Runner): Owner of the model that receives the weights.
            checkpoint (dict): Content of the file.
        Raises:
            ValueError: If names or shapes differ; missing, unexpected and reshaped parameters are listed.
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
