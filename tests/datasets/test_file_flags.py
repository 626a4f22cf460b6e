"""Flags of files: set, removed, counted, and merged over ranks."""

from __future__ import annotations

import multiprocessing

import torch
from torch import Tensor

from mm_ummae.datasets.file_flags import UNDECODED, UNREAD, FileFlags


def merge(*ranks: FileFlags) -> None:
    """As a reduction over processes."""
    maximum = torch.stack([rank._bytes.clone() for rank in ranks]).amax(0)
    for rank in ranks:
        rank.merge(lambda own: maximum.clone())


def state(flags: FileFlags) -> dict[int, list[int]]:
    found = {kind: flags.find(kind) for kind in (UNREAD, UNDECODED)}
    assert {kind: flags.count(kind) for kind in found} == {kind: len(files) for kind, files in found.items()}
    return found


def test_a_flag_is_new_once_and_goes_when_the_file_is_decoded() -> None:
    flags = FileFlags(4)
    assert len(flags) == 4 and not flags.changed() and state(flags) == {UNREAD: [], UNDECODED: []}
    assert flags.set(1, UNREAD) and flags.set(2, UNDECODED) and flags.changed()
    assert not flags.set(1, UNREAD) and not flags.set(2, UNDECODED)
    assert state(flags) == {UNREAD: [1], UNDECODED: [2]}
    assert flags.set(1, UNDECODED), 'now it was read, but not decoded'
    assert state(flags) == {UNREAD: [], UNDECODED: [1, 2]}
    assert flags.clear(2) and not flags.clear(2) and not flags.clear(3)
    assert state(flags) == {UNREAD: [], UNDECODED: [1]}
    assert flags.set(2, UNDECODED), 'bad again'


def test_ranks_agree_after_a_merge_and_count_a_file_once() -> None:
    first, second = FileFlags(6), FileFlags(6)
    first.set(0, UNDECODED), first.set(1, UNDECODED), second.set(1, UNDECODED), second.set(2, UNREAD)
    first.set(3, UNREAD), second.set(3, UNDECODED)
    merge(first, second)
    for rank in (first, second):
        assert state(rank) == {UNREAD: [2], UNDECODED: [0, 1, 3]} and not rank.changed()
        assert not rank.set(0, UNDECODED) and not rank.changed(), 'known to both'


def test_a_file_that_another_rank_decodes_loses_its_flag_everywhere() -> None:
    first, second = FileFlags(3), FileFlags(3)
    first.set(0, UNDECODED), first.set(1, UNREAD)
    merge(first, second)
    assert second.clear(0) and second.changed()
    merge(first, second)
    assert state(first) == state(second) == {UNREAD: [1], UNDECODED: []}
    assert first.set(0, UNDECODED)
    merge(first, second)
    assert state(second) == {UNREAD: [1], UNDECODED: [0]}, 'flagged anew'


def test_a_flag_that_is_set_during_a_merge_is_kept() -> None:
    flags = FileFlags(3)
    flags.set(0, UNDECODED)

    def maximum(own: Tensor) -> Tensor:
        flags.set(2, UNDECODED)  # by a loader process
        return own

    flags.merge(maximum)
    assert state(flags) == {UNREAD: [], UNDECODED: [0, 2]} and flags.changed()


def test_processes_share_the_flags() -> None:
    flags = FileFlags(3)
    process = multiprocessing.get_context('fork').Process(target=flags.set, args=(1, UNDECODED))
    process.start()
    process.join()
    assert state(flags) == {UNREAD: [], UNDECODED: [1]}
