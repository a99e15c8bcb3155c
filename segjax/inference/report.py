"""The report of an evaluation: one HTML page that holds all it shows and asks no network.

Tables, charts and pictures are made here; report.css and report.js, beside this file, go into the
page as they are. Names of classes, images and fields are the user's: they are escaped everywhere.
"""

from __future__ import annotations

import base64
import datetime
import functools
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

import segjax
from segjax import config as configs
from segjax.data.labels import Colour, LabelSpace
from segjax.inference import draw
from segjax.inference.evaluation import Details, Judged, Metrics, Picture
from segjax.metrics import confusion
from segjax.structs import IGNORE

SIDE = 640
"""Most pixels of a picture's longer side."""

PICTURE_BYTES = 120_000
"""Most bytes of a picture. The 48 of a full page are then below 8 MB, also in base64."""

PAIRS = 40
"""The most confused pairs that are listed, by pixels and by share."""

POINTS = 300
"""A curve with more points than this is drawn as means and ranges of so many stretches."""

CHIPS = 12
"""Classes that are listed below a picture."""

ERROR = (226, 58, 24)
"""The colour of wrong pixels."""

NOTHING = "–"

Record = Mapping[str, Any]
Fact = tuple[str, str]


def write(
    path: str | os.PathLike[str],
    metrics: Metrics,
    space: LabelSpace,
    config: ConfigDict,
    records: Sequence[Record] = (),
    facts: Sequence[Fact] = (),
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the HTML file.
        metrics: of `evaluation.evaluate(..., details=True)`, with "step".
        space: the classes.
        config: the complete config that was evaluated.
        records: of the training, as `training.logs.records` gives them; perhaps none.
        facts: (name, text) of more lines for the header.

    Raises:
        SegjaxError: the place cannot be written.
    """
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    kinds = [device.device_kind for device in jax.devices()]
    about = [
        *facts,
        ("date", now),
        ("device", f"{len(kinds)} × {kinds[0]}"),
        ("software", f"segjax {segjax.__version__}, jax {jax.__version__}"),
    ]
    draw.write(page(metrics, space, config, records, about).encode(), path)


def page(
    metrics: Metrics,
    space: LabelSpace,
    config: ConfigDict,
    records: Sequence[Record] = (),
    facts: Sequence[Fact] = (),
) -> str:
    """The page as text; the arguments are those of `write`."""
    details: Details = metrics["details"]
    title = f"{config.model.system} on {space.name}"
    tiles = [(name, _number(metrics[name])) for name in ("mIoU", "mAcc", "aAcc")]
    tiles += [("images", f"{metrics['images']:,}"), ("step", f"{metrics['step']:,}")]
    about = [
        ("dataset", f"{config.data.dataset.name}, split {config.data.eval_split}"),
        ("inference", _inference(config.eval)),
        *facts,
    ]
    sections = {
        "Classes": _classes(metrics, details, space),
        "Confusion": _confusion(details, space),
        "Images": _images(details, space, metrics["images"]),
        "Curves": _curves(records, metrics["step"]),
        "Config": _config(config),
    }
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(
        f'<section id="{name.lower()}"><h2>{name}</h2>{content}</section>'
        for name, content in sections.items()
    )
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{_text(title)}: mIoU {_number(metrics["mIoU"])}</title>
<style>
{_beside("report.css")}</style>
</head>
<body>
<header>
<h1>{_text(title)}</h1>
<nav>{links}</nav>
<div class="tiles">{"".join(f'<div class="tile"><b>{v}</b>{n}</div>' for n, v in tiles)}</div>
<dl class="facts">{"".join(map(_fact, about))}</dl>
</header>
<main>
{body}
</main>
<div id="tip" role="tooltip" hidden></div>
<script>
{_beside("report.js")}</script>
</body>
</html>
"""


@functools.cache
def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _fact(fact: Fact) -> str:
    return f"<div><dt>{_text(fact[0])}</dt><dd>{_text(fact[1])}</dd></div>"


def _inference(settings: ConfigDict) -> str:
    long, short = settings.scale
    text = f"fitted into {long} × {short}"
    if settings.mode == "slide":
        sizes = [" × ".join(map(str, settings[name])) for name in ("crop", "stride")]
        text += f", windows of {sizes[0]} every {sizes[1]}"
    else:
        text += ", whole"
    if tuple(settings.ratios) != (1.0,):
        text += f", scales {', '.join(f'{ratio:g}' for ratio in settings.ratios)}"
    return text + ", flipped too" * settings.flip


# --------------------------------------------------------------------------------------------------
# Text


def _text(value: Any) -> str:
    return html.escape(str(value))


def _number(value: float | None) -> str:
    """A percentage with two decimals."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.2f}"


def _swatch(colour: Colour) -> str:
    return f'<span class="swatch" style="background:{_hex(colour)}"></span>'


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _json(value: Any) -> str:
    """JSON that may stand in a <script>."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


# --------------------------------------------------------------------------------------------------
# Tables


def _head(columns: Sequence[tuple[str, str]], by: str = "", first: str = "") -> str:
    """The head of a table that sorts.

    Args:
        columns: (title, explanation) of each; "class", "truth" and "predicted" hold texts.
        by: the column that it is sorted by already, downwards.
        first: the column of numbers whose first click sorts upwards.
    """
    cells = []
    for title, meaning in columns:
        text = title in ("class", "truth", "predicted")
        rises = text or title == first
        cells.append(
            f'<th scope="col" title="{_text(meaning)}" data-kind="{"text" if text else "number"}"'
            + ' data-first="ascending"' * rises
            + ' class="number"' * (not text)
            + ' aria-sort="descending"' * (title == by)
            + f'><button type="button">{_text(title)}</button></th>'
        )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _name_cell(label: int, space: LabelSpace) -> str:
    name = _text(space.names[label])
    swatch = _swatch(space.palette[label])
    return f'<td class="name" data-v="{name}" title="{name}">{swatch}{name}</td>'


def _number_cell(value: float | None, text: str, bar: float | None = None) -> str:
    """A number; None comes last in any order. `bar` is the length of a bar behind it, 0..1."""
    known = value is not None and math.isfinite(value)
    sort = f"{value:.17g}" if known else ""
    if not known or bar is None:
        return f'<td class="number" data-v="{sort}">{text if known else NOTHING}</td>'
    return f'<td class="number bar" data-v="{sort}" style="--v:{bar:.4f}">{text}</td>'


def _classes(metrics: Metrics, details: Details, space: LabelSpace) -> str:
    columns = [
        ("#", "number of the class"),
        ("class", "name and colour"),
        ("IoU", "pixels that are the class and predicted so / pixels that are either, in percent"),
        ("Acc", "share of the class's pixels that are predicted rightly (recall), in percent"),
        (
            "precision",
            "share of the pixels predicted as the class that are labelled so, in percent",
        ),
        ("labelled pixels", "pixels of the class in the labels"),
        ("share", "of all labelled pixels, in percent"),
    ]
    predicted = details.pairs.sum(axis=0)
    right = np.diagonal(details.pairs)
    labelled = [row["labelled"] for row in metrics["classes"]]
    total, most = max(sum(labelled), 1), max(*labelled, 1)
    rows, precisions = [], []
    for label, row in enumerate(metrics["classes"]):
        precision = 100 * right[label] / predicted[label] if predicted[label] else None
        precisions += [] if precision is None else [precision]
        percents = [row["IoU"], row["Acc"], precision]
        share = 100 * labelled[label] / total
        rows.append(
            f'<tr><td class="number" data-v="{label}">{label}</td>'
            + _name_cell(label, space)
            + "".join(_number_cell(v, _number(v), (v or 0) / 100) for v in percents)
            + _number_cell(labelled[label], f"{labelled[label]:,}")
            + _number_cell(share, f"{share:.2f}", labelled[label] / most)
            + "</tr>"
        )
    means = [metrics["mIoU"], metrics["mAcc"], np.mean(precisions) if precisions else None]
    foot = "".join(f'<td class="number">{_number(mean)}</td>' for mean in means)
    return (
        "<p>A click on a column's head sorts by it. IoU, Acc and precision in percent;"
        f" “{NOTHING}” where there is nothing to divide by, which the means leave out.</p>"
        '<div class="scroll"><table class="sorts" id="class-table">'
        + _head(columns, first="#")
        + f"<tbody>{''.join(rows)}</tbody>"
        + f'<tfoot><tr><td></td><td>mean</td>{foot}<td class="number">{sum(labelled):,}</td>'
        + '<td class="number"></td></tr></tfoot></table></div>'
    )


def _confusion(details: Details, space: LabelSpace) -> str:
    pairs = details.pairs
    sparse = [
        [int(x) for j in np.flatnonzero(row) for x in (j, row[j])] for row in pairs
    ]  # truth by truth: predicted class, pixels, predicted class, pixels, ...
    data = {
        "names": list(space.names),
        "colours": [_hex(colour) for colour in space.palette],
        "rows": sparse,
    }
    labelled = pairs.sum(axis=1)
    shares = np.divide(pairs, labelled[:, None], where=labelled[:, None] > 0, out=0.0 * pairs)
    rows = "".join(
        "<tr>"
        + _name_cell(i, space)
        + _name_cell(j, space)
        + _number_cell(100 * shares[i, j], f"{100 * shares[i, j]:.1f}", shares[i, j])
        + _number_cell(pairs[i, j], f"{pairs[i, j]:,}")
        + "</tr>"
        for i, j in _most_confused(pairs, shares)
    )
    columns = [
        ("truth", "class of the pixels"),
        ("predicted", "class that they are taken for"),
        ("% of truth", "share of the true class's labelled pixels"),
        ("pixels", "how many"),
    ]
    listed = (
        '<div class="scroll"><table class="sorts" id="pair-table">'
        + _head(columns, by="pixels")
        + f"<tbody>{rows}</tbody></table></div>"
        if rows
        else "<p>No pixel is confused.</p>"
    )
    return f"""<p>Each row is a true class; a cell tells which share of its labelled pixels is
predicted as the class of the column. Point at a cell for the figures.</p>
<div class="confusion"><div><div class="map">
<canvas id="matrix" role="img" aria-label="confusion matrix of {space.classes} classes"></canvas>
</div>
<div class="key"><span>rows: truth, columns: prediction</span>
<span><span class="ramp right"></span>right, 0 to 100 %</span>
<span><span class="ramp wrong"></span>wrong, 0 to 100 %</span>
<span>colours grow with the square root</span>
</div></div>
<div><h3>Most confused pairs</h3>{listed}</div></div>
<script type="application/json" id="pairs">{_json(data)}</script>"""


def _most_confused(pairs: np.ndarray, shares: np.ndarray) -> list[tuple[int, int]]:
    """The first pairs by pixels and the first by share, sorted by pixels.

    So the list begins rightly in either order.
    """
    wrong = np.where(np.eye(len(pairs), dtype=bool), 0, pairs).reshape(-1)
    by_share = np.where(wrong > 0, shares.reshape(-1), 0)
    first = {int(k) for by in (wrong, by_share) for k in np.argsort(-by, kind="stable")[:PAIRS]}
    ordered = sorted((k for k in first if wrong[k]), key=lambda k: (-wrong[k], k))
    return [divmod(k, len(pairs)) for k in ordered]


# --------------------------------------------------------------------------------------------------
# Images


def _images(details: Details, space: LabelSpace, images: int) -> str:
    if not details.seen:
        return "<p>No image has labels.</p>"
    known = details.iou[~np.isnan(details.iou)]
    half = f", {100 * np.median(known):.2f} in the median" if len(known) else ""
    whose = (
        "Worst and best are chosen by it."
        if details.seen == len(known)
        else f"Worst and best are chosen by it among the {details.seen:,} images that process 0 of"
        f" {jax.process_count()} read."
    )
    none = len(details.iou) - len(known)
    left_out = f" {none:,} of {images:,} images have no labels and are left out." * (none > 0)
    parts = [
        "<p>IoU of an image: the mean over the classes that occur in its truth"
        f"{half}. {whose}{left_out} Click on a row to enlarge it.</p>",
        _histogram(100 * known),
    ]
    for title, judged in (("Worst", details.worst), ("Best", details.best)):
        if judged:
            figures = "".join(_figure(one, space) for one in judged)
            parts.append(f'<h3>{title}</h3><div id="{title.lower()}">{figures}</div>')
    return "".join(parts)


def _figure(judged: Judged, space: LabelSpace) -> str:
    name = _text(judged.picture.name)
    shown = "".join(
        f'<div><span>{title}</span><img src="{_data_uri(picture)}" width="{picture.shape[1]}"'
        f' height="{picture.shape[0]}" alt="{title}, {name}"></div>'
        for title, picture in panels(judged.picture, space).items()
    )
    scores = (
        f"IoU {_number(100 * judged.iou)}, {_number(100 * judged.accuracy)} % of the pixels right"
    )
    return (
        f"<figure><figcaption><b>{name}</b><span>{scores}</span></figcaption>"
        f'<div class="panels" tabindex="0">{shown}</div>'
        f'<div class="chips">{_chips(judged.picture, space)}</div></figure>'
    )


def panels(picture: Picture, space: LabelSpace) -> dict[str, np.ndarray]:
    """Title -> uint8 [h, w, 3], small ones enlarged, none longer than `SIDE`.

    Among the errors, right pixels are grey, wrong ones `ERROR`, unlabelled ones dark and striped.
    """
    image, truth, labels = picture.image, picture.truth, picture.labels
    longer = max(labels.shape)
    if longer > SIDE:
        height, width = (max(round(side * SIDE / longer), 1) for side in labels.shape)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        truth, labels = (
            cv2.resize(x.astype(np.int16), (width, height), interpolation=cv2.INTER_NEAREST)
            for x in (truth, labels)
        )
    factor = max(round(draw.PANEL / max(labels.shape)), 1)
    image, truth, labels = (draw.enlarged(x, factor) for x in (image, truth, labels))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    # One "class", right, or unlabelled: the overlay stripes the latter.
    errors = draw.overlay(grey // 2 + 96, np.where(truth == IGNORE, -1, 0), [(128, 128, 128)], 0.3)
    wrong = (truth != IGNORE) & (truth != labels)
    errors[wrong] = cv2.addWeighted(grey, 0.25, np.full_like(grey, ERROR), 0.75, 0)[wrong]

    def coloured(labels: np.ndarray) -> np.ndarray:
        return draw.outline(draw.overlay(image, labels, space.palette, 0.7), labels)

    return {
        "image": image,
        "truth": coloured(truth),
        "prediction": coloured(labels),
        "errors": errors,
    }


def _chips(picture: Picture, space: LabelSpace) -> str:
    """The classes of an image with their IoU in it, the largest first."""
    truth, labels = picture.truth.reshape(-1), picture.labels.reshape(-1)
    known = truth != IGNORE
    maps = (truth[known & (truth == labels)], labels[known], truth[known])
    areas = np.stack([np.bincount(x, minlength=space.classes) for x in maps])
    size, ious = confusion.union(areas), confusion.iou(areas)
    order = [label for label in np.argsort(-size, kind="stable") if size[label]]
    chips = [
        f"<span>{_swatch(space.palette[label])}{_text(space.names[label])}"
        f" {100 * ious[label]:.0f}{'' if areas[2][label] else ' (not in the truth)'}</span>"
        for label in order[:CHIPS]
    ]
    more = len(order) - len(chips)
    return "".join(chips) + f'<span class="faint">and {more} more</span>' * (more > 0)


def _data_uri(picture: np.ndarray) -> str:
    """uint8 [h, w, 3] as a JPEG of at most `PICTURE_BYTES`: coarser, and if need be smaller."""
    image = Image.fromarray(picture)
    while True:
        for quality in (88, 75, 60):
            data = io.BytesIO()
            image.save(data, "JPEG", quality=quality, subsampling=0)
            if data.tell() <= PICTURE_BYTES or max(image.size) < 64:
                text = base64.b64encode(data.getvalue()).decode("ascii")
                return f"data:image/jpeg;base64,{text}"
        image = image.resize([max(side * 3 // 4, 1) for side in image.size], Image.Resampling.BOX)


# --------------------------------------------------------------------------------------------------
# Curves

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 448, 10, 210
"""Of a chart, and of the field in it that the curves are in."""


def _curves(records: Sequence[Record], step: int) -> str:
    """Loss, accuracy and learning rate of the training; the evaluations on the way; the rest."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {"train": {}, "eval": {}}
    for record in sorted(records, key=lambda record: record["step"]):
        for name, value in record.items():
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and plain and math.isfinite(value) and record.get("kind") in series:
                points = series[record["kind"]].setdefault(name, [])
                points.append((record["step"], value))
    train, evals = series["train"], series["eval"]
    if not train and not evals:
        return "<p>There are no training curves: the workdir holds no logs of a training.</p>"
    charts = [
        ("Training loss", {name: train[name] for name in train if "loss" in name}),
        (
            "Evaluation, %",
            {name: evals[name] for name in ("mIoU", "mAcc", "aAcc") if name in evals},
        ),
        ("Training accuracy, %", {name: train[name] for name in train if "accuracy" in name}),
        ("Learning rate", {name: train[name] for name in train if name == "learning_rate"}),
    ]
    shown = {name for _, curves in charts for name in curves}
    more = [(name, {name: points}) for name, points in train.items() if name not in shown]
    drawn = "".join(_chart(title, curves, step) for title, curves in charts if curves)
    rest = "".join(_chart(title, curves, step) for title, curves in more)
    folded = f'<details><summary>More curves</summary><div class="charts">{rest}</div></details>'
    return (
        "<p>Against the training step; the dashed line marks the step that this page evaluates.</p>"
        f'<div class="charts">{drawn}</div>' + folded * bool(more)
    )


def _chart(title: str, curves: Mapping[str, list[tuple[float, float]]], here: float) -> str:
    """Curves over the steps, an SVG with axes.

    Args:
        title: above it.
        curves: name -> (step, value), steps rising.
        here: a step to mark.
    """
    thinned = {name: _thinned(points) for name, points in curves.items()}
    steps = [x for points in curves.values() for x, _ in points]
    values = [y for points in thinned.values() for _, _, low, high in points for y in (low, high)]
    x_ticks, from_x, to_x = _ticks(min(0, *steps), max(*steps, 1), 6, snug=True)
    low, high = min(values), max(values)
    y_ticks, from_y, to_y = _ticks(0 if 0 <= low < 0.6 * high else low, high, 6)

    def x_of(step: float) -> float:
        return round(LEFT + (step - from_x) / (to_x - from_x) * (RIGHT - LEFT), 1)

    def y_of(value: float) -> float:
        return round(BOTTOM - (value - from_y) / (to_y - from_y) * (BOTTOM - TOP), 1)

    parts = []
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{_tick(tick)}</text>')
    for tick in x_ticks:
        x = x_of(tick)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>')
        parts.append(f'<text x="{x}" y="{BOTTOM + 17}" text-anchor="middle">{_tick(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    if from_x <= here <= to_x:
        x = x_of(here)
        parts.append(f'<line class="here" x1="{x}" x2="{x}" y1="{TOP}" y2="{BOTTOM}"/>')
    for number, points in enumerate(thinned.values()):
        colour = f"var(--c{number % 6})"
        line = [f"{x_of(x)},{y_of(y)}" for x, y, *_ in points]
        if any(low < high for _, _, low, high in points):
            under = [f"{x_of(x)},{y_of(low)}" for x, _, low, _ in points]
            over = [f"{x_of(x)},{y_of(high)}" for x, _, _, high in reversed(points)]
            outline = " ".join(under + over)
            parts.append(f'<polygon class="band" points="{outline}" style="fill:{colour}"/>')
        parts.append(f'<polyline class="curve" points="{" ".join(line)}" style="stroke:{colour}"/>')
        if len(points) <= 30:
            dots = (place.split(",") for place in line)
            parts += [f'<circle cx="{x}" cy="{y}" r="2.6" style="fill:{colour}"/>' for x, y in dots]
    parts.append(f'<line class="cursor" y1="{TOP}" y2="{BOTTOM}"/>')
    data = {
        "from": from_x,
        "to": to_x,
        "left": LEFT,
        "right": RIGHT,
        "series": [
            {"name": name, "points": [[x, float(f"{y:.6g}")] for x, y, *_ in points]}
            for name, points in thinned.items()
        ],
    }
    key = "".join(
        f'<span><span class="swatch" style="background:var(--c{i % 6})"></span>{_text(name)}</span>'
        for i, name in enumerate(curves)
    )
    key *= len(curves) > 1
    label = _text(f"{title} against the step: {', '.join(curves)}")
    return (
        f'<div class="chart"><h3>{_text(title)}</h3><div class="key">{key}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"'
        f' data-curves="{_text(_json(data))}">{"".join(parts)}</svg></div>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """(step, value, least, most) of each point, or of each of `POINTS` stretches."""
    if len(points) <= POINTS:
        return [(x, y, y, y) for x, y in points]
    parts = np.array_split(np.array(points, float), POINTS)
    return [
        (*(float(v) for v in part.mean(axis=0)), float(part[:, 1].min()), float(part[:, 1].max()))
        for part in parts
    ]


def _ticks(
    low: float, high: float, most: int, snug: bool = False
) -> tuple[list[float], float, float]:
    """At most about `most` round numbers over a range, and the range of the axis.

    The axis ends at round numbers, or, `snug`, where the range does.
    """
    if high <= low:  # one value: give it room
        low, high = (0.0, 2 * high) if high > 0 else (low - 1, high + 1)
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if snug:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [float(f"{n * step:.12g}") for n in range(first, last + 1)]
    return (ticks, low, high) if snug else (ticks, ticks[0], ticks[-1])


def _tick(value: float) -> str:
    """A round number, short: 160k, 0.002, 6e-5."""
    if abs(value) >= 1e4:
        unit, name = (1e6, "M") if abs(value) >= 1e6 else (1e3, "k")
        return f"{value / unit:g}{name}"
    if value and abs(value) < 1e-4:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def _histogram(values: np.ndarray) -> str:
    """How many images have which IoU. `values` [N] in percent."""
    count, edges = np.histogram(values, bins=20, range=(0, 100))
    ticks, _, most = _ticks(0, int(count.max()), 4)
    slot = (RIGHT - LEFT) / len(count)
    bottom = 110
    parts = []
    for tick in ticks:
        y = round(bottom - tick / most * (bottom - TOP), 1)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}"/>')
        if tick == int(tick):
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{_tick(tick)}</text>')
    for i, images in enumerate(count.tolist()):
        x, height = round(LEFT + i * slot + 1, 1), round(images / most * (bottom - TOP), 1)
        what = f"{images:,} image{'s' * (images != 1)} with IoU {edges[i]:g} to {edges[i + 1]:g}"
        parts.append(
            f'<rect x="{x}" y="{round(bottom - height, 1)}" width="{round(slot - 2, 1)}"'
            f' height="{height}" style="fill:var(--c0)"><title>{what}</title></rect>'
        )
    for percent in range(0, 101, 20):
        x = LEFT + percent / 100 * (RIGHT - LEFT)
        parts.append(f'<text x="{x:g}" y="{bottom + 16}" text-anchor="middle">{percent}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return (
        '<figure class="histogram"><figcaption>Images by their IoU, %</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {bottom + 22}" role="img"'
        f' aria-label="how many images have which IoU">{"".join(parts)}</svg></figure>'
    )


# --------------------------------------------------------------------------------------------------
# Config


def _config(config: ConfigDict) -> str:
    values, usual = _leaves(config.to_dict()), _leaves(configs.defaults().to_dict())
    groups: dict[str, list[str]] = {}
    differ = 0
    for path, value in values.items():
        group, _, name = path.rpartition(".") if path.count(".") < 2 else path.partition(".")
        differs = path not in usual or usual[path] != value
        differ += differs
        note = ""
        if differs:
            before = f"default {usual[path]!r}" if path in usual else "not among the defaults"
            note = f"<small>{_text(before)}</small>"
        groups.setdefault(group, []).append(
            f"<tr{' class=differs' * differs}><td>{_text(name)}</td>"
            f"<td>{_text(repr(value))}{note}</td></tr>"
        )
    tables = "".join(
        f"<table><caption>{_text(group or 'config')}</caption>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        for group, rows in groups.items()
    )
    return (
        "<details open>"
        f"<summary>{differ} of {len(values)} fields differ from the defaults</summary>"
        '<p><label><input type="checkbox"> show these alone</label></p>'
        f'<div class="config">{tables}</div></details>'
    )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Path -> value of every field."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping) and value
        found |= _leaves(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found
