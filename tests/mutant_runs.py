"""Processes that run tests for `mutants.py`: forked from one that has imported what never changes, in a copy of the tree."""

import contextlib
import gc
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".pytest_cache" / "mutants"
TESTS = (
    *("test_certificate", "test_geometry", "test_index", "test_losses", "test_postprocess", "test_precision"),
    *("test_quantization", "test_robustness", "test_scaling", "test_streaming", "test_units", "theorems/test_*"),
)
PREPARED = (
    "jax jax.numpy numpy scipy.stats scipy.special scipy.integrate flax.nnx optax matplotlib.pyplot xarray zarr mpmath"
)
PREPARED += " sklearn.datasets hypothesis pytest tqdm"
LOG = "log"  # of the last forked process, in the copy
PYTEST = [
    "-m",
    "not slow",
    "-p",
    "pytest_timeout",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:unraisableexception",
    "--no-header",
]


def prepared() -> Path:
    """A copy of the work tree as current folder, with what does not change imported and nothing computed."""
    copy = Path(tempfile.mkdtemp(prefix="mutants-")).resolve()
    ignored = shutil.ignore_patterns(".*", "results", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, copy, ignore=ignored, dirs_exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    os.chdir(copy)
    os.environ |= dict(PYTHONPATH=str(copy), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    hidden = (ROOT, ROOT / "tests")
    sys.path[:] = [str(copy), *(entry for entry in sys.path if Path(entry or ".").resolve() not in hidden)]
    from experiments.commands.terminal import draw_alike_everywhere

    draw_alike_everywhere()  # before NumPy is loaded

    for name in PREPARED.split():
        importlib.import_module(name)
    gc.freeze()  # collecting what was imported would take half a second in every process
    return copy


class Chosen:
    """A plugin of pytest: only these tests, in this order; small programs are read from the cache, and none written."""

    def __init__(self, tests: dict[str, float]):
        self.order = list(tests)

    def pytest_sessionstart(self):
        import jax

        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)

    def pytest_collection_modifyitems(self, items):
        asked = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(asked, key=lambda item: self.order.index(item.nodeid))


class Recorder:
    """A plugin of pytest: which lines a test runs when nothing is compiled or remembered, and how long it takes."""

    def __init__(self):
        import coverage

        self.coverage = coverage.Coverage(data_file=None, include=["simulator/*"], config_file=False)
        self.seconds, self.failed, self.began = {}, set(), 0.0
        self.coverage.start()

    def pytest_sessionstart(self):
        import jax

        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    def pytest_collection_modifyitems(self, items):
        # What measures a whole claim takes seconds and runs half of the code: what dies there alone counts as alive.
        items[:] = [item for item in items if "quick_measurement" not in item.function.__code__.co_names]

    def pytest_runtest_setup(self, item):
        for module in list(sys.modules.values()):
            own = (getattr(module, "__file__", None) or "").startswith(str(Path.cwd()))
            for value in list(vars(module).values()) if own else ():
                for forget in ("clear_cache", "cache_clear"):  # of jax.jit and of functools
                    getattr(value, forget, int)()
        self.coverage.switch_context(item.nodeid)
        self.began = time.process_time()

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = time.process_time() - self.began  # whatever else the machine does
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    def result(self) -> dict:
        self.coverage.stop()
        data = self.coverage.get_data()
        lines: dict = {}
        for path in data.measured_files():
            module = str(Path(path).relative_to(Path.cwd() / "simulator").with_suffix(""))
            for line, tests in data.contexts_by_lineno(path).items():
                ran = sorted(set(tests) - self.failed - {""})
                if ran:
                    lines.setdefault(module, {})[line] = ran
        return dict(seconds=self.seconds, lines=lines, failed=sorted(self.failed))


def forked(work, limit: float) -> int | None:
    """Exit status of `work()` in another process, or None when it computes for more than `limit` seconds."""
    process = os.fork()
    if process == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit)))
        with open(LOG, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = 3
        with contextlib.suppress(BaseException):
            status = work()
        os._exit(status)
    end = time.monotonic() + 10 * limit  # a busy machine, or one that waits
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return None if code in (-signal.SIGXCPU, -signal.SIGKILL) else code
            time.sleep(0.02)
    finally:  # also what a test left behind, and when this process is ended
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def record() -> dict:
    """Tests, their seconds and the lines that they run; a file of tests is run again when it or the code has changed."""
    import pytest

    code = [*sorted(Path("simulator").glob("**/*.py")), *sorted(Path("experiments").glob("**/*.py"))]
    code += [Path("tests", "conftest.py"), Path("tests", "theorems", "common.py")]
    base = hashlib.sha256(b"".join(path.read_bytes() for path in code))
    runs: dict = dict(seconds={}, lines={})
    for path in sorted({path for name in TESTS for path in Path("tests").glob(f"{name}.py")}):
        state = base.copy()
        state.update(path.read_bytes())
        memory = CACHE / f"{path.stem}-{state.hexdigest()[:16]}.json"
        if not memory.exists():

            def work(path=path, memory=memory) -> int:
                recorder = Recorder()
                status = pytest.main([*PYTEST, str(path)], plugins=[recorder])
                memory.write_text(json.dumps(recorder.result()))
                return status

            for old in CACHE.glob(f"{path.stem}-????????????????.json"):
                old.unlink()
            began = time.monotonic()
            status = forked(work, 1200)
            print(f"{path.name}: {time.monotonic() - began:.0f} s, status {status}", flush=True)
            if not memory.exists():
                sys.exit(f"{path} cannot be run:\n{Path(LOG).read_text()[-2000:]}")
        part = json.loads(memory.read_text())
        runs["seconds"] |= part["seconds"]
        for module, lines in part["lines"].items():
            for line, tests in lines.items():
                runs["lines"].setdefault(module, {}).setdefault(line, []).extend(tests)
    return runs
