"""Runner for optimizers whose state is sharded over the GPUs (ZeRO, arXiv 1910.02054, stage 1)."""

from __future__ import annotations

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mm_ummae.registry import RUNNERS


@RUNNERS.register_module()
class ShardedRunner(Runner):
    """MMEngine's runner, able to save the state of a ``ZeroRedundancyOptimizer``.

    MMEngine saves on the main process only. There ``state_dict`` gathers the shards of all processes, and would wait
    forever for processes that do not send theirs. Here every process sends its shard before the main one saves.

    Select it in a config with ``runner_type='mm_ummae.ShardedRunner'`` and
    ``optim_wrapper.optimizer=dict(type='ZeroRedundancyOptimizer', optimizer_type='AdamW', ...)``, or with ``--zero`` of
    tools/train.py, which sets both.
    """

    def save_checkpoint(self, *args, save_optimizer: bool = True, **kwargs) -> None:
        """Save a checkpoint; every process calls this.

        Args:
            args: Of MMEngine's runner.
            save_optimizer (bool): Whether to save the complete optimizer state. Default True.
            kwargs: Of MMEngine's runner.
        """
        if save_optimizer and not is_main_process():
            self.optim_wrapper.optimizer.consolidate_state_dict()
        super().save_checkpoint(*args, save_optimizer=save_optimizer, **kwargs)
