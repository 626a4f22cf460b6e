"""One page about a pre-training run, in one file that needs no network and no scripts."""

from __future__ import annotations

import base64
import io
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from torch import Tensor, nn

from mm_ummae.checkpoints import read_checkpoint
from mm_ummae.checkpoints.files import whole_file
from mm_ummae.checkpoints.loading import load_whole
from mm_ummae.datasets.image_files import find_images, load_batch, loader_of
from mm_ummae.datasets.sampling import evenly_spaced
from mm_ummae.models.frozen_features import evaluating, frozen_features
from mm_ummae.registry import MODELS
from mm_ummae.version import __version__

from .feature_maps import model_feature_sheet
from .run_files import RunFiles, read_run
from .sheets import image_sheet, loaded_colours

MAX_SHEETS = 6  # reconstructions over time
MAX_WIDTH = 1200  # pixels of a sheet in the page
MAX_HEADERS = 1000  # files whose sizes are read
MAX_COMPARED = 256  # images among which neighbours are searched
SHOWN, NEIGHBOURS = 4, 5  # images with feature maps and neighbours
MAX_WARNINGS = 20
LEFT_OUT = ('another image takes its place', 'are left out')  # of warnings about files

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
body { margin: 0 auto; max-width: 75rem; padding: 0 1rem 3rem; font: 1rem/1.5 system-ui, sans-serif; color: #1b1f24; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .5rem; border-top: 1px solid #d0d7de; padding-top: 1rem; }
nav a { display: inline-block; margin-right: .8rem; padding: .2rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0 0 1rem; }
figcaption { color: #57606a; font-size: .9rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
.wide img { min-width: 40rem; max-width: none; width: 100%; }
table { border-collapse: collapse; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.wide th, .wide td { white-space: nowrap; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f8fa; padding: .8rem; border-radius: .4rem; }
.warning { border-left: .3rem solid #bf8700; background: #fff8c5; padding: .5rem .8rem; overflow-wrap: anywhere; }
.missing { color: #57606a; font-style: italic; }
</style>
</head>
<body>
<h1>$title</h1>
<nav aria-label="Sections">$links</nav>
$sections
</body>
</html>
""")


def write_report(
    work_dir: str | Path,
    out: str | Path | None = None,
    images: str | Path | None = None,
    next_command: str | None = None,
    device: str = 'cpu',
    title: str | None = None,
) -> Path:
    """Write a page about a pre-training run: is it learning, what does it see, how long does it take, what is next.

    The page is one file: images and plots are inside it. What the run did not write is said, and not left out.

    Args:
        work_dir (str | Path): Work folder of the run, which may be going on.
        out (str | Path, optional): File to write. Default: ``report.html`` in the work folder.
        images (str | Path, optional): Image folder for feature maps, neighbours and the summary of the data. Default:
            the training set of the config.
        next_command (str, optional): What to type next, shown as it is. Default: none.
        device (str): Where the network computes features. Default ``cpu``.
        title (str, optional): Name of the run in the heading. Default: that of the work folder.
    Returns:
        Path: The file.
    Raises:
        FileNotFoundError: If the work folder does not hold a run.
    """
    run = read_run(work_dir)
    files, trouble = _image_files(run.config, images)
    settings = _settings(run.checkpoint)
    model, untrained = _load_model(run, device)
    batch, loaded = _load_images(files, model, run.config)
    trouble = trouble or (None if loaded else 'no image could be read')
    sections = {
        'Summary': _summary(run, next_command),
        'Loss and learning rate': _losses(run),
        'Is it learning?': _learning(run),
        'Reconstructions': _reconstructions(run),
        'Feature maps': _feature_maps(model, batch, untrained or trouble),
        'Nearest neighbours': _neighbours(model, batch, untrained or trouble),
        'Data': _data(run, files, trouble),
        'Time': _time(run, settings),
        'Config and versions': _versions(run),
    }
    name = Path(run.config.filename).stem if run.config and run.config.filename else ''
    title = f'Pre-training report: {title or run.work_dir.resolve().name or name}'
    names = {heading: heading.lower().replace(' ', '-').strip('?') for heading in sections}
    text = PAGE.substitute(
        title=escape(title),
        links=' '.join(f'<a href="#{names[heading]}">{escape(heading)}</a>' for heading in sections),
        sections='\n'.join(
            f'<section id="{names[heading]}">\n<h2>{escape(heading)}</h2>\n{content}\n</section>'
            for heading, content in sections.items()
        ),
    )
    out = Path(out) if out else run.work_dir / 'report.html'
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as part:
        part.write_text(text, encoding='utf-8')
    return out


# Sections


def _summary(run: RunFiles, next_command: str | None) -> str:
    last = run.losses[-1] if run.losses else {}
    total = run.config.get('train_cfg', {}).get('max_epochs') if run.config else None
    rows = [('epoch', f'{last.get("epoch", "?")} of {total or "?"}'), ('iteration', last.get('step', '?'))]
    if run.losses:
        rows.append(('loss', f'{run.losses[0]["loss"]:.4f} at first, {last["loss"]:.4f} now'))
    rows.append(('checkpoint', run.checkpoint or 'none yet'))
    rows.append(('started', 'once' if run.starts == 1 else f'{run.starts} times (resumed)'))
    found = _table(rows)
    learning = [text for text in run.warnings if 'Ways out' in text]
    found += ''.join(f'<p class="warning"><strong>Warning:</strong> {escape(text)}</p>' for text in learning[-3:])
    if run.learning and not learning:
        found += '<p>No measurement of the features gave reason for a warning.</p>'
    if next_command:
        found += f'<h3>Next</h3><pre><code>{escape(next_command)}</code></pre>'
    return found


def _losses(run: RunFiles) -> str:
    if not run.losses:
        return _missing('nothing was logged yet')
    steps = [record['step'] for record in run.losses]
    loss = [record['loss'] for record in run.losses]
    rate = [record.get('lr', float('nan')) for record in run.losses]
    return _plots(
        _plot('loss', 'iteration', {'loss': (steps, loss)}, f'Training loss from {loss[0]:.4f} to {loss[-1]:.4f}'),
        _plot('learning rate', 'iteration', {'learning rate': (steps, rate)}, f'Learning rate, now {rate[-1]:.3g}'),
    )


def _learning(run: RunFiles) -> str:
    if not run.learning:
        return _missing("no measurement yet: the config needs dict(type='mm_ummae.LearningHook') in custom_hooks")

    def curve(*names: str) -> dict[str, tuple[list, list]]:
        lines = {name: [line for line in run.learning if name in line] for name in names}
        return {
            name: ([line['step'] for line in each], [line[name] for line in each])
            for name, each in lines.items()
            if each
        }

    plots = [
        _plot('effective rank', 'epoch', curve('rank'), 'Effective rank of the features of training images'),
        _plot('0..1', 'epoch', curve('spread', 'dead'), 'Spread over images, and share of dead channels'),
    ]
    probes = curve('knn', 'linear', 'chance')
    if probes:
        plots.append(_plot('accuracy, %', 'epoch', probes, 'Probes on frozen features: top-1 accuracy'))
    found = _plots(*plots)
    if not probes:
        found += _missing('no probe: no labelled images were given (LearningHook.labelled)')
    names = [name for name in run.learning[-1] if name != 'step']
    rows = [[line['step'], *(_number(line.get(name)) for name in names)] for line in run.learning]
    found += _wide(_table(rows, ['epoch', *(name.replace('_', ' ') for name in names)]))
    return found + (
        '<p>The rank of random weights is high, and falls when a network learns; a rank near 1, or a spread near 0, '
        'means that all images look the same to the network. What counts are the probes, compared with the start.</p>'
    )


def _reconstructions(run: RunFiles) -> str:
    if not run.sheets:
        return _missing('no sheet yet: ReconstructionHook draws them every few epochs, for models that predict pixels')
    epochs = evenly_spaced(list(run.sheets), MAX_SHEETS)
    found = ''.join(
        _image(np.asarray(Image.open(run.sheets[epoch]).convert('RGB')), f'Reconstructions after epoch {epoch}')
        for epoch in epochs
    )
    more = len(run.sheets) - len(epochs)
    return found + (f'<p>{more} more sheets are in the work folder.</p>' if more else '')


def _feature_maps(model: nn.Module | None, batch: Tensor, trouble: str | None) -> str:
    if model is None or trouble:
        return _missing(f'no feature maps: {trouble}')
    shown = batch[evenly_spaced(range(len(batch)), SHOWN)]
    with evaluating(model), torch.no_grad():
        sheet = model_feature_sheet(model, shown)
    return _image(sheet, 'Images and their feature maps, coloured by the first three principal components') + (
        '<p>Parts of an image with similar colours are similar to the network. Colours cannot be compared between '
        'images or maps.</p>'
    )


def _neighbours(model: nn.Module | None, batch: Tensor, trouble: str | None) -> str:
    if model is None or trouble:
        return _missing(f'no neighbours: {trouble}')
    if len(batch) <= NEIGHBOURS:
        return _missing(f'no neighbours: only {len(batch)} images')
    features = frozen_features(model, batch)
    # Centred: what all images share says nothing about their similarity
    features = F.normalize(features - features.mean(0), dim=1)
    queries = evenly_spaced(range(len(batch)), SHOWN)
    similarity = features[queries] @ features.T
    similarity[range(len(queries)), queries] = -2  # not itself
    pixels = loaded_colours(batch)  # (N, S, S, 3)
    nearest = similarity.topk(NEIGHBOURS, 1).indices.tolist()
    rows = [[pixels[query], *(pixels[i] for i in near)] for query, near in zip(queries, nearest, strict=True)]
    titles = ['image', *(f'neighbour {i + 1}' for i in range(NEIGHBOURS))]
    alt = f'{len(queries)} images and their {NEIGHBOURS} nearest neighbours among {len(batch)} images'
    return _image(image_sheet(rows, titles), alt)


def _data(run: RunFiles, files: Sequence[Path], trouble: str | None) -> str:
    bad = [text for text in run.warnings if any(part in text for part in LEFT_OUT)]
    notes = f'<p>Left out by the run: {"; ".join(map(escape, bad[:MAX_WARNINGS]))}</p>' if bad else ''
    notes = notes or '<p>The log of the run names no file that was left out.</p>'
    if not files:
        return _missing(f'no data: {trouble}') + notes
    sizes, modes, unreadable = [], Counter(), []
    for file in evenly_spaced(files, MAX_HEADERS):
        try:
            with Image.open(file) as image:
                sizes.append(image.size)
                modes[f'{len(image.getbands())} ({image.mode})'] += 1
        except Exception:  # decoders raise many types
            unreadable.append(file)
    rows: list[tuple[str, Any]] = [('files', len(files)), ('headers read', len(sizes) + len(unreadable))]
    for name, values in zip(('width', 'height'), zip(*sizes, strict=True), strict=False):
        rows.append((f'{name}, px', f'{min(values)} to {max(values)}, median {median(values):g}'))
    rows.append(('channels', ', '.join(f'{mode}: {count}' for mode, count in modes.most_common())))
    named = ', '.join(str(path) for path in unreadable[:3])
    rows.append(('cannot be read', f'{len(unreadable)} ({named})' if unreadable else 0))
    return _table(rows) + notes


def _time(run: RunFiles, settings: dict[str, Any]) -> str:
    timed = [record for record in run.losses if 'time' in record]
    if not timed:
        return _missing('no times were logged yet')
    steps = [record['step'] for record in timed]
    spans = [step - before for step, before in zip(steps, [0, *steps], strict=False)]
    spent = sum(record['time'] * span for record, span in zip(timed, spans, strict=True))
    recent = median(record['time'] for record in timed[-10:])
    waiting = median(record.get('data_time', 0) / record['time'] for record in timed[-10:])
    rows = [
        ('an iteration', f'{recent:.3f} s, of which the loader takes {waiting:.0%}'),
        ('training so far', _duration(spent)),
    ]
    config = run.config or Config()
    loader = config.get('train_dataloader') or {}
    batch = settings.get('batch_size') or loader.get('batch_size')
    if batch:
        processes = settings.get('processes') or 1
        count = batch * processes * ((loader.get('dataset') or {}).get('repeats') or 1)
        of = f'{count} in an iteration of {processes} process{"es" if processes > 1 else ""}'
        rows.append(('images per second', f'{count / recent:.1f} ({of})'))
    total, length = config.get('train_cfg', {}).get('max_epochs'), settings.get('iterations_per_epoch')
    if total and length:
        left = max(total * length - steps[-1], 0)
        rows.append(('forecast', f'{_duration(left * recent)} for the remaining {left} of {total * length} iterations'))
    else:
        rows.append(('forecast', 'not known: without a checkpoint the length of an epoch is not known'))
    if run.learning and 'time_share' in run.learning[-1]:
        rows.append(('measuring features', f'{run.learning[-1]["time_share"]:.1%} of the time'))
    return _table(rows)


def _versions(run: RunFiles) -> str:
    found = _table([('this page was written by mm_ummae', __version__), *run.environment.items()])
    if not run.environment:
        found += _missing('the log of the run has no versions')
    others = [text for text in run.warnings if 'Ways out' not in text][:MAX_WARNINGS]
    if others:
        items = ''.join(f'<li>{escape(text)}</li>' for text in others)
        found += f'<details><summary>Other warnings of the log: {len(others)}</summary><ul>{items}</ul></details>'
    if run.config is None:
        return found + _missing('no config was saved')
    text = run.config.pretty_text
    return found + f'<details><summary>Config</summary><pre>{escape(text)}</pre></details>'


# What the sections need of a run


def _image_files(config: Config | None, images: str | Path | None) -> tuple[list[Path], str | None]:
    """Files of a folder or of the training set, or why there are none."""
    if images is None and config is None:
        return [], 'no config was saved'
    try:
        if images is not None:
            return find_images(images, sys.maxsize), None
        with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmpretrain'):
            dataset = DATASETS.build(config.train_dataloader.dataset)
        if not hasattr(dataset, 'get_data_info'):
            return [], f'{type(dataset).__name__} does not tell its files'
        return [Path(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))], None
    except Exception as error:  # data may be elsewhere by now, and a report is written nevertheless
        return [], f'the training set cannot be read ({type(error).__name__}: {error})'


def _load_model(run: RunFiles, device: str) -> tuple[nn.Module | None, str | None]:
    """The network with the weights of the newest checkpoint, or why there is none."""
    if run.checkpoint is None or run.config is None:
        return None, 'there is no checkpoint yet' if run.config is not None else 'no config was saved'
    try:
        with DefaultScope.overwrite_default_scope(run.config.get('default_scope') or 'mmpretrain'):
            model = MODELS.build(run.config.model)
        load_whole(model, str(run.checkpoint))
        if not hasattr(model, 'extract_feat'):
            return None, f'{type(model).__name__} has no features of images'
        return model.to(device).eval(), None
    except Exception as error:  # as above
        return None, f'{run.checkpoint.name} cannot be loaded ({type(error).__name__}: {error})'


def _load_images(files: Sequence[Path], model: nn.Module | None, config: Config | None) -> tuple[Tensor, int]:
    """Evenly spaced images that can be read as training does, (N, C, S, S) uint8, BGR, and their number."""
    load = loader_of(config or {})
    size = getattr(getattr(model, 'backbone', None), 'img_size', 224)
    size, found = size if isinstance(size, int) else min(size), []
    for file in evenly_spaced(files, MAX_COMPARED) if model is not None else ():
        try:
            found.append(load_batch([file], size, load)['inputs'])
        except ValueError:  # counted in the section on data
            continue
    return (torch.cat(found) if found else torch.empty(0, load.channels, size, size, dtype=torch.uint8)), len(found)


def _settings(checkpoint: Path | None) -> dict[str, Any]:
    """Batch, processes and length of an epoch, as the checkpoint has them."""
    try:
        return read_checkpoint(str(checkpoint)).get('run', {}).get('settings', {}) if checkpoint else {}
    except (OSError, ValueError):  # said in the sections that need the weights
        return {}


# Parts of a page


def _plot(label: str, over: str, lines: dict[str, tuple[Sequence, Sequence]], title: str) -> str:
    """A figure with a plot as SVG inside."""
    figure = Figure(figsize=(5.2, 3.0), layout='tight')
    axis = figure.subplots()
    for name, (steps, values) in lines.items():
        axis.plot(steps, values, marker='o' if len(steps) < 20 else None, label=name)
    axis.set(xlabel=over, ylabel=label)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend()
    text = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(text, metadata=dict(Date=None))
    return _figure(f'data:image/svg+xml;base64,{base64.b64encode(text.getvalue()).decode()}', title)


def _image(pixels: np.ndarray, title: str) -> str:
    """A figure with a sheet, (H, W, 3) uint8, as JPEG inside."""
    image = Image.fromarray(pixels)
    if image.width > MAX_WIDTH:
        image = image.resize((MAX_WIDTH, round(image.height * MAX_WIDTH / image.width)))
    text = io.BytesIO()
    image.save(text, 'JPEG', quality=85)
    source = f'data:image/jpeg;base64,{base64.b64encode(text.getvalue()).decode()}'
    return _figure(source, title, image.size)


def _figure(source: str, title: str, size: tuple[int, int] | None = None) -> str:
    sides = f' width="{size[0]}" height="{size[1]}"' if size else ''
    image = f'<img src="{source}" alt="{escape(title)}"{sides}>'
    return f'<figure>{_wide(image) if size else image}<figcaption>{escape(title)}</figcaption></figure>\n'


def _wide(content: str) -> str:
    """Content that may be wider than a phone: it scrolls by itself, also by the keyboard."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="Scrolls sideways">{content}</div>'


def _plots(*figures: str) -> str:
    return f'<div class="plots">{"".join(figures)}</div>'


def _table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    titles = ''.join(f'<th scope="col">{escape(name)}</th>' for name in head)
    titles = f'<tr>{titles}</tr>' if head else ''
    lines = [
        f'<tr><th scope="row">{escape(str(name))}</th>{"".join(f"<td>{escape(str(cell))}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    ]
    return f'<table>{titles}{"".join(lines)}</table>'


def _missing(text: str) -> str:
    return f'<p class="missing">{escape(text[0].upper() + text[1:])}.</p>'


def _number(value: float | None) -> str:
    return '–' if value is None else f'{value:.3g}'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s'
