"""Prefetching: the batches of the next steps are read and decoded while a step computes.

A thread reads them one after the other, with all decoding threads at each (`data/threads.py`). On
CUDA they are decoded into pinned memory and copied on a stream of their own, so that the copy runs
beside the step too. What is read does not depend on when it is read, so training is the same, bit
for bit, with and without.
"""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from threading import Event

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from contrapose.data.images import ImageSet
from contrapose.data.threads import stopped_by

AHEAD = 2  # batches
ROOM = 2**30  # bytes of batches read ahead, unless one batch alone takes more


def batches_ahead(images: ImageSet, batch_size: int) -> tuple[int, int]:
    """(number of batches that are read ahead, bytes of memory that they take).

    Both are 0 for images in memory. On CUDA the bytes are taken in pinned host memory and on the
    device.
    """
    size = batch_size * images.channels * images.size**2
    count = 0 if images.in_memory else min(AHEAD, max(1, ROOM // max(1, size)))
    return count, count * size


@dataclass(eq=False)
class _Begun:
    """A batch that is being read, or waits to be."""

    index: Int[Tensor, " B"]
    image: "Future[tuple[Tensor, torch.cuda.Event | None]]"
    stop: Event = field(default_factory=Event)

    def cancel(self) -> None:
        self.stop.set()
        self.image.cancel()


class Prefetch:
    """Batches of a set, of which those that follow are read ahead.

    waited: seconds that `take` has taken so far, in which no step could compute; without those of
    the first batch, before which nothing could be read.
    """

    def __init__(self, images: ImageSet, batch_size: int) -> None:
        self.images = images
        self.ahead, self.bytes = batches_ahead(images, batch_size)
        self.waited, self._first = 0.0, True
        self._begun: deque[_Begun] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None

    def take(
        self, index: Int[Tensor, " B"], following: Sequence[Int[Tensor, " B"]] = ()
    ) -> UInt8[Tensor, "B C S S"]:
        """The images at `index`, on the set's device; those of `following` begin to be read.

        following: the indices of the next calls, as far as they are known, `ahead` at most. One
        that was announced and does not come is dropped. An error in reading a batch is raised by
        the call that takes it.
        """
        begun = time.perf_counter()
        try:
            if not self.ahead:
                return self.images.batch(index)
            self._announce([index, *following[: self.ahead]])
            image, copied = self._begun.popleft().image.result()
            if copied is not None:
                here = torch.cuda.current_stream(image.device)
                here.wait_event(copied)
                image.record_stream(here)
            return image
        finally:
            self.waited += 0.0 if self._first else time.perf_counter() - begun
            self._first = False

    def close(self) -> None:
        """Stop reading; what was begun is dropped."""
        for one in self._begun:
            one.cancel()
        self._begun.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None

    def _announce(self, wanted: Sequence[Int[Tensor, " B"]]) -> None:
        """Make `wanted` the batches that are being read, in this order."""
        while self._begun and not torch.equal(self._begun[0].index, wanted[0]):
            self._begun.popleft().cancel()
        same = 0
        for one, index in zip(self._begun, wanted, strict=False):
            if not torch.equal(one.index, index):
                break
            same += 1
        while len(self._begun) > same:
            self._begun.pop().cancel()
        for index in wanted[same:]:
            if self._thread is None:
                self._thread = self._started()
            stop = Event()
            self._begun.append(_Begun(index, self._thread.submit(self._read, index, stop), stop))

    def _started(self) -> ThreadPoolExecutor:
        thread = ThreadPoolExecutor(1, thread_name_prefix="contrapose-prefetch")
        threads = torch.get_num_threads()
        thread.submit(_settle).result()
        torch.set_num_threads(threads)  # the setting is the thread's own, but also the default
        device = self.images.device
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))
        return thread

    def _read(
        self, index: Int[Tensor, " B"], stop: Event
    ) -> tuple[UInt8[Tensor, "B C S S"], torch.cuda.Event | None]:
        side = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with stopped_by(stop), side:
            image = self.images.batch(index)
            return image, None if self._stream is None else self._stream.record_event()


def _settle() -> None:
    """Torch uses no further threads in this one: the step has them."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # torch reads the setting once a thread
