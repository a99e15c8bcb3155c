"""Finding the other processes."""

import pytest

from segjax import runtime
from segjax.errors import SegjaxError


def test_incomplete_process_variables_are_named(monkeypatch):
    monkeypatch.setenv("SEGJAX_COORDINATOR", "localhost:1")
    monkeypatch.setenv("SEGJAX_PROCESS", "0")
    with pytest.raises(SegjaxError, match="without SEGJAX_PROCESSES: set all three, or none"):
        runtime.setup()


def test_process_numbers_must_be_numbers(monkeypatch):
    for name, value in (("COORDINATOR", "localhost:1"), ("PROCESSES", "two"), ("PROCESS", "0")):
        monkeypatch.setenv(f"SEGJAX_{name}", value)
    with pytest.raises(SegjaxError, match=r"SEGJAX_PROCESSES=two .* must be integers"):
        runtime.setup()
