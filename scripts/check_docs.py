#!/usr/bin/env python3
"""Check that everything which the documentation names exists, and that its tables of config values are right.

    python scripts/check_docs.py [PAGE ...]      default: all pages

Checked are links and anchors, paths, configs, make targets, tools and their options, keys behind --cfg-options, Python
blocks, and values that tables give for config keys. Prints PAGE:LINE: PROBLEM; the exit status is 1 if there is one.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGES = ('*.md', 'docs/**/*.md', 'configs/*.md', 'demo/*.md', 'benchmarks/*.md', 'weights/*.md', 'tests/data/**/*.md')
LEAVES = {path.name: path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts}
# Packages as `mim` calls them, and their import names
PACKAGES = {'ummae': 'mm_ummae', 'mmpretrain': 'mmpretrain', 'mmsegmentation': 'mmseg', 'mmdet': 'mmdet'}
PACKAGES['onedl-mmdetection'] = 'mmdet'
FOLDERS = r'(?:configs|tools|mm_ummae|tests|scripts|docs|demo|benchmarks|requirements)'
FENCE = re.compile(r'^ *```(\w*)\n(.*?)^ *```', re.MULTILINE | re.DOTALL)
INLINE = re.compile(r'`([^`\n]+)`')
LINK = re.compile(r'\]\(([^)\s]+)\)')
OPTION = re.compile(r"['\"](--[a-z][\w-]*)['\"]")
BATCH = re.compile(r'(\d+) x (\d+) x (\d+) = (\d+), lr (\S+)$')  # GPUs x images x accumulated iterations = total batch
REGISTRIES = (registry.MODELS, registry.OPTIM_WRAPPERS, registry.PARAM_SCHEDULERS, registry.DATASETS, registry.HOOKS)
Problem = tuple[int, str]  # position in the text, message


def blank(text: str, pattern: re.Pattern) -> str:
    """The text with all matches replaced by spaces; positions stay."""
    return pattern.sub(lambda match: re.sub(r'[^\n]', ' ', match[0]), text)


# Links, paths, names


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub builds them."""
    found: list[str] = []
    for heading in re.findall(r'^#+ +(.+?) *$', blank(path.read_text(), FENCE), re.MULTILINE):
        text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).lower()
        slug = re.sub(r'[^\w\- ]', '', text).replace(' ', '-')
        found.append(f'{slug}-{found.count(slug)}' if slug in found else slug)
    return set(found)


def check_links(text: str, path: Path) -> Iterator[Problem]:
    """Relative links lead to a file, and to a heading of it."""
    for match in LINK.finditer(blank(blank(text, FENCE), INLINE)):
        if re.match(r'[a-z]+:', match[1]):
            continue
        name, _, anchor = match[1].partition('#')
        target = path.parent / name if name else path
        if not target.exists():
            yield match.start(), f'link {match[1]}: no such file'
        elif anchor and anchor not in anchors(target):
            yield match.start(), f'link {match[1]}: no such heading'


def check_names(text: str, path: Path) -> Iterator[Problem]:
    """Paths, configs of this project and of hosts, and make targets exist."""
    text = blank(text, LINK)
    suffixes = 'py|sh|yml|md|txt|ipynb|json|jpg|png'
    for pattern in (rf'(?<![\w/.:-])({FOLDERS}/[\w./-]*\w\.(?:{suffixes}))\b', rf'`({FOLDERS}(?:/[\w-]+)+/?)`'):
        for match in re.finditer(pattern, text):
            if not (ROOT / match[1]).exists():
                yield match.start(), f'{match[1]}: no such path'
    data = r'(?:in1k-\d+px|coco|ade20k-[\w-]+|demo-\d+px)'
    for match in re.finditer(rf'(?<![\w./:*}}-])([a-z][\w-]*_[\w-]*_{data})(?![\w*{{-])', text):
        if f'{match[1]}.py' not in LEAVES:
            yield match.start(), f'{match[1]}: no such config'
    for match in re.finditer(r'(\w+)::([\w./-]+\.py)', text):
        folder = Path(importlib.util.find_spec(match[1]).origin).parent / '.mim' / 'configs'
        if not (folder / match[2]).is_file():
            yield match.start(), f'{match[0]}: no such config'
    targets = set(re.findall(r'^([a-z][\w-]*):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for code in (*FENCE.finditer(text), *INLINE.finditer(blank(text, FENCE))):
        for match in re.finditer(r'(?:^|[`\w] *)\bmake ([a-z][\w-]*)', code[0], re.MULTILINE):
            if match[1] not in targets:
                yield code.start() + match.start(), f'make {match[1]}: no such target'


# Commands


def commands(text: str) -> Iterator[tuple[int, list[str], str]]:
    """Commands in shell blocks and in running text: position, words, comment. `$NAME` is replaced."""
    values = dict(re.findall(r'^ *([A-Z]+)=(\S+)$', text, re.MULTILINE))
    lines = []
    for match in FENCE.finditer(text):
        if match[1] in ('', 'bash', 'sh', 'console'):
            block = re.sub(r'\\\n', '  ', match[2])  # of the same length
            lines += [(match.start(2) + line.start(), line[0]) for line in re.finditer(r'[^\n]+', block)]
    lines += [(match.start(1), match[1]) for match in INLINE.finditer(blank(text, FENCE))]
    for position, line in lines:
        line = re.sub(r'\$([A-Z]+)\b', lambda match: values.get(match[1], match[0]), line)
        if re.match(r'\s*(?:\$ +)?(?:\w+=\S+ +)*(?:\S*python\S* |bash |mim |tools/|--cfg-options)', line):
            code, _, comment = line.partition(' #')
            yield position, shlex.split(code), comment.strip()


def host(package: str) -> Path:
    """Folder with tools/ and configs/ of an installed package, by the name that `mim` uses."""
    if package == 'ummae':
        return ROOT
    return Path(importlib.util.find_spec(PACKAGES[package]).origin).parent / '.mim'


def options_of(words: list[str]) -> set[str] | str | None:
    """Options that a command takes, what is wrong with its name, or None if it is not checked."""
    script = next((word for word in words if re.fullmatch(r'(?:\./)?tools/\w+\.(?:py|sh)', word)), None)
    if script:
        script = re.sub(r'(?:dist|slurm)_(\w+)\.sh', r'\1.py', script)
        return options_in(ROOT / script) if (ROOT / script).exists() else f'{script}: no such tool'
    if ' -m mm_ummae ' in f'{" ".join(words)} ':
        return options_in(ROOT / 'mm_ummae' / '__main__.py')
    module = re.search(r' -m (demo|benchmarks)\b', ' '.join(words))
    if module:
        return {option for file in (ROOT / module[1]).glob('*.py') for option in OPTION.findall(file.read_text())}
    if (
        words[0] != 'mim'
        or words[1] not in ('train', 'test', 'run')
        or len(words) < 4
        or 'TOOL' in words
        or 'CONFIG' in words[2]
    ):
        return None
    _, action, package, name, *_ = words
    if package not in PACKAGES:
        return f'{package}: unknown to mim'
    name = action if action in ('train', 'test') else name
    file = next((host(package) / 'tools').rglob(f'{name}.py'), None)
    if file is None:
        return f'{name}: no such tool of {package}'
    cli = importlib.import_module(f'mim.commands.{action}').cli
    return {option for parameter in cli.params for option in parameter.opts} | options_in(file)


def options_in(file: Path) -> set[str]:
    """Options that a program's source adds, also by ``ToolParser``."""
    source = file.read_text()
    options = set(OPTION.findall(source))
    if 'ToolParser' in source:
        options |= {'--debug'} | ({'--cfg-options'} if '.add_config_options()' in source else set())
    return options


def check_commands(text: str, path: Path) -> Iterator[Problem]:
    """Tools, their options, and the keys behind --cfg-options exist; batch sizes in comments are right."""
    for position, words, comment in commands(text):
        known = options_of(words)
        if isinstance(known, str):
            yield position, known
            continue
        first = next((i for i, word in enumerate(words) if re.search(r'tools/\w+\.\w+$', word)), 0)
        given = [word.partition('=')[0] for word in words[first:] if re.match(r'--[a-z]', word)]
        if known is not None:
            known |= {'--help'}
            yield from ((position, f'{option}: no option of {words[first]}') for option in given if option not in known)
        configs = [LEAVES[Path(word).name] for word in words if Path(word).name in LEAVES]
        keys = dict(word.split('=', 1) for word in values_of(words))
        for key in keys:
            if not key.isupper() and not any(has_key(read(config), key) for config in configs or LEAVES.values()):
                yield position, f'{key}: not in {configs[0].name if configs else "any config"}'
        if BATCH.match(comment):
            yield from ((position, problem) for problem in wrong_batch(read(configs[0]), keys, words, comment))


def values_of(words: list[str]) -> Iterator[str]:
    """Words behind --cfg-options."""
    given = False
    for word in words:
        given = word == '--cfg-options' if word.startswith('--') else given
        if given and '=' in word:
            yield word


def wrong_batch(cfg: Config, keys: dict[str, str], words: list[str], comment: str) -> Iterator[str]:
    """Differences between the command and its comment on the batch; the learning rate follows the total batch."""
    gpus, images, accumulated, total = map(int, BATCH.match(comment).groups()[:4])
    published = cfg.train_dataloader.batch_size, cfg.optim_wrapper.get('accumulative_counts', 1)
    used = tuple(
        int(keys.get(key, value))
        for key, value in zip(
            ('train_dataloader.batch_size', 'optim_wrapper.accumulative_counts'), published, strict=True
        )
    )
    if used != (images, accumulated) or gpus * images * accumulated != total:
        yield f'{comment}: the command has {used[0]} images and {used[1]} accumulated iterations'
    lr = cfg.optim_wrapper.optimizer.lr * total / (8 * published[0] * published[1])
    scale = gpus * images / cfg.auto_scale_lr.base_batch_size if '--auto-scale-lr' in words else 1
    trained = float(keys.get('optim_wrapper.optimizer.lr', cfg.optim_wrapper.optimizer.lr)) * scale
    if max(abs(lr - trained), abs(lr - float(BATCH.match(comment)[5]))) > 1e-6:
        yield f'{comment}: the published rule gives a learning rate of {lr:g}, the command {trained:g}'


# Configs


@cache
def read(path: Path) -> Config:
    """A config, read once."""
    return Config.fromfile(path)


def arguments(node: Any, scope: str) -> set[str]:
    """Arguments of a dict's class, with those of its parents as long as it passes keywords on."""
    names: set[str] = set()
    if not isinstance(node, dict) or 'type' not in node:
        return names
    with DefaultScope.overwrite_default_scope(scope):
        found = next(
            filter(None, (r.switch_scope_and_registry(None).__enter__().get(node['type']) for r in REGISTRIES)), None
        )
    for parent in inspect.getmro(found) if found else ():
        if '__init__' in vars(parent):
            parameters = inspect.signature(parent.__init__).parameters
            names |= set(parameters) - {'self', 'args', 'kwargs'}
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names


def lookup(cfg: Config, key: str) -> Any:
    """Value of a dotted key; None for a key of the runner or an argument of a class that the config does not set."""
    node, parts = cfg, key.split('.')
    if parts[0] not in {*inspect.signature(Runner.__init__).parameters, 'compile', 'runner_type'}:
        raise KeyError(key)  # a helper of a base file, which the runner does not read
    for i, part in enumerate(parts):
        if isinstance(node, (dict, Config)) and part in node:
            node = node[part]
        elif isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif i == 0:
            return None
        elif part in {'_delete_'} | arguments(node, cfg.default_scope) and (
            i == len(parts) - 1 or (part == 'init_cfg' and parts[i + 1 :] in (['type'], ['checkpoint'], ['prefix']))
        ):
            return None  # the keys of init_cfg are those of MMEngine's PretrainedInit
        else:
            raise KeyError(key)
    return node


def has_key(cfg: Config, key: str) -> bool:
    """Whether a config, or a class in it, has a key."""
    try:
        lookup(cfg, key)
    except KeyError:
        return False
    return True


def check_tables(text: str, path: Path) -> Iterator[Problem]:
    """Rows below `our key or option` have keys of the config named before, with their values."""
    for table in re.finditer(r'^\|[^\n]*our key or option[^\n]*\n\|[-:| ]+\n((?:\|.*\n)*)', text, re.MULTILINE):
        name = re.findall(r'[Kk]eys of\s+`(configs/\S+\.py)`', text[: table.start()])[-1]
        for row in re.finditer(r'\|[^|\n]*\|([^|\n]*)\|([^|\n]*)\|', table[1]):
            key, value = INLINE.search(row[1]), re.fullmatch(r' (?:ours: )?`(.+)` ', row[2])
            if not key or row[1].startswith((' option', ' none:')):
                continue
            position = table.start(1) + row.start()
            if not has_key(read(ROOT / name), key[1]):
                yield position, f'{key[1]}: not in {name}'
            elif value and plain(lookup(read(ROOT / name), key[1])) != plain(ast.literal_eval(value[1])):
                yield position, f'{key[1]}: {lookup(read(ROOT / name), key[1])} in {name}, not {value[1]}'


def plain(value: Any) -> Any:
    """Lists for tuples and rounded numbers, to compare."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return float(f'{value:.9g}') if isinstance(value, float) else value


# Python


def check_python(text: str, path: Path) -> Iterator[Problem]:
    """Configs can be read; other blocks import and use names that exist."""
    for match in FENCE.finditer(text):
        if match[1] != 'python':
            continue
        try:
            tree = ast.parse(match[2])
            if '_base_' in match[2]:
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / 'own.py').write_text(match[2])
                    Config.fromfile(Path(folder) / 'own.py')
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    for name in node.names:
                        getattr(importlib.import_module(node.module), name.name)
                elif isinstance(node, ast.Import):
                    for name in node.names:
                        importlib.import_module(name.name)
                elif (
                    isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'mm_ummae'
                ):
                    getattr(importlib.import_module('mm_ummae'), node.attr)
        except Exception as error:  # of many types: syntax, imports, configs
            yield match.start(), f'Python block: {type(error).__name__}: {error}'


def check(path: Path) -> list[str]:
    """Problems of a page, in the order of its lines."""
    text, found = path.read_text(), []
    # The changes of old versions name what is gone
    checks = (check_links,) if path.name == 'CHANGELOG.md' else CHECKS
    for problems in checks:
        found += [(text.count('\n', 0, position) + 1, message) for position, message in problems(text, path)]
    return [
        f'{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}: {message}'
        for line, message in sorted(set(found))
    ]


CHECKS = (check_links, check_names, check_commands, check_tables, check_python)


def main(arguments: list[str] | None = None) -> int:
    """Check pages; returns the exit status."""
    names = sys.argv[1:] if arguments is None else arguments
    pages = [Path(name).resolve() for name in names] or sorted({path for glob in PAGES for path in ROOT.glob(glob)})
    problems = [problem for page in pages for problem in check(page)]
    print('\n'.join(problems) or f'{len(pages)} pages checked')
    return bool(problems)


if __name__ == '__main__':
    sys.exit(main())
