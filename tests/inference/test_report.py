"""The report page: what it says, that it needs nothing else, and how a browser takes it."""

import base64
import html.parser
import io
import json
import os
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
import toy_inference
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from segjax import config as configs
from segjax.data.labels import LabelSpace, distinct_palette
from segjax.errors import SegjaxError
from segjax.inference import evaluation, report
from segjax.inference.windows import Settings
from segjax.structs import IGNORE

NAMES = ("wall", "<img src=x onerror=alert(1)>", '</script> & "friends"', "never", "grünes Gras")
SPACE = LabelSpace("toy & co", NAMES, distinct_palette(5), (False,) * 5)
SETTINGS = Settings("slide", (90, 45), (32, 32), (24, 20), batch=4)
RECORDS = [
    {"step": 10 * n, "kind": "train", "loss": 3 / n, "learning_rate": 1e-3 / n, "accuracy": 9.0 * n}
    for n in range(1, 9)
] + [{"step": 40 * n, "kind": "eval", "mIoU": 20.0 * n, "aAcc": 30.0 * n} for n in (1, 2)]
FACTS = [("work<dir>", "a & b")]


def config():
    partial = ConfigDict()
    partial.model = dict(system="regproxy", backbone="vit_ti16", classes=5)
    partial.eval = dict(scale=(90, 45), crop=(32, 32), stride=(24, 20), flip=True)
    partial.optimizer = dict(no_decay=("<norm>",))
    return configs.load(partial)


@pytest.fixture(scope="module")
def metrics():
    """Of a toy that says class 3 nowhere, which is labelled nowhere."""
    scenes = toy_inference.Scenes([(45, 60), (30, 90), (45, 61), (90, 33), (45, 45)])
    scenes.label_space = SPACE
    for number, example in enumerate(scenes.examples):
        example["semantic"][example["semantic"] == 3] = IGNORE
        example["name"] = f"<scene> {number}"
    variables = toy_inference.variables()

    class NeverThree(toy_inference.Toy):
        def predict(self, variables, batch):
            said = super().predict(variables, batch)
            return said.replace(scores=said.scores.at[..., 3].set(-9.0))

    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    found = evaluation.evaluate(NeverThree(), variables, scenes, SETTINGS, mesh, details=True)
    return {**found, "step": 80}


@pytest.fixture(scope="module")
def page(metrics):
    return report.page(metrics, SPACE, config(), RECORDS, FACTS)


class Tree(html.parser.HTMLParser):
    """Reads a page, and complains of what is not closed in order."""

    EMPTY = ("meta", "img", "input", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), (tag, names)
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append((tag, dict(attributes)))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            tag, attributes = self.open[-1]
            self.texts.setdefault(attributes.get("id", tag), []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def tree(page):
    return Tree(page)


def test_the_page_is_well_formed_and_ids_are_unique(tree):
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in tree.all("a"):
        assert link["href"].removeprefix("#") in ids


def test_nothing_comes_from_anywhere_else(page, tree):
    for tag, attributes in tree.tags:
        for name in ("src", "href", "data", "action", "srcset", "xlink:href"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/jpeg;base64,", "#")), (tag, name)
    assert not tree.all("link")
    for style in tree.texts["style"]:
        assert "url(" not in style and "@import" not in style
    for code in tree.texts["script"]:
        assert not re.search(r"fetch|XMLHttpRequest|import|WebSocket|http", code)
    policy = next(meta["content"] for meta in tree.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_names_stay_names(page, tree, metrics):
    """Neither a class nor an image nor a field can bring in a tag."""
    details = metrics["details"]
    assert len(tree.all("img")) == 4 * len(details.worst + details.best) == 20
    assert not any("onerror" in attributes for _, attributes in tree.tags)
    assert len(tree.all("script")) == 2
    for name in (*NAMES, "toy & co"):
        assert any(name in text for texts in tree.texts.values() for text in texts), name
    assert json.loads("".join(tree.texts["pairs"]))["names"] == list(NAMES)
    assert "<scene> 0" in tree.texts["b"]
    assert "('<norm>',)" in tree.texts["td"] and "work<dir>" in tree.texts["dt"]


def test_the_matrix_is_on_the_page_exactly(tree, metrics):
    data = json.loads("".join(tree.texts["pairs"]))
    found = np.zeros((5, 5), np.int64)
    for truth, row in enumerate(data["rows"]):
        found[truth, row[::2]] = row[1::2]
    np.testing.assert_array_equal(found, metrics["details"].pairs)


def class_rows(page):
    """The text of each cell, row by row, of the table of classes."""
    table = page[page.index('id="class-table"') :]
    body = table[table.index("<tbody>") : table.index("</tbody>")]
    cells = [re.findall(r"<td.*?>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]
    return [[re.sub(r"<.*?>", "", cell) for cell in row] for row in cells]


def test_the_table_has_a_row_per_class_and_no_figure_where_there_is_none(page, metrics):
    rows = class_rows(page)
    assert [row[0] for row in rows] == list("01234")
    assert rows[3][2:5] == ["–", "–", "–"] and rows[3][5:] == ["0", "0.00"]
    pairs = metrics["details"].pairs
    for label in (0, 1, 2, 4):
        right = pairs[label, label]
        expected = [
            right / (pairs[label].sum() + pairs[:, label].sum() - right),
            right / pairs[label].sum(),
            right / pairs[:, label].sum(),
        ]
        assert rows[label][2:5] == [f"{100 * value:.2f}" for value in expected]
        assert rows[label][5] == f"{pairs[label].sum():,}"


def test_pictures_are_those_of_the_panels(tree, metrics):
    judged = metrics["details"].worst[0]
    shown = report.panels(judged.picture, SPACE)
    assert list(shown) == ["image", "truth", "prediction", "errors"]
    for image, (title, panel) in zip(tree.all("img"), shown.items()):
        assert image["alt"] == f"{title}, {judged.picture.name}"
        assert (int(image["width"]), int(image["height"])) == panel.shape[1::-1]
        data = base64.b64decode(image["src"].partition(",")[2])
        decoded = np.array(Image.open(io.BytesIO(data))).astype(int)
        away = {other: np.abs(decoded - shown[other]).mean() for other in shown}
        assert min(away, key=away.get) == title and away[title] < min(
            20, *(0.4 * away[other] for other in shown if other != title)
        )


def picture(truth, labels, image=None):
    truth, labels = np.array(truth, np.int16), np.array(labels, np.int16)
    image = np.full((*truth.shape, 3), 90, np.uint8) if image is None else image
    return evaluation.Picture("x", image, truth, labels, None, None)


def test_errors_are_red_right_pixels_grey_and_unlabelled_ones_dark():
    truth, labels = np.zeros((2, 60, 90), np.int16)
    labels[:, 30:60] = 1
    truth[:, 60:] = IGNORE
    panel = report.panels(picture(truth, labels), SPACE)["errors"].astype(int)
    right, wrong, unlabelled = np.split(panel, 3, axis=1)
    assert np.ptp(right, axis=-1).max() == 0 and right.min() > 100
    assert (wrong[..., 0] - wrong[..., 1:].max(axis=-1)).min() > 100
    assert unlabelled.max() < 100


def test_large_pictures_are_thumbnails_and_small_ones_are_enlarged():
    labels = np.zeros((256, 2048), np.int16)
    for panel in report.panels(picture(labels, labels), SPACE).values():
        assert panel.shape == (80, 640, 3)
    small = report.panels(picture(labels[:32, :64], labels[:32, :64]), SPACE)
    assert small["truth"].shape == (7 * 32, 7 * 64, 3)


def test_a_full_page_stays_below_ten_megabytes():
    """Noise is the worst there is for JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3)).astype(np.uint8)
    uri = report._data_uri(noise)
    assert 48 * len(uri) < 8e6
    decoded = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert max(decoded.size) > 200


def test_the_most_confused_pairs_begin_rightly_in_either_order():
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 1000, (30, 30)) * rng.integers(0, 50, (30, 1)) ** 2
    shares = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
    found = report._most_confused(pairs, shares)
    wrong = [(i, j) for i in range(30) for j in range(30) if i != j and pairs[i, j]]
    for values in (pairs, shares):
        expected = sorted((values[pair] for pair in wrong), reverse=True)[: report.PAIRS]
        assert sorted((values[pair] for pair in found), reverse=True)[: report.PAIRS] == expected
    assert all(i != j for i, j in found)
    assert [pairs[pair] for pair in found] == sorted((pairs[p] for p in found), reverse=True)
    assert report._most_confused(np.diag([3, 4]), np.eye(2)) == []


def charts(page):
    found = re.findall(r'aria-label="([^"]*)" data-curves="(.*?)">', page)
    return {title: json.loads(html.unescape(data)) for title, data in found}


def test_curves_hold_the_records(page):
    found = charts(page)
    assert list(found) == [
        "Training loss against the step: loss",
        "Evaluation, % against the step: mIoU, aAcc",
        "Training accuracy, % against the step: accuracy",
        "Learning rate against the step: learning_rate",
    ]
    loss, evals, *_ = found.values()
    (curve,) = loss["series"]
    assert curve["points"] == [[10 * n, pytest.approx(3 / n, rel=1e-5)] for n in range(1, 9)]
    assert [(one["name"], one["points"]) for one in evals["series"]] == [
        ("mIoU", [[40, 20.0], [80, 40.0]]),
        ("aAcc", [[40, 30.0], [80, 60.0]]),
    ]


def test_an_import_has_no_curves(metrics):
    text = report.page(metrics, SPACE, config())
    Tree(text)
    assert "no training curves" in text and not charts(text)


def test_records_that_are_no_numbers_do_no_harm(metrics):
    broken = [
        {"step": 5, "kind": "train", "loss": float("nan"), "note": "x", "learning_rate": 0.0},
        {"step": 5, "kind": "eval", "mIoU": None, "classes": []},
        {"step": 5, "kind": "other", "loss": 1.0},
    ]
    text = report.page(metrics, SPACE, config(), broken)
    Tree(text)
    assert list(charts(text)) == ["Learning rate against the step: learning_rate"]


def test_long_curves_are_thinned_to_means_and_ranges():
    rng = np.random.default_rng(0)
    points = [(float(step), value) for step, value in enumerate(rng.normal(size=3000))]
    thinned = np.array(report._thinned(points))
    assert thinned.shape == (report.POINTS, 4)
    values = np.array(points)[:, 1].reshape(report.POINTS, 10)
    np.testing.assert_allclose(thinned[:, 1], values.mean(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(thinned[:, 2:], np.stack([values.min(1), values.max(1)], 1))
    assert "band" in report._chart("t", {"loss": points}, 0)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0, 6e-5), (0.37, 0.371), (-3, 8), (0, 160000), (0, 0), (5, 5), (-2, -2), (0, 1e9)],
    ids=str,
)
def test_ticks_are_few_round_numbers_around_the_values(low, high):
    ticks, first, last = report._ticks(low, high, 6)
    assert first <= low and high <= last and last > first
    assert (first, last) == (ticks[0], ticks[-1]) and 2 <= len(ticks) <= 8
    assert all(len(report._tick(tick)) <= 7 for tick in ticks)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_the_config_marks_what_differs_from_the_defaults(page):
    section = page.partition('<section id="config">')[2]
    rows = re.findall(r"<tr( class=differs)?><td>(.*?)</td><td>(.*?)</td></tr>", section)
    marked = {name: html.unescape(value) for differs, name, value in rows if differs}
    plain = {name: value for differs, name, value in rows if not differs}
    assert marked["flip"] == "True<small>default False</small>"
    assert marked["classes"] == "5<small>default 12</small>"
    assert set(marked) == {"flip", "classes", "scale", "crop", "stride", "no_decay"}
    assert plain["seed"] == "0"
    assert f"{len(marked)} of {len(rows)} fields differ" in page


def test_images_that_other_processes_read_are_not_passed_over_in_silence(metrics):
    of_two = metrics["details"]._replace(seen=3)
    text = report.page({**metrics, "details": of_two}, SPACE, config())
    assert "among the 3 images that process 0" in text


def test_nothing_labelled_leaves_a_page_without_figures():
    nothing = np.zeros((5, 5), np.int64)
    rows = [dict(name=n, IoU=None, Acc=None, labelled=0, predicted=0) for n in NAMES]
    means = dict.fromkeys(("mIoU", "mAcc", "aAcc"), float("nan"))
    unknown = np.full(3, np.nan)
    details = evaluation.Details(nothing, unknown, unknown, [], [], 0)
    text = report.page(
        {**means, "classes": rows, "images": 3, "step": 0, "details": details}, SPACE, config()
    )
    Tree(text)
    assert "No image has labels" in text and "No pixel is confused" in text
    assert "nan" not in re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL).lower()


def test_a_place_that_cannot_be_written_is_one_sentence(metrics, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SegjaxError, match="cannot be written"):
        report.write(tmp_path / "file" / "report.html", metrics, SPACE, config())


# --------------------------------------------------------------------------------------------------
# In a browser

CHROMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium():
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, CHROMES)), None)
    if found is None:
        pytest.skip(reason="there is no Chromium on PATH, and $CHROME names none")
    return found


PROBE = """<script>
addEventListener("error", (event) => (document.documentElement.dataset.fault = event.message));
addEventListener("load", () => {
  const say = document.documentElement.dataset;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const pen = document.createElement("canvas").getContext("2d");
  say.images = [...document.images].filter((image) => {
    pen.clearRect(0, 0, 9, 9);
    if (image.naturalWidth) pen.drawImage(image, 0, 0, 9, 9); // decodes it
    return pen.getImageData(4, 4, 1, 1).data[3] === 255;
  }).length;
  const order = () => all("#class-table tbody tr").map((row) => row.cells[0].dataset.v).join("");
  const button = (name) =>
    all("#class-table th button").find((one) => one.textContent === name);
  say.before = order();
  for (const [name, as] of [["IoU", "iou"], ["class", "name"], ["labelled pixels", "pixels"]]) {
    button(name).click();
    say[`${as}First`] = order();
    say[`${as}Sort`] = button(name).parentElement.getAttribute("aria-sort");
    button(name).click();
    say[`${as}Second`] = order();
  }
  const canvas = document.getElementById("matrix");
  const { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  say.colours = new Set(new Uint32Array(pixels.buffer)).size;
  const box = canvas.getBoundingClientRect();
  const over = (x, y) => canvas.dispatchEvent(new PointerEvent("pointermove",
    { clientX: box.left + x, clientY: box.top + y }));
  const tips = new Set();
  for (let y = 0; y < box.height; y += 3) {
    for (let x = 0; x < box.width; x += 3) {
      over(x, y);
      const tip = document.getElementById("tip");
      if (!tip.hidden) tips.add(tip.textContent);
    }
  }
  say.tips = JSON.stringify([...tips]);
  const chart = document.querySelector(".chart svg");
  const field = chart.getBoundingClientRect();
  chart.dispatchEvent(new PointerEvent("pointermove",
    { clientX: field.left + field.width * 0.96, clientY: field.top + 9 }));
  say.curve = document.getElementById("tip").textContent;
  say.wide = document.documentElement.scrollWidth - innerWidth;
  say.dark = getComputedStyle(document.body).backgroundColor;
  say.done = "yes";
});
</script>"""


def browse(text, folder, *options):
    """What the probe says of a page, once a browser has run it."""
    path = folder / "page.html"
    path.write_text(text.replace("<style>", PROBE + "<style>", 1), encoding="utf-8")
    argv = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    argv += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000"]
    argv += [*options, "--dump-dom", path.as_uri()]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=180)
    start = re.search(r"<html[^>]*>", ran.stdout)
    assert start, ran.stderr[-2000:]
    said = Tree(start[0] + "</html>").all("html")[0]
    said = {name.removeprefix("data-"): value for name, value in said.items()}
    assert said.get("fault") is None and said.get("done") == "yes", said
    return said


def test_a_browser_shows_pictures_sorts_tables_and_names_what_is_pointed_at(
    page, metrics, tmp_path
):
    said = browse(page, tmp_path, "--window-size=1280,900")
    details = metrics["details"]
    assert int(said["images"]) == 4 * len(details.worst + details.best)

    assert said["before"] == "01234"
    iou = {row: metrics["classes"][row]["IoU"] for row in (0, 1, 2, 4)}
    falling = "".join(map(str, sorted(iou, key=lambda row: -iou[row])))
    assert said["iou-first"] == falling + "3" and said["iou-sort"] == "descending"
    assert said["iou-second"] == falling[::-1] + "3"  # what has none comes last either way
    assert said["name-sort"] == "ascending"
    assert said["name-first"] == said["name-second"][::-1]
    assert said["name-first"].index("3") + 1 == said["name-first"].index("0")  # never, wall
    labelled = [metrics["classes"][row]["labelled"] for row in range(5)]
    assert said["pixels-first"] == "".join(map(str, np.argsort(labelled)[::-1]))

    assert int(said["colours"]) > 10
    tips, pairs = json.loads(said["tips"]), details.pairs
    assert len(tips) == 25
    for i, truth in enumerate(NAMES):
        for j, taken in enumerate(NAMES):
            part = f"{100 * pairs[i, j] / pairs[i].sum():.1f} %" if i != 3 else "never labelled"
            text = f"truth {truth} → predicted {taken}\n{part} ({pairs[i, j]:,} pixels)"
            assert text in tips
    assert said["curve"] == "step 80\nloss 0.375"


def test_the_page_fits_a_telephone_and_the_dark(page, tmp_path):
    narrow = browse(page, tmp_path, "--window-size=500,900")
    assert int(narrow["wide"]) <= 0
    (tmp_path / "dark").mkdir()
    dark = browse(page, tmp_path / "dark", "--blink-settings=preferredColorScheme=0")
    assert narrow["dark"] == "rgb(255, 255, 255)" and dark["dark"] == "rgb(20, 23, 28)"
