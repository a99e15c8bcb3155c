"""The process around segjax: compile cache, quiet libraries, and finding the other hosts.

Environment variables:

    SEGJAX_COORDINATOR      host:port of process 0; with the two below, makes processes one run
    SEGJAX_PROCESSES        how many processes there are
    SEGJAX_PROCESS          the number of this one, from 0
    JAX_COMPILATION_CACHE_DIR   where compiled programs are kept (default ~/.cache/segjax/xla)
    SEGJAX_COMPILE_CACHE    0 turns that off

TPU pods find their hosts by themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
from absl import flags
from absl import logging as absl_logging

from segjax.errors import SegjaxError


def setup() -> None:
    """Called by every command before JAX is used; more calls do nothing.

    Raises:
        SegjaxError: the variables that describe the processes are incomplete.
    """
    if not flags.FLAGS.is_parsed():  # Grain and TFDS ask for flags, also outside absl.app
        flags.FLAGS.mark_as_parsed()
    # Orbax logs what is meant as a warning, and errors, with tracebacks, that it also raises.
    absl_logging.set_verbosity(absl_logging.FATAL)
    _join_processes()
    _keep_compiled_programs()


def _join_processes() -> None:
    if jax.distributed.is_initialized():
        return
    names = ("SEGJAX_COORDINATOR", "SEGJAX_PROCESSES", "SEGJAX_PROCESS")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if given:
        missing = [name for name in names if name not in given]
        if missing:
            raise SegjaxError(
                f"{', '.join(given)} without {', '.join(missing)}: set all three, or none."
            )
        address, count, index = (given[name] for name in names)
        try:
            count, index = int(count), int(index)
        except ValueError:
            raise SegjaxError(
                f"SEGJAX_PROCESSES={count} and SEGJAX_PROCESS={index} must be integers."
            ) from None
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, count, index)
    elif len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        jax.distributed.initialize()


def _keep_compiled_programs() -> None:
    if os.environ.get("SEGJAX_COMPILE_CACHE") == "0" or jax.config.jax_compilation_cache_dir:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segjax" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a home that can't be written costs compile time only
    jax.config.update("jax_compilation_cache_dir", str(folder))
