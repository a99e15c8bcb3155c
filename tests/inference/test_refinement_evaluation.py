"""Evaluation of systems that sharpen masks, and `segjax eval` of them."""

import json

import jax
import numpy as np
import pytest
import test_evaluation_processes
from ml_collections import ConfigDict
from PIL import Image

from segjax import cli
from segjax import config as configs
from segjax.data import datasets
from segjax.data.labels import LabelSpace
from segjax.errors import SegjaxError
from segjax.inference import measure, refinement_evaluation
from segjax.inference.refinement import as_grey
from segjax.metrics import boundary
from segjax.training import checkpoints
from tests.inference import toy_refiner
from tests.inference.test_commands import files
from tests.inference.toy_refiner import SEEN, VARIABLES, Brightness, blocky, disc, scene

toy_system = toy_refiner.toy_system
TOY = Brightness()
SIZES = [(70, 90), (61, 83), (200, 40), (70, 90), (33, 1)]


class Discs:
    """Bright discs with blocky coarse masks."""

    label_space = LabelSpace(
        "discs", ("background", "object"), ((0, 0, 0), (255, 255, 255)), (False, True)
    )

    def __init__(self, sizes=SIZES, without=()):
        self._sizes, self._without = np.array(sizes, np.int32).reshape(-1, 2), without

    def __len__(self):
        return len(self._sizes)

    def sizes(self):
        return self._sizes

    def __getitem__(self, index):
        size = tuple(self._sizes[index])
        truth = disc(size, radius=max(min(size) / 3, 4))
        example = {
            "image": scene(truth),
            "mask": as_grey(truth),
            "coarse_mask": as_grey(blocky(truth, 6)),
            "semantic": truth.astype(np.int16),
            "name": f"discs/{index:03d}",
        }
        return {name: value for name, value in example.items() if name not in self._without}


@pytest.fixture(scope="module")
def metrics():
    return refinement_evaluation.evaluate(TOY, VARIABLES, Discs(), {}, pictures=3)


def test_figures_are_those_of_the_masks_one_by_one(metrics):
    scores = [boundary.Scores(), boundary.Scores()]
    data = Discs()
    for example in map(data.__getitem__, range(len(data))):
        every = TOY.turns(VARIABLES, example["image"], example["coarse_mask"])
        for score, probability in zip(scores, every):
            mask = (255 * probability).astype(np.uint8)
            score.update(example["mask"], example["coarse_mask"], mask)
    first, last = (score.result() for score in scores)
    assert metrics["IoU"] == last["iou"] and metrics["mBA"] == last["mba"]
    assert metrics["coarse_IoU"] == last["coarse_iou"] and metrics["coarse_mBA"] < 60
    assert metrics["coarse_mBA"] == last["coarse_mba"] and metrics["mBA"] > 90
    assert metrics["turns"] == [
        {"IoU": first["iou"], "mBA": first["mba"]},
        {"IoU": last["iou"], "mBA": last["mba"]},
    ]
    assert metrics["images"] == len(SIZES) and metrics["without_boundary"] == 0


def test_examples_are_returned_to_look_at(metrics):
    pictures = metrics["pictures"]
    assert [picture.name for picture in pictures] == ["discs/000", "discs/002", "discs/004"]
    for picture in pictures:
        assert picture.truth.dtype == picture.coarse.dtype == picture.refined.dtype == bool
        assert (picture.refined == picture.truth).mean() > 0.95


def test_a_training_measures_the_same(metrics):
    """On a mesh of eight devices, with variables spread over them."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spread = jax.device_put(VARIABLES, everywhere)
    config = configs.defaults()
    again = measure.evaluate(TOY, spread, Discs(), config.eval, mesh=mesh)
    assert again == {name: value for name, value in metrics.items() if name != "pictures"}
    assert isinstance(again["mBA"], float)


def test_variables_split_over_devices_are_put_together():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    values = np.arange(16.0)
    whole = refinement_evaluation._whole(jax.device_put(values, split))
    np.testing.assert_array_equal(whole, values)


def test_several_devices_share_the_images(metrics, monkeypatch):
    """The order of the results is that of the images."""
    monkeypatch.setattr(refinement_evaluation, "_devices", lambda mesh: jax.local_devices()[:3])
    told = []
    crew = refinement_evaluation._Crew(TOY, VARIABLES, Discs(), None, None)
    results = list(crew.refined([0, 1, 2, 3, 4], lambda *at: told.append(at)))
    assert [number for number, *_ in results] == [0, 1, 2, 3, 4]
    for number, example, masks in results:
        assert example["name"] == f"discs/{number:03d}" and len(masks) == 2
        assert masks[-1].shape == tuple(SIZES[number])
    total = sum(h * w for h, w in SIZES)
    assert {of for _, of in told} == {total} and max(done for done, _ in told) == total
    again = refinement_evaluation.evaluate(TOY, VARIABLES, Discs(), {})
    assert again == {name: value for name, value in metrics.items() if name != "pictures"}


def test_the_bound_on_memory_reaches_the_system():
    SEEN.clear()
    refinement_evaluation.evaluate(TOY, VARIABLES, Discs([(40, 40)]), {"max_memory": "3GiB"})
    assert [allowed for _, allowed in SEEN] == [3 * 2**30]
    with pytest.raises(SegjaxError, match="not an amount of memory"):
        refinement_evaluation.evaluate(TOY, VARIABLES, Discs(), {"max_memory": "lots"})


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (Discs([]), "the evaluation split is empty"),
        (Discs(without=("coarse_mask",)), "discs/000: it has no coarse mask to refine"),
        (Discs(without=("mask",)), "discs/000: it has no mask to refine or compare"),
    ],
    ids=["empty", "no coarse masks", "no masks"],
)
def test_a_dataset_that_does_not_do_is_one_sentence(dataset, sentence):
    with pytest.raises(SegjaxError, match=sentence):
        refinement_evaluation.evaluate(TOY, VARIABLES, dataset, {})


def test_masks_without_a_boundary_are_told(capsys):
    class Full(Discs):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example | {"mask": np.full_like(example["mask"], 255)} if index else example

    found = refinement_evaluation.evaluate(TOY, VARIABLES, Full(SIZES[:2]), {})
    assert found["without_boundary"] == 1 and found["mBA"] > 95
    refinement_evaluation.print_table(found)
    assert "1 true masks are empty or full" in capsys.readouterr().out


CHILD = """
import json
from segjax.runtime import setup
setup()
from test_refinement_evaluation import TOY, VARIABLES, Discs
from segjax.inference import refinement_evaluation
metrics = refinement_evaluation.evaluate(TOY, VARIABLES, Discs(), {}, pictures=2)
shown = [picture.name for picture in metrics.pop("pictures")]
print(json.dumps([metrics, shown]))
"""


@pytest.mark.slow
def test_two_processes_measure_what_one_does(metrics, monkeypatch):
    monkeypatch.setattr(test_evaluation_processes, "CHILD", CHILD)
    (first, shown), (second, nothing) = test_evaluation_processes.evaluate_in_processes(2)
    assert first == second
    assert first == {name: value for name, value in metrics.items() if name != "pictures"}
    assert shown == ["discs/000", "discs/004"] and nothing == []


# --------------------------------------------------------------------------------------------------
# segjax eval


@pytest.fixture
def evaluated(toy_system, monkeypatch, tmp_path):
    """A workdir of the toy, whose dataset is Discs."""
    partial = ConfigDict()
    partial.model = dict(system="toy_refiner")
    partial.eval = dict(metric="mBA", max_memory="2GiB")
    checkpoints.save_variables(tmp_path / "w", VARIABLES, step=9)
    configs.save(configs.load(partial), tmp_path / "w" / "config.json")
    monkeypatch.setattr(datasets, "load", lambda *_: Discs())
    return tmp_path / "w"


def test_eval_says_how_much_better_the_masks_are(evaluated, metrics, capsys):
    assert cli.main(["eval", f"--workdir={evaluated}", "--pictures=2"]) == 0
    written = json.loads((evaluated / "metrics.json").read_text())
    expected = {name: value for name, value in metrics.items() if name != "pictures"}
    assert written == expected | {"step": 9}
    printed = capsys.readouterr().out
    assert f"mBA {metrics['coarse_mBA']:.2f} -> {metrics['mBA']:.2f} (+" in printed
    assert "turn 2" in printed and "(5 images)" in printed and "s/image" in printed
    assert files(evaluated / "pictures") == ["discs_000.png", "discs_004.png"]
    assert Image.open(evaluated / "pictures" / "discs_000.png").width > 1000
    assert {allowed for _, allowed in SEEN} == {2**31}


def test_eval_leaves_the_masks_for_the_official_program(evaluated, tmp_path, metrics):
    argv = ["eval", f"--workdir={evaluated}", "--pictures=0", f"--results={tmp_path / 'masks'}"]
    assert cli.main(argv) == 0
    assert len(files(tmp_path / "masks")) == 3 * len(SIZES)
    scores = boundary.Scores()
    for number in range(len(SIZES)):
        scores.update(
            *(
                np.array(Image.open(tmp_path / "masks" / f"{number:03d}_{kind}.png"))
                for kind in ("gt", "seg", "mask")
            )
        )
    assert scores.result()["mba"] == metrics["mBA"]


def test_eval_has_no_report_of_masks(evaluated, capsys):
    assert cli.main(["eval", f"--workdir={evaluated}", "--report"]) == 1
    assert "this system sharpens masks, leave --report out" in capsys.readouterr().err
