"""Every test runs offline, on one thread and with an 80-column terminal: results do not depend on the machine."""

import atexit
import gc
import os
import shutil
import tempfile

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
if "FLIPSEARCH_TEST_CACHE" not in os.environ:  # workers and the processes of a test share their parent's
    cache = tempfile.mkdtemp(prefix="flipsearch-cache-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ |= {"FLIPSEARCH_TEST_CACHE": cache, "XDG_CACHE_HOME": cache}
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


def pytest_collection_finish() -> None:
    """What was imported by now is never garbage: collections, as each model ends with one, need not look at it."""
    gc.freeze()
