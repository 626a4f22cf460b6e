"""Hook that rejects checkpoints which do not match the whole model."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor

from mm_ummae.checkpoints import CheckpointError, compare_state
from mm_ummae.registry import HOOKS

MAX_HINTED = 12  # parts; HTC++, the largest detector here, has 7 class layers


@HOOKS.register_module()
class CheckpointKeysHook(Hook):
    """Raise if a checkpoint loaded by ``load_from``, ``resume`` or a test run does not match the model.

    MMEngine only warns about mismatched names and continues with random weights. To initialise only a *part* of the
    model from a checkpoint, such as the backbone, use the ``init_cfg`` of that part instead of ``load_from``.

    Args:
        new_parts (tuple[str, ...]): Starts of parameter names. When training starts from ``load_from``, parameters of
            these parts that the checkpoint does not have, or has in another shape, keep their initial weights, and the
            log names them: the class layers of a detector for other classes, or a part that is added to a trained
            network. Resumed and test runs still need every parameter. Default: none.
    """

    def __init__(self, new_parts: tuple[str, ...] = ()) -> None:
        self.new_parts = (new_parts,) if isinstance(new_parts, str) else tuple(new_parts)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the names and shapes of the checkpoint with those of the model.

        Args:
            runner (Runner): Owner of the model that receives the weights.
            checkpoint (dict): Content of the file. Parameters of new parts that do not fit are taken out.
        Raises:
            CheckpointError: If names or shapes differ; missing, unexpected and reshaped parameters are listed.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        own = model.state_dict()
        starts_training = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        content = checkpoint.get('state_dict', checkpoint)
        if starts_training and self.new_parts:
            self._take_out(runner, own, content)
        state = {name.removeprefix('module.'): value for name, value in content.items()}
        problems = compare_state(own, state)
        if problems:
            hint = _hint(runner, own, state) if starts_training else ''
            raise CheckpointError(
                f'the checkpoint{_origin(runner)} does not fit {type(model).__name__}. {problems}{hint}'
            )

    def _take_out(self, runner: Runner, own: dict[str, Tensor], content: dict[str, Tensor]) -> None:
        """Leave the parameters of new parts that do not fit out of both, and log them."""
        stored = {name.removeprefix('module.'): name for name in content}
        fresh = [
            name
            for name in own
            if name.startswith(self.new_parts)
            and (name not in stored or content[stored[name]].shape != own[name].shape)
        ]
        unused = [name for name in stored if name.startswith(self.new_parts) and name not in own]
        for name in fresh:
            own.pop(name)
        for name in (*fresh, *unused):
            if name in stored:
                content.pop(stored[name])
        if fresh or unused:
            rest = f'; not used: {", ".join(unused)}' if unused else ''
            runner.logger.info(f'new_parts: these parameters keep their initial weights: {", ".join(fresh)}{rest}')


def _hint(runner: Runner, own: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    """The option that lets what does not fit start anew, unless that is most of the model."""
    fitting = {name for name in own if name in state and state[name].shape == own[name].shape}
    parts = sorted({f'{name.rpartition(".")[0]}.' for name in {*own, *state} - fitting if '.' in name})
    if not parts or len(parts) > MAX_HINTED or len(own) > 2 * len(fitting):
        return ''
    hooks = runner.cfg.get('custom_hooks') or []
    kinds = [str(hook.get('type') if isinstance(hook, dict) else type(hook)) for hook in hooks]
    place = next((i for i, kind in enumerate(kinds) if 'CheckpointKeysHook' in kind), 0)
    return (
        '. To load all else, and let these parts start from their initial weights (other classes, added layers): '
        f'--cfg-options "custom_hooks.{place}.new_parts=[{",".join(parts)}]", or in the config '
        f"custom_hooks=[dict(type='mm_ummae.CheckpointKeysHook', new_parts={tuple(parts)})]"
    )


def _origin(runner: Runner) -> str:
    if runner._load_from is not None:
        return f' {runner._load_from} (load_from)'
    return f' to resume from in {runner.work_dir}'
