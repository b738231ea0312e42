"""Calls that wait for something else, made several at once; what is done first is handed out first."""

from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_completed(work: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> Iterator[list[Result]]:
    """Yield the results of `work` on each item in lists, as soon as there are any, in any order.

    An exception is raised once what else is done has been yielded; nothing new is begun after it, nor once the caller
    stops. The threads are daemons: an interrupted program does not wait for answers that nobody reads.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[tuple[list[Result], Exception | None]] = SimpleQueue()
    stopped = Event()
    for item in items:
        waiting.put(item)

    def run() -> None:
        while not stopped.is_set():
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put(([work(item)], None))
            except Exception as error:  # raised in the caller's thread
                done.put(([], error))

    for _ in range(min(num_threads, len(items))):
        Thread(target=run, daemon=True).start()
    num_left = len(items)
    try:
        while num_left:
            taken = [done.get()]
            while not done.empty():
                taken.append(done.get())
            if results := [result for found, _ in taken for result in found]:
                yield results
            for error in (error for _, error in taken if error):
                raise error
            num_left -= len(taken)
    finally:
        stopped.set()
