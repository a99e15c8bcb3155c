"""The training loop: resuming, stopping, and what it says when something is wrong."""

import json
import pathlib
import signal

import jax
import pytest
from tiny_training import differences, run_python, stored, tiny_config

from segjax import cli
from segjax import config as configs
from segjax.cli import train as command
from segjax.data import loader
from segjax.errors import SegjaxError
from segjax.training import checkpoints, loop, signals

# Trains on argv[1] (config.json) in argv[2]; appends the step and names of every batch to argv[3];
# sends itself the signal argv[4] when it has drawn the batch of step argv[5] (from 0).
CHILD = """
import json, os, sys
from segjax import cli
from segjax.cli import train
from segjax.data import loader
config, workdir, names_file, number, at = sys.argv[1:]
train_batches = loader.train_batches

class Recording:
    def __init__(self, *args):
        self.inner, self.step = train_batches(*args), args[4]
    def __next__(self):
        batch, names = next(self.inner)
        with open(names_file, "a") as file:
            file.write(json.dumps([self.step, names]) + "\\n")
        if self.step == int(at):
            os.kill(os.getpid(), int(number))
        self.step += 1
        return batch, names
    def close(self):
        self.inner.close()

loader.train_batches = Recording
sys.exit(cli.run(train.main, ["--config", config, "--workdir", workdir]))
"""


def train_in_child(folder, number=0, at=-1):
    """Trains in folder/w in a new process: (exit status, output)."""
    config = folder / "config.json"
    configs.save(tiny_config(), config)
    return run_python(CHILD, config, folder / "w", folder / "names", int(number), at)


def names_of(folder):
    return [json.loads(line) for line in (folder / "names").read_text().splitlines()]


def evaluations(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "eval"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of an uninterrupted run, and what it printed."""
    folder = tmp_path_factory.mktemp("straight")
    code, output = train_in_child(folder)
    assert code == 0, output
    return folder, output


def test_a_run_leaves_what_the_readme_says(straight):
    folder, output = straight
    workdir = folder / "w"
    assert {path.name for path in workdir.iterdir()} == {
        "best",
        "checkpoints",
        "config.json",
        "label_space.json",
        "metrics.json",
        "metrics.jsonl",
    }
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert metrics["step"] == 6
    last = output.strip().splitlines()[-1]
    assert last.startswith("done: ")
    assert f"{metrics['mIoU']:.2f}" in last and str(workdir) in last
    assert [line["step"] for line in evaluations(workdir)] == [3, 6]
    best = max(evaluations(workdir), key=lambda line: line["mIoU"])
    assert checkpoints.load_variables(workdir, "best")[1] == best["step"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_saves_and_resuming_in_a_new_process_is_bitwise(
    straight, tmp_path, number, status
):
    code, output = train_in_child(tmp_path, number, at=3)
    assert code == status, output
    assert "step 4 is saved" in output and "to resume" in output
    assert checkpoints.Checkpoints(tmp_path / "w").latest() == 4
    code, output = train_in_child(tmp_path)
    assert code == 0, output
    assert "resumes from step 4" in output
    assert names_of(tmp_path) == names_of(straight[0])
    assert not differences(stored(tmp_path / "w", 6), stored(straight[0] / "w", 6))
    assert evaluations(tmp_path / "w") == evaluations(straight[0] / "w")


def test_a_kill_while_saving_leaves_the_checkpoint_before(straight, tmp_path):
    killed = (
        "import orbax.checkpoint as ocp, os\n"
        "save = ocp.CheckpointManager.save\n"
        "def save_and_die(self, step, **options):\n"
        "    save(self, step, **options)\n"
        "    if step == 4: os.kill(os.getpid(), 9)\n"
        "ocp.CheckpointManager.save = save_and_die\n"
    )
    config = tmp_path / "config.json"
    configs.save(tiny_config(), config)
    args = (config, tmp_path / "w", tmp_path / "names", 0, -1)
    code, _ = run_python(killed + CHILD, *args)
    assert code == -signal.SIGKILL
    assert checkpoints.Checkpoints(tmp_path / "w").latest() == 2
    code, output = run_python(CHILD, *args)
    assert code == 0, output
    assert "resumes from step 2" in output
    assert not differences(stored(tmp_path / "w", 6), stored(straight[0] / "w", 6))


def test_a_finished_run_is_not_trained_again(straight, monkeypatch):
    workdir = straight[0] / "w"
    monkeypatch.setattr(loader, "train_batches", None)
    monkeypatch.setattr(loop.measure, "evaluate", None)
    metrics = loop.train(configs.read(workdir / "config.json"), workdir)
    assert metrics["step"] == 6
    assert metrics["mIoU"] == json.loads((workdir / "metrics.json").read_text())["mIoU"]


def test_an_evaluation_interrupted_after_the_last_save_is_done_again(tmp_path, monkeypatch):
    config, evaluate = tiny_config("--config.steps=2"), loop.measure.evaluate

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.measure, "evaluate", interrupted)
    with pytest.raises(signals.Interrupted) as stop:
        loop.train(config, tmp_path)
    assert stop.value.code == 143
    assert not (tmp_path / "metrics.json").exists()
    monkeypatch.setattr(loop.measure, "evaluate", evaluate)
    monkeypatch.setattr(loader, "train_batches", None)  # nothing is left to train
    assert loop.train(config, tmp_path)["step"] == 2
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 2


def test_nan_names_the_steps_and_keeps_the_good_checkpoint(tmp_path):
    """The rate jumps to 1e30 at step 4 (from 0), so the loss of a step after that overflows."""
    config = tiny_config("--config.optimizer.learning_rate=1.0", "--config.schedule.warmup_steps=0")
    config.schedule.name = "cosine_restart"
    config.schedule.periods, config.schedule.weights = (4, 4), (1e-3, 1e30)
    with pytest.raises(SegjaxError, match=r"within steps \[5, 6\]; the checkpoint of step 4"):
        loop.train(config, tmp_path)
    values = stored(tmp_path, 4)
    assert checkpoints.Checkpoints(tmp_path).latest() == 4
    assert all(abs(array).max() < 10 for name, array in values.items() if "params" in name)


def test_another_config_is_refused_with_the_difference(straight):
    workdir = straight[0] / "w"
    other = configs.read(workdir / "config.json")
    other.optimizer.weight_decay = 0.5
    other.log.every = 1
    with pytest.raises(SegjaxError) as error:
        loop.train(other, workdir)
    assert "config.optimizer.weight_decay: 0.01 -> 0.5" in str(error.value)
    assert "log.every" not in str(error.value)


def test_a_workdir_without_checkpoints_takes_a_corrected_config(tmp_path):
    config = tiny_config("--config.model.classes=7")
    with pytest.raises(SegjaxError, match=r"set config\.model\.classes=12"):
        loop.train(config, tmp_path)
    configs.save(config, tmp_path / "config.json")
    config = tiny_config("--config.steps=0")
    assert loop.train(config, tmp_path)["step"] == 0


def test_batch_that_the_mesh_does_not_divide(tmp_path):
    with pytest.raises(SegjaxError, match=r"config\.data\.batch is 12, .* multiple of 8"):
        loop.train(tiny_config("--config.data.batch=12"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_newest_checkpoint_is_left_aside(straight, tmp_path, tools_copy):
    workdir = tools_copy(straight[0] / "w", tmp_path / "w")
    biggest = max(
        (workdir / "checkpoints" / "6").rglob("*"),
        key=lambda path: path.stat().st_size if path.is_file() else -1,
    )
    biggest.write_bytes(biggest.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"checkpoints/6: this checkpoint is damaged"):
        loop.train(configs.read(workdir / "config.json"), workdir)
    assert (workdir / "damaged" / "6").is_dir()
    assert not differences(stored(workdir, 6), stored(straight[0] / "w", 6))


@pytest.fixture
def tools_copy():
    import shutil

    def copy(source, target):
        return pathlib.Path(shutil.copytree(source, target))

    return copy


def test_an_error_of_the_loader_saves_what_was_trained(tmp_path, monkeypatch):
    train_batches = loader.train_batches

    class Failing:
        def __init__(self, *args):
            self.inner, self.left = train_batches(*args), 3

        def __next__(self):
            self.left -= 1
            if self.left < 0:
                raise SegjaxError("train/000007.png: unreadable.")
            return next(self.inner)

        def close(self):
            self.inner.close()

    monkeypatch.setattr(loader, "train_batches", Failing)
    with pytest.raises(SegjaxError, match="unreadable"):
        loop.train(tiny_config(), tmp_path)
    assert checkpoints.Checkpoints(tmp_path).latest() == 3


def test_imported_variables_are_trained_on(tmp_path):
    config = tiny_config("--config.steps=0")
    loop.train(config, tmp_path / "a")
    variables, _, _ = checkpoints.load_variables(tmp_path / "a", "last")
    variables["params"]["head"]["classifier"]["bias"] += 3
    checkpoints.save_variables(tmp_path / "b", variables)
    loop.train(config, tmp_path / "b")
    trained, _, _ = checkpoints.load_variables(tmp_path / "b", "last")
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail(), variables, trained)


def test_the_command_explains_a_workdir_without_config(tmp_path, capsys):
    assert cli.run(command.main, [f"--workdir={tmp_path}"]) == 1
    assert "name one with --config=FILE" in capsys.readouterr().err


def test_the_command_names_the_nearest_field(tmp_path, capsys):
    configs.save(tiny_config(), tmp_path / "config.json")
    argv = [f"--workdir={tmp_path}", "--config.optimizer.wieght_decay=1"]
    assert cli.run(command.main, argv) == 1
    assert "did you mean config.optimizer.weight_decay?" in capsys.readouterr().err
