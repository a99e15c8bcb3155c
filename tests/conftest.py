"""The suite runs on 8 fake CPU devices and leaves nothing behind: set before jax is imported."""

import os
import shutil
import tempfile

_SCRATCH = tempfile.mkdtemp(prefix="segjax_tests_")

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs are tiny here: compiling them takes far longer than running them.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
    ]
).strip()
os.environ["TFDS_DATA_DIR"] = os.path.join(_SCRATCH, "tfds")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_SCRATCH, "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["XDG_CACHE_HOME"] = os.path.join(_SCRATCH, "cache")


def pytest_unconfigure():
    shutil.rmtree(_SCRATCH, ignore_errors=True)
