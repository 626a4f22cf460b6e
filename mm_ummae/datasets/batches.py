"""Check, before training, that an epoch has an iteration."""

from __future__ import annotations

import logging

from mmengine.logging import print_log


def check_batches(num_images: int, batch_size: int, num_processes: int = 1, drop_last: bool = False) -> int:
    """Count the iterations of an epoch, and raise if there is none.

    MMEngine's ``DefaultSampler`` gives every process the same number of images, rounded up by repeating some.

    Args:
        num_images (int): Images of the training set.
        batch_size (int): Images of a process and iteration.
        num_processes (int): Processes that share an epoch. Default 1.
        drop_last (bool): Whether an incomplete last batch is left out. Default False.
    Returns:
        int: Iterations of an epoch in each process. If there are fewer images than processes, a warning is logged.
    Raises:
        ValueError: If the epoch has no iteration, or an argument is not positive.
    """
    for name, value in dict(batch_size=batch_size, num_processes=num_processes).items():
        if value < 1:
            raise ValueError(f'train_dataloader: {name} is {value}, but it must be at least 1')
    if num_images < 1:
        raise ValueError(
            'the training set holds no image: check the paths in train_dataloader.dataset and, for detection, its '
            'filter_cfg, which leaves out images without objects'
        )
    share = -(-num_images // num_processes)  # rounded up
    iterations = share // batch_size if drop_last else -(-share // batch_size)
    if iterations == 0:
        raise ValueError(
            f'an epoch has no iteration: {num_images} images over {num_processes} processes are {share} for each, less '
            f'than train_dataloader.batch_size={batch_size}, and train_dataloader.drop_last=True leaves out incomplete '
            f'batches. Set train_dataloader.batch_size to at most {share}, set drop_last=False, use fewer processes or '
            'more images'
        )
    if num_images < num_processes:
        print_log(
            f'the training set holds {num_images} images for {num_processes} processes: some train on the same images',
            logger='current',
            level=logging.WARNING,
        )
    return iterations
