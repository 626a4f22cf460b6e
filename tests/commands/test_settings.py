"""Settings by the number of images: the rule goes through the demo's and the published recipe."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mm_ummae.commands import Settings, choose_settings
from mm_ummae.commands.settings import Reference, choose_finetuning


def test_the_demo_and_the_published_recipe() -> None:
    assert choose_settings(2000) == Settings(batch=16, epochs=20, lr=4e-4, updates=2500)
    published = choose_settings(1_281_167)
    assert (published.batch, published.lr) == (4096, 2.4e-3)
    assert 195 <= published.epochs <= 205 and published.updates == pytest.approx(62_400, rel=0.02)


def test_settings_grow_with_the_images() -> None:
    found = [choose_settings(images) for images in (100, 1000, 10_000, 100_000, 1_000_000)]
    for smaller, larger in pairwise(found):
        assert smaller.batch <= larger.batch and smaller.lr <= larger.lr and smaller.updates < larger.updates
    assert all(each.batch & (each.batch - 1) == 0 for each in found), 'powers of two'


def test_what_is_given_is_kept_and_the_rest_follows() -> None:
    assert choose_settings(2000, epochs=7) == Settings(16, 7, 4e-4, 875)
    assert choose_settings(2000, batch=64).lr == 8e-4
    assert choose_settings(2000, batch=64).updates == pytest.approx(2500, rel=0.02)
    assert choose_settings(2000, lr=1e-5).lr == 1e-5
    assert choose_settings(10).batch == 10, 'all images are a batch at most'
    assert choose_settings(10**9).epochs == 10
    assert choose_settings(17).epochs <= 800


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(images=0), 'images is 0, but it must be above 0'),
        (dict(images=9, epochs=-1), 'epochs is -1, but'),
        (dict(images=9, lr=0.0), 'lr is 0.0, but'),
        (dict(images=9, batch=16), 'batch is 16, but there are only 9 images: give a smaller batch'),
    ],
)
def test_impossible_settings(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_settings(**arguments)


def test_fine_tuning_repeats_its_recipe_on_as_many_images() -> None:
    reference = Reference(images=20_000, batch=16, updates=10_000, lr=1e-4)
    assert choose_finetuning(reference, 20_000) == Settings(batch=16, epochs=8, lr=1e-4, updates=10_000)
    fewer = choose_finetuning(reference, 800)
    assert fewer.batch == 16 and fewer.updates == pytest.approx(2000, rel=0.03), 'the square root of a 25th'
    assert choose_finetuning(reference, 40).epochs == 89 and choose_finetuning(reference, 12).epochs == 245
    large = Reference(images=1_000_000, batch=1024, updates=100_000, lr=2e-3)
    assert choose_finetuning(large, 2000).batch == 32
    assert choose_finetuning(large, 2000).lr == pytest.approx(2e-3 * (32 / 1024) ** 0.5, rel=0.01)
    assert choose_finetuning(large, 2000, batch=1024).lr == 2e-3
    assert (
        choose_finetuning(reference, 7, multiple=2).batch == 6 and choose_finetuning(reference, 7, epochs=3).epochs == 3
    )
    with pytest.raises(ValueError, match='batch is 9, but there are only 7 images'):
        choose_finetuning(reference, 7, batch=9)
