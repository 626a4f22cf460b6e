"""Runner for optimizers whose state is sharded over the GPUs (ZeRO, arXiv 1910.02054, stage 1)."""

from __future__ import annotations

from mm_ummae.registry import RUNNERS

from .resumable_runner import ResumableRunner


@RUNNERS.register_module()
class ShardedRunner(ResumableRunner):
    """A :class:`ResumableRunner` that can save the state of a ``ZeroRedundancyOptimizer``.

    MMEngine saves on the main process only. There ``state_dict`` gathers the shards of all processes, and would wait
    forever for processes that do not send theirs. Here every process sends its shard while the main one saves.

    Select it in a config with ``runner_type='mm_ummae.ShardedRunner'`` and
    ``optim_wrapper.optimizer=dict(type='ZeroRedundancyOptimizer', optimizer_type='AdamW', ...)``, or with ``--zero`` of
    tools/train.py, which sets both.
    """

    def _assist_saving(self) -> None:
        self.optim_wrapper.optimizer.consolidate_state_dict()
