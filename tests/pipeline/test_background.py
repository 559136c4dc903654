"""What is written behind is written in order, not too late, and never fails in silence."""

import threading

import pytest

from pipeline.background import background_writer


def test_all_is_written_in_order() -> None:
    written: list[int] = []
    with background_writer(written.append, at_most=3) as write:
        for number in range(20):
            write(number)
    assert written == list(range(20))


def test_the_caller_goes_on_but_not_too_far() -> None:
    may_write = threading.Semaphore(0)
    written: list[int] = []

    def slowly(number: int) -> None:
        assert may_write.acquire(timeout=10)
        written.append(number)

    with background_writer(slowly, at_most=2) as write:
        write(0)
        write(1)
        assert written == []
        may_write.release()
        write(2)
        assert written[:1] == [0]
        may_write.release(2)


@pytest.mark.parametrize("calls", [1, 5])
def test_what_a_call_raises_is_raised(calls: int) -> None:
    seen: list[int] = []

    def fail(number: int) -> None:
        seen.append(number)
        raise OSError(f"no space for {number}")

    with (
        pytest.raises(OSError, match="no space for 0"),
        background_writer(fail, at_most=1) as write,
    ):
        for number in range(calls):
            write(number)
    assert len(seen) <= 2


def test_after_an_error_elsewhere_nothing_more_is_begun() -> None:
    begun, may_end = threading.Event(), threading.Event()
    written: list[int] = []

    def slowly(number: int) -> None:
        begun.set()
        assert may_end.wait(10)
        written.append(number)

    with pytest.raises(KeyError), background_writer(slowly, at_most=5) as write:
        for number in range(4):
            write(number)
        assert begun.wait(10)
        threading.Timer(0.05, may_end.set).start()
        raise KeyError
    assert written == [0]
