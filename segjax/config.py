"""Configs: the complete tree of fields with their meaning, and how a file becomes one.

A config file has `get_config()`, which gives the fields it cares about; `load` lays them over
`defaults()`. Fields change on the command line: `--config.optimizer.learning_rate=1e-4`, tuples as
`--config.augment.crop="(640, 640)"`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from segjax.errors import SegjaxError

__all__ = ["ConfigDict", "defaults", "diff", "load", "read", "save"]

OPEN = ("model", "data.dataset")
"""Dicts whose fields depend on the system or the dataset they name. A file replaces them whole."""

CHOICES = {
    "optimizer.name": ("adamw", "adam", "sgd"),
    "schedule.name": ("poly", "cosine_restart", "constant", "multistep"),
    "augment.recipe": ("scale_crop", "large_scale_jitter", "shortest_edge", "detr", "refine"),
    "augment.segments": ("", "classes", "panoptic", "instance"),
    "augment.keep_empty": ("official", "yes", "no"),
    "augment.shape_choice": ("fixed", "published_bug"),
    "eval.mode": ("slide", "whole"),
    "eval.metric": ("mIoU", "PQ", "AP", "mBA"),
}

LEAST = {
    "steps": 0,
    "accumulate": 1,
    "data.batch": 1,
    "data.workers": 0,
    "augment.max_segments": 1,
    "augment.layers": 1,
    "augment.longest": 1,
    "schedule.warmup_steps": 0,
    "eval.every": 1,
    "eval.batch": 1,
    "eval.topk": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "log.every": 1,
}


PAIRS = (
    "augment.scale",
    "augment.ratio",
    "augment.crop",
    "augment.jitter",
    "augment.iou_target",
    "eval.scale",
    "eval.crop",
    "eval.stride",
)


def defaults() -> ConfigDict:
    """Every field there is, with the value it has where a file says nothing."""
    config = ConfigDict()

    config.seed = 0  # of parameters, order of the data, augmentation, and stochastic depth
    config.steps = 160_000  # training steps
    config.accumulate = 1  # slices of the batch that pass the network in turn; same result, less
    #                        memory

    # What is trained. "system" names a module of segjax.systems; the other fields are the keyword
    # arguments of its build().
    config.model = dict(system="regproxy", backbone="vit_ti16", classes=12)

    # A class tree over a network with dense scores (HSSN), see segjax/systems/hssn.py.
    config.hierarchy = ConfigDict()
    config.hierarchy.tree = ""  # "dataset": the one in its label space; a shipped one's name; a
    #                             file; "": no tree, and what follows means nothing
    config.hierarchy.tree_loss = "ftm"  # ftm, tm, focal, bce, cce or none
    config.hierarchy.gamma = 2.0  # exponent of ftm and focal
    config.hierarchy.tree_weight = 1.0  # factor of that loss
    config.hierarchy.ce_weight = 0.0  # factor of the softmax cross entropy of each level
    config.hierarchy.rmi_weight = 0.0  # factor of the region mutual information
    config.hierarchy.triplet_weight = 0.5  # largest factor of the tree-triplet loss
    config.hierarchy.triplet_ramp = 80_000  # training steps until it is reached
    config.hierarchy.margin = 0.6  # of the triplets; 0: the paper's, by tree distance
    config.hierarchy.triplet_cap = 200  # most triplets of a class
    config.hierarchy.triplet_sampling = "first"  # first (in raster order) or random
    config.hierarchy.skip_background = False  # whether class 0 takes part in no triplet
    config.hierarchy.auxiliary_weight = 0.4  # factor of the auxiliary heads' cross entropy
    config.hierarchy.void = "ignore"  # or as_published: unlabelled pixels train as class 0
    config.hierarchy.scores = "softmax"  # what is summed along a path: softmax, sigmoid or logits

    config.init = ConfigDict()
    config.init.layout = ""  # whose file it is, e.g. "timm", "deit", "hf_vit"; "segjax" for a
    #                          workdir of ours; "" trains from scratch
    config.init.checkpoint = ""  # the pretrained file or folder
    config.init.part = "backbone"  # what is taken of it: backbone, or model: all but heads that
    #                                were made for another number of classes

    config.data = ConfigDict()
    # "name" names a module of segjax.data.datasets; the other fields are the keyword arguments of
    # its load().
    config.data.dataset = dict(name="shapescapes")
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.batch = 16  # images per step, over all devices
    config.data.workers = 2  # processes that decode and augment, per host; 0: threads only
    config.data.data_dir = ""  # prepared data; "": $TFDS_DATA_DIR or ~/tensorflow_datasets

    config.augment = ConfigDict()
    # What happens to an image, see segjax/data/set_transforms.py: scale_crop (mmsegmentation's),
    # large_scale_jitter (Mask2Former on COCO), shortest_edge (MaskFormer and Mask2Former on ADE20K,
    # Cityscapes and Mapillary Vistas), detr (MaskFormer on COCO) or refine (CascadePSP and CRM: a
    # crop, and a coarse mask made of its exact one).
    config.augment.recipe = "scale_crop"
    config.augment.scale = (2048, 512)  # of scale_crop: (long side, short side) to be fitted into
    config.augment.ratio = (0.5, 2.0)  # of scale_crop: `scale` is multiplied by a number from here
    config.augment.jitter = (0.1, 2.0)  # of large_scale_jitter: `crop` times a number from here is
    #                                     what an image is fitted into
    config.augment.shorts = ()  # of shortest_edge and detr: short sides, one of which is drawn
    config.augment.longest = 2048  # of shortest_edge and detr: limit of the long side
    config.augment.crop = (512, 512)  # (height, width) of what the network sees
    config.augment.cat_max_ratio = 0.75  # of scale_crop: redrawn while one class covers more
    config.augment.flip = 0.5  # probability of mirroring
    config.augment.flip_pairs = ()  # of scale_crop: pairs of classes (left arm, right arm) that a
    #                                 mirrored image exchanges
    config.augment.photometric = True  # brightness, contrast, saturation and hue
    # Segments, for systems that answer with masks: classes (one per class of the crop), panoptic
    # (one per segment of the dataset), instance (one per thing), or "" for none.
    config.augment.segments = ""
    config.augment.max_segments = 100  # rows of the segment table; of more, the largest are kept
    config.augment.layers = 1  # of instance: maps that overlapping instances are spread over
    config.augment.keep_empty = "official"  # yes, no, or as published: whether a segment stays when
    #                                         nothing of it is left in the crop
    # Of refine, see segjax/data/perturb.py:
    config.augment.iou_target = (0.8, 1.0)  # a mask is distorted until its IoU falls below a number
    #                                         from here
    config.augment.shape_choice = "fixed"  # of its kernels; published_bug: as CascadePSP's weights
    #                                        were trained

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw, adam or sgd
    config.optimizer.learning_rate = 6e-5  # at the peak of the schedule
    config.optimizer.beta1 = 0.9  # of adamw and adam
    config.optimizer.beta2 = 0.999  # of adamw and adam
    config.optimizer.epsilon = 1e-8  # of adamw and adam
    config.optimizer.momentum = 0.9  # of sgd
    config.optimizer.nesterov = False  # of sgd
    config.optimizer.weight_decay = 0.01  # adamw: beside the gradient, times the rate; others:
    #                                       in the gradient
    config.optimizer.no_decay = ()  # regexes, searched in parameter paths as segjax info prints
    #                                 them
    config.optimizer.clip_norm = 0.0  # longest gradient, over all parameters; 0: any
    config.optimizer.layer_decay = 1.0  # learning rate factor per block below the head
    config.optimizer.rates = ()  # (regex on parameter paths, factor): the first match multiplies
    #                              the learning rate
    config.optimizer.ema = 0.0  # decay of the parameter average that is evaluated; 0: none

    config.schedule = ConfigDict()
    config.schedule.name = "poly"  # poly, cosine_restart, constant or multistep
    config.schedule.power = 1.0  # of poly
    config.schedule.min_rate = 0.0  # floor of poly and of each cosine
    config.schedule.warmup_steps = 1500  # linear warm-up, multiplied onto the schedule
    config.schedule.warmup_ratio = 1e-6  # of the scheduled rate, at step 0
    config.schedule.periods = ()  # of cosine_restart: steps of each period, together `steps`
    config.schedule.weights = ()  # of cosine_restart: peak of each period / learning_rate
    config.schedule.milestones = ()  # of multistep: steps from which the rate is times `gamma`
    config.schedule.gamma = 0.1  # of multistep

    config.mesh = ConfigDict()
    # Named axes over all devices, -1 for what is left. "data" and "fsdp" split the batch.
    config.mesh.axes = (("data", -1),)
    # (regex on parameter paths, tactic), the first match counts: replicate, fsdp, tensor:<dim>.
    # See segjax/training/sharding.py.
    config.mesh.rules = ((".*", "replicate"),)

    config.eval = ConfigDict()
    config.eval.every = 4000  # steps
    config.eval.mode = "slide"  # slide: windows of `crop`; whole: the image in one piece
    config.eval.scale = (2048, 512)  # (long side, short side) that an image is fitted into
    config.eval.crop = (512, 512)
    config.eval.stride = (512, 512)
    config.eval.ratios = (1.0,)  # `scale` times each of these; scores are averaged
    config.eval.flip = False  # averages with the mirrored image
    config.eval.batch = 8  # images or windows per forward pass
    config.eval.pad_windows = True  # windows at the border of a small image are filled up
    config.eval.enlarge = False  # an image smaller than its (square) window is enlarged first
    # Of systems that answer with masks:
    config.eval.tasks = ("semantic",)  # what is made and measured: semantic, panoptic, instance
    config.eval.metric = "mIoU"  # what says which checkpoint is best: mIoU, PQ or AP;
    #                             mBA of systems that sharpen masks
    config.eval.object_threshold = 0.8  # a query below this class score makes no segment
    config.eval.overlap_threshold = 0.8  # nor does one that keeps less of its mask than this
    config.eval.topk = 100  # instances per image
    config.eval.resize_masks_first = True  # masks reach the image's size before classes are
    #                                        summed; False: sums are resized (semantic models)
    # Of systems that sharpen masks:
    config.eval.max_memory = ""  # what a device may hold, e.g. "6GiB"; "": any amount

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 4000  # steps
    config.checkpoint.keep = 2  # the latest ones; the best is kept besides

    config.log = ConfigDict()
    config.log.every = 50  # steps
    config.log.tensorboard = True
    return config


def load(source: str | os.PathLike[str] | ConfigDict, overrides: Sequence[str] = ()) -> ConfigDict:
    """The complete config of a file, checked.

    Args:
        source: a Python file with `get_config()`, a JSON file that `save` wrote, or a ConfigDict.
            Each may be partial.
        overrides: e.g. ["--config.steps=100"].

    Returns:
        `defaults()` with these values on top; sequences are tuples.

    Raises:
        SegjaxError: a file that can't be read, an unknown field (the nearest known one is named),
            or a value of the wrong kind.
    """
    partial = source if isinstance(source, Mapping | ConfigDict) else _from_file(Path(source))
    if isinstance(partial, ConfigDict):
        partial = partial.copy_and_resolve_references().to_dict()
    config = ConfigDict(_merged(defaults().to_dict(), partial, ""))
    if overrides:
        config = _overridden(config, list(overrides))
    _check(config)
    return config


def save(config: ConfigDict, path: str | os.PathLike[str]) -> None:
    """Writes a config as JSON, whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def read(path: str | os.PathLike[str]) -> ConfigDict:
    """Reads what `save` wrote; fields that are newer than the file get their defaults."""
    return load(path)


def diff(a: ConfigDict, b: ConfigDict) -> list[str]:
    """One line per field that differs: `config.seed: 0 -> 1`."""
    old, new = dict(_leaves(a.to_dict())), dict(_leaves(b.to_dict()))
    absent = object()
    lines = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name, absent), new.get(name, absent)
        if before != after:
            show = ["(absent)" if value is absent else repr(value) for value in (before, after)]
            lines.append(f"config.{name}: {show[0]} -> {show[1]}")
    return lines


# --------------------------------------------------------------------------------------------------
# Files


def _from_file(path: Path) -> Mapping[str, Any] | ConfigDict:
    if not path.is_file():
        raise SegjaxError(f"{path}: there is no such config file.")
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SegjaxError(f"{path}: this config is not readable as JSON ({error}).") from None
    else:
        content = _run(path)
    if not isinstance(content, Mapping | ConfigDict):
        raise SegjaxError(f"{path}: it gives a {type(content).__name__}, not a ConfigDict.")
    return content


def _run(path: Path) -> Any:
    """What get_config() of the file returns. `from configs import ...` finds the files beside."""
    path = path.resolve()
    roots = [str(folder.parent) for folder in path.parents if folder.name == "configs"][:1]
    # Another checkout's configs may have been imported before.
    hidden = {name: module for name, module in sys.modules.items() if _is_configs(name)}
    for name in hidden:
        del sys.modules[name]
    sys.path[:0] = roots
    try:
        spec = importlib.util.spec_from_file_location(f"_segjax_config_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise SegjaxError(f"{path}: a config is a Python file, its name ends in .py.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise SegjaxError(
                f"{path}: it has no get_config(); define one that gives a ConfigDict."
            )
        return module.get_config()
    except SegjaxError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}{_line_of(error, path)}"
        raise SegjaxError(f"{path}: this config fails with {what}.") from error
    finally:
        for root in roots:
            sys.path.remove(root)
        for name in [name for name in sys.modules if _is_configs(name)]:
            del sys.modules[name]
        sys.modules.update(hidden)


def _is_configs(name: str) -> bool:
    return name == "configs" or name.startswith("configs.")


def _line_of(error: BaseException, path: Path) -> str:
    """ " (line 7)": where in the file an error came from."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""


# --------------------------------------------------------------------------------------------------
# Fields


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """`base` with the values of `over`, which may only name what `base` has."""
    result = dict(base)
    for name, value in over.items():
        path = f"{prefix}{name}"
        if name not in base:
            raise _unknown(path, _names(defaults()))
        if path in OPEN:
            if not isinstance(value, Mapping):
                raise _wrong(path, value, "a dict of fields")
            result[name] = _plain(value)
        elif isinstance(base[name], Mapping):
            if not isinstance(value, Mapping):
                raise _wrong(path, value, "a dict of fields")
            result[name] = _merged(base[name], value, f"{path}.")
        else:
            result[name] = _of_kind(path, value, type(base[name]))
    return result


def _of_kind(path: str, value: Any, kind: type) -> Any:
    value = _plain(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _wrong(path, value, _KINDS.get(kind, kind.__name__))
    return value


_KINDS = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a text",
    tuple: 'a tuple such as "(512, 512)"',
}


def _plain(value: Any) -> Any:
    """Mappings become dicts, sequences tuples, to the bottom; NumPy scalars Python's."""
    if isinstance(value, Mapping | ConfigDict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value


def _overridden(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """The command line's changes. ml_collections parses the values by the kind of the field."""
    config = config.copy_and_resolve_references()
    given = list(_given(overrides))
    for path, value in given:  # which fields there are can depend on these two
        if path == "model.system" and value != config.model.get("system"):
            config.model.system = value
        if path == "data.dataset.name" and value != config.data.dataset.get("name"):
            config.data.dataset = ConfigDict({"name": value})
        parent, _, name = path.rpartition(".")
        if parent == "model" and isinstance(config.model.get(name), ConfigDict):
            with config.ignore_type():  # a name in place of the dict, or another dict
                config.model[name] = config_dict.placeholder(object)
    unset = _with_open_fields(config)
    known = _names(config)
    for path, _ in given:
        if path not in known:
            raise _unknown(path, known)
        unset.discard(path)
    # Placeholders and tuples of any content are left to the parser.
    values = flags.FlagValues()
    argv = ["segjax", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        for path, value in given:  # the last one that doesn't parse is as good as the first
            if f"config.{path}" in str(error):
                kind = _KINDS.get(known[path], "a value of another kind")
                raise _wrong(path, value, kind) from None
        raise SegjaxError(f"the overrides are not understood: {error}") from None
    if rest:
        raise SegjaxError(f"'{rest[0]}' is not understood; fields are set as --config.field=value.")
    config = values.config.copy_and_resolve_references().to_dict()
    for path in unset:
        *above, name = path.split(".")
        parent = config
        for step in above:
            parent = parent[step]
        parent.pop(name, None)
    return ConfigDict(_merged(defaults().to_dict(), config, ""))


def _given(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(field, text) of each override."""
    for i, text in enumerate(overrides):
        name, equals, value = text.lstrip("-").partition("=")
        if not text.startswith("-"):
            if i and overrides[i - 1].startswith("--config.") and "=" not in overrides[i - 1]:
                continue  # the value of the one before
            raise SegjaxError(
                f"'{text}' is not understood; fields are set as --config.field=value."
            )
        for prefix in ("config.", "noconfig."):
            if name.startswith(prefix):
                following = overrides[i + 1] if i + 1 < len(overrides) else ""
                yield name.removeprefix(prefix), value if equals else following
                break
        else:
            raise SegjaxError(f"'{text}' is not an option; fields are set as --config.field=value.")


def _with_open_fields(config: ConfigDict) -> set[str]:
    """Gives the open dicts the fields they could have too; returns those fields' paths."""
    added = set()
    for path, parameters in _open_parameters(config).items():
        parent = config.model if path == "model" else config.data.dataset
        for name, parameter in parameters.items():
            if name in parent:
                continue
            added.add(f"{path}.{name}")
            if parameter.default is not inspect.Parameter.empty and parameter.default is not None:
                parent[name] = _plain(parameter.default)
            else:
                parent[name] = config_dict.placeholder(_kind_of(parameter.annotation))
    return added


def _open_parameters(config: ConfigDict) -> dict[str, dict[str, inspect.Parameter]]:
    """The fields of each open dict, from the function that will take them."""
    found = {}
    for path, package, name, function in (
        ("model", "segjax.systems", config.model.get("system"), "build"),
        ("data.dataset", "segjax.data.datasets", config.data.dataset.get("name"), "load"),
    ):
        module = _submodule(package, str(name))
        if module is not None and hasattr(module, function):
            parameters = inspect.signature(getattr(module, function)).parameters
            reserved = ("split", "data_dir") if path == "data.dataset" else ()
            found[path] = {key: p for key, p in parameters.items() if key not in reserved}
    return found


def _submodule(package: str, name: str) -> ModuleType | None:
    try:
        known = name.isidentifier() and importlib.util.find_spec(f"{package}.{name}") is not None
    except ModuleNotFoundError:
        return None
    return importlib.import_module(f"{package}.{name}") if known else None


def _kind_of(annotation: Any) -> type:
    """The type to parse text as, of an annotation such as "int | None" or "str | PathLike"."""
    names = str(getattr(annotation, "__name__", annotation)).replace("[", "|").split("|")
    kinds = {"int": int, "float": float, "bool": bool, "str": str, "tuple": tuple, "Size": tuple}
    for name in names:
        if name.strip() in kinds:
            return kinds[name.strip()]
    return object


def _check(config: ConfigDict) -> None:
    """Values that no reader of the config should have to check again."""
    leaves = dict(_leaves(config.to_dict()))
    for path, choices in CHOICES.items():
        if leaves[path] not in choices:
            raise SegjaxError(
                f"config.{path}: there is no '{leaves[path]}'; take one of {', '.join(choices)}."
            )
    for path, least in LEAST.items():
        if leaves[path] < least:
            raise SegjaxError(f"config.{path} is {leaves[path]}; it must be {least} or more.")
    for path in PAIRS:
        if len(leaves[path]) != 2 or not all(isinstance(v, int | float) for v in leaves[path]):
            raise SegjaxError(f"config.{path}: {leaves[path]!r} is not a pair of numbers.")
    _check_recipe(config.augment)
    if config.data.batch % config.accumulate:
        raise SegjaxError(
            f"config.accumulate: {config.accumulate} slices do not divide config.data.batch,"
            f" {config.data.batch}."
        )
    parameters = _open_parameters(config)
    for path, key in (("model", "system"), ("data.dataset", "name")):
        fields = config.model if path == "model" else config.data.dataset
        if path not in parameters:
            continue  # whoever builds it says that there is no such system or dataset
        for name in fields:
            if name != key and name not in parameters[path]:
                raise _unknown(
                    f"{path}.{name}", {f"{path}.{known}": 0 for known in parameters[path]}
                )


def _check_recipe(augment: ConfigDict) -> None:
    """What a recipe needs of other fields."""
    for pair in augment.flip_pairs:
        if not isinstance(pair, tuple) or [type(label) for label in pair] != [int, int]:
            raise SegjaxError(
                f"config.augment.flip_pairs: {pair!r} is not a pair of class numbers; write"
                ' "((14, 15), (16, 17))".'
            )
    if augment.flip_pairs and augment.recipe != "scale_crop":
        raise SegjaxError(
            f"config.augment.flip_pairs: the recipe {augment.recipe} exchanges no classes; take"
            " scale_crop."
        )
    if augment.recipe in ("shortest_edge", "detr"):
        sides = augment.shorts
        if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
            raise SegjaxError(
                f"config.augment.shorts is {sides!r}; the recipe {augment.recipe} draws the short"
                " side from it, so list one or more lengths in pixels."
            )
    if augment.recipe == "detr" and augment.longest > min(augment.crop):
        raise SegjaxError(
            f"config.augment.crop is {augment.crop}; the recipe detr does not crop to it, so both"
            f" sides must be config.augment.longest, {augment.longest}, or more."
        )
    low, high = augment.iou_target
    if augment.recipe == "refine" and not 0 <= low <= high <= 1:
        raise SegjaxError(
            f"config.augment.iou_target is {augment.iou_target}; give two numbers of 0..1, the"
            " smaller one first."
        )
    if augment.recipe == "refine" and augment.segments:
        raise SegjaxError(
            f"config.augment.segments is '{augment.segments}', but the recipe refine gives masks;"
            " leave it empty."
        )
    if augment.recipe == "large_scale_jitter" and not 0 < augment.jitter[0] <= augment.jitter[1]:
        raise SegjaxError(
            f"config.augment.jitter is {augment.jitter}; give the lower and the upper factor."
        )


def _unknown(path: str, known: Mapping[str, Any]) -> SegjaxError:
    """The error for a field that isn't there; names the nearest that is."""
    parent, _, last = path.rpartition(".")
    beside = [name for name in known if name.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(path, beside, n=1, cutoff=0.75)
    if not near:  # perhaps right, but elsewhere in the tree
        near = [name for name in known if name.rpartition(".")[2] == last][:1]
    if not near:
        lasts = {name.rpartition(".")[2]: name for name in known}
        near = [lasts[name] for name in difflib.get_close_matches(last, lasts, n=1, cutoff=0.7)]
    near = near or difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    hint = f"; did you mean config.{near[0]}?" if near else "."
    return SegjaxError(f"config.{path} is not a field{hint}")


def _wrong(path: str, value: Any, kind: str) -> SegjaxError:
    return SegjaxError(f"config.{path}: {value!r} is not {kind}.")


def _names(config: ConfigDict) -> dict[str, type]:
    """Path -> type of every field, inner dicts too."""
    names = {}

    def visit(node: ConfigDict, prefix: str) -> None:
        for name in node:
            path = f"{prefix}{name}"
            names[path] = node.get_type(name)
            if isinstance(node[name], ConfigDict):
                visit(node[name], f"{path}.")

    visit(config, "")
    return names


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
