"""How long the event loop is held at once by what is done for a request."""

from collections.abc import Callable, Coroutine, Generator
from time import thread_time
from types import coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


@coroutine
def told_of_steps(
    work: Coroutine[Any, Any, Result], tell: Callable[[float], None]
) -> Generator[Any, Any, Result]:
    """What `work` returns. Of each of its steps, from one wait to the next, is told how many
    seconds of CPU time it took: what a busy machine adds is nobody's fault."""
    step: Callable[[Any], Any] = work.send
    given: Any = None
    while True:
        before = thread_time()
        try:
            awaited = step(given)
        except StopIteration as end:
            result: Result = end.value
            return result
        finally:
            tell(thread_time() - before)
        try:
            step, given = work.send, (yield awaited)
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:
            step, given = work.throw, error
