"""Bounds on rendering end with it, whatever else runs."""

import sys
import threading

import pytest

from flipsearch.templating.template import MAX_BYTES, bounded_rendering

resource = pytest.importorskip("resource")


def limit() -> int:
    return int(resource.getrlimit(resource.RLIMIT_AS)[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is bounded on Linux alone")
def test_memory_is_bounded_in_the_block_and_as_before_after_threads_that_overlap() -> None:
    before, seen, is_in, may_end = limit(), list[int](), threading.Event(), threading.Event()

    def first() -> None:
        with bounded_rendering():
            is_in.set()
            may_end.wait(0.2)
            seen.append(limit())

    def second() -> None:
        is_in.wait()
        with bounded_rendering():
            seen.append(limit())
            may_end.set()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(bound != before for bound in seen)
    assert limit() == before
    with pytest.raises(MemoryError), bounded_rendering():
        bytearray(2 * MAX_BYTES)
    assert limit() == before


def test_a_lower_limit_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (MAX_BYTES // 2, resource.RLIM_INFINITY))
    changes: list[object] = []
    monkeypatch.setattr(resource, "setrlimit", lambda *limits: changes.append(limits))
    with bounded_rendering():
        pass
    assert changes == []


def test_a_tracer_comes_back() -> None:
    before, calls = sys.gettrace(), list[str]()

    def tracer(frame: object, event: str, argument: object) -> None:
        calls.append(event)

    sys.settrace(tracer)
    try:
        with bounded_rendering():
            len("")
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
