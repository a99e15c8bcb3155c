"""The command line's frame."""

import subprocess
import sys

from segjax import cli
from segjax.errors import SegjaxError


def test_without_a_command_it_lists_them(capsys):
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in cli.COMMANDS)


def test_an_unknown_command_is_named(capsys):
    assert cli.main(["trian"]) == 2
    assert "no command 'trian'; there are train," in capsys.readouterr().err


def test_a_users_error_is_one_sentence_without_a_traceback(capsys):
    def command(argv):
        raise SegjaxError("photo.jpg: not an image.")

    assert cli.run(command, []) == 1
    assert capsys.readouterr().err == "segjax: error: photo.jpg: not an image.\n"


def test_helping_does_not_import_jax():
    """`segjax --help` answers at once."""
    check = "import sys; from segjax import cli; cli.main(['-h']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True).returncode == 0
