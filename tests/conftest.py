"""The suite runs on 8 fake CPU devices and leaves nothing behind: set before jax is imported."""

import gc
import os
import shutil
import tempfile
from importlib import metadata

import pytest

_SCRATCH = tempfile.mkdtemp(prefix="segjax_tests_")

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs are tiny here: compiling them takes far longer than running them. The last flag halves
# that where there is one; an XLA that doesn't know it would stop the suite.
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
os.environ["TFDS_DATA_DIR"] = os.path.join(_SCRATCH, "tfds")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_SCRATCH, "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["XDG_CACHE_HOME"] = os.path.join(_SCRATCH, "cache")

import jax  # noqa: E402  (after the environment is set)


@pytest.fixture(autouse=True, scope="module")
def _no_programs_of_earlier_modules():
    """Each compiled program holds a few memory mappings, of which Linux gives a process 65,530: a
    suite that kept all would be killed while compiling."""
    yield
    jax.clear_caches()
    gc.collect()


def pytest_unconfigure():
    shutil.rmtree(_SCRATCH, ignore_errors=True)
