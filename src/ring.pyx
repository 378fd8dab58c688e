"""The ring: Python objects from one thread to another without a lock, and a sleep that misses no wake-up.

Laws: one thread pushes and one thread pops; items come out in the order in which they went in; the ring owns one
reference to each item inside, and push and pop move it; a sleeping consumer does not hold the GIL. Items are not
visited by the garbage collector while they are inside: a cycle through a ring lives until it is popped or closed over.
Memory order and the papers: `ring.hpp`.
"""

import types

from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.math cimport INFINITY
from libc.stdint cimport uint64_t

cdef extern from "ring.hpp" namespace "engine" nogil:
    cdef cppclass CWakeFlag "engine::WakeFlag":
        CWakeFlag() except +
        void arm()
        void disarm()
        bint take()

    cdef cppclass SpscRing[T]:
        SpscRing(uint64_t capacity, uint64_t first_index) except +
        uint64_t capacity()
        uint64_t size()
        bint push(T item)
        uint64_t ready(uint64_t wanted)
        T& to_read(uint64_t at)
        void release(uint64_t count)
        bint pop(T& item)

    cdef enum class Wait "engine::Wait":
        ready
        closed
        timeout

    cdef cppclass Sleeper:
        bint take()
        void wake() except +
        void close() except +
        bint closed()
        Wait wait(SpscRing[PyObject*]& ring, double timeout_s) except +

cdef extern from "ring_trial.hpp" namespace "engine" nogil:
    double ring_benchmark_handover(uint64_t items, uint64_t batch, uint64_t capacity) except +
    double ring_benchmark_round_trip(uint64_t trips) except +
    cdef struct SleepTrial:
        uint64_t seen
        uint64_t sleeps
        uint64_t wakes
    SleepTrial ring_stress_sleep(
        uint64_t items, uint64_t batch, uint64_t capacity, uint64_t pause_every, uint64_t seed, double limit_s
    ) except +

cdef uint64_t MAX_CAPACITY = 1 << 32


cdef inline object owned(PyObject* item):
    """Turns the ring's reference into the caller's."""
    value = <object> item
    Py_DECREF(value)
    return value


cdef class WakeFlag:
    """Says whether a consumer that sleeps on something else than a ring (a descriptor) must be woken.

    Consumer: `arm()`, look at every ring once more, then sleep, or `disarm()`.
    Producers, after their push: `take()`, and wake the consumer if it is true. Any number of rings may share a flag.
    """

    cdef CWakeFlag* flag  # Python aligns objects to 16 bytes, the flag wants a cache line of its own

    def __cinit__(self):
        self.flag = new CWakeFlag()

    def __dealloc__(self):
        del self.flag

    def arm(self):
        """Announces that the consumer is about to sleep."""
        self.flag.arm()

    def disarm(self):
        """The consumer is awake: pushing needs no wake-up."""
        self.flag.disarm()

    def take(self):
        """True for exactly one producer after each `arm()`: that one wakes the consumer."""
        return self.flag.take()


cdef class Ring:
    """A bounded queue of objects from one thread (`push`) to one other (`pop`, `pop_all`, `pop_wait`).

    `capacity` (1 to 2**32) is rounded up to a power of two. `first_index` is where the ring's 64-bit indices start.
    `len(ring)` is the number of items inside.

    Raises:
      ValueError: `capacity` is out of range.
      MemoryError: there is no memory for the slots.
    """

    cdef SpscRing[PyObject*]* ring
    cdef Sleeper* sleeper

    __class_getitem__ = classmethod(types.GenericAlias)

    def __cinit__(self, uint64_t capacity, *, uint64_t first_index=0):
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity must be from 1 to {MAX_CAPACITY}, not {capacity}")
        self.ring = new SpscRing[PyObject*](capacity, first_index)
        self.sleeper = new Sleeper()

    def __dealloc__(self):
        cdef PyObject* item = NULL
        if self.ring is not NULL:
            while self.ring.pop(item):
                owned(item)
        del self.ring
        del self.sleeper

    def __len__(self):
        return self.ring.size()

    @property
    def capacity(self):
        """How many items fit."""
        return self.ring.capacity()

    @property
    def closed(self):
        """Whether `close` was called."""
        return self.sleeper.closed()

    def push(self, item):
        """Appends `item`; False, and nothing done, if the ring is full. A consumer in `pop_wait` sleeps on till `wake`.

        Raises:
          ValueError: the ring is closed.
        """
        if self.sleeper.closed():
            raise ValueError("the ring is closed")
        Py_INCREF(item)
        if not self.ring.push(<PyObject*> item):
            Py_DECREF(item)
            return False
        return True

    def wake(self):
        """Wakes the consumer if it sleeps in `pop_wait`; nearly free if it does not. For the pushing thread.

        One wake-up may follow many pushes. It lets go of the GIL: the thread that wakes needs it, and would else wake
        only to wait again.
        """
        if self.sleeper.take():
            with nogil:
                self.sleeper.wake()

    def pop(self):
        """The oldest item.

        Raises:
          IndexError: the ring is empty.
        """
        cdef PyObject* item = NULL
        if not self.ring.pop(item):
            raise IndexError("pop from an empty ring")
        return owned(item)

    def pop_all(self):
        """A list of all items that are inside at this moment, oldest first."""
        cdef uint64_t count = self.ring.ready(self.ring.capacity())
        cdef uint64_t at
        cdef list items = PyList_New(<Py_ssize_t> count)
        for at in range(count):
            PyList_SET_ITEM(items, <Py_ssize_t> at, <object> self.ring.to_read(at))
        self.ring.release(count)
        return items

    def pop_wait(self, timeout_s=None):
        """The oldest item; sleeps without the GIL until there is one. For worker threads: signals do not interrupt it.

        Raises:
          EOFError: the ring is closed and empty.
          TimeoutError: no item came within `timeout_s` seconds (None: no limit).
          ValueError: `timeout_s` is negative or not a number.
        """
        cdef PyObject* item = NULL
        cdef double limit_s
        cdef Wait outcome
        if self.ring.pop(item):
            return owned(item)
        limit_s = INFINITY if timeout_s is None else timeout_s
        if not limit_s >= 0:
            raise ValueError(f"timeout_s must not be negative, but is {timeout_s}")
        with nogil:
            outcome = self.sleeper.wait(self.ring[0], limit_s)
        if outcome == Wait.closed:
            raise EOFError("the ring is closed and empty")
        if outcome == Wait.timeout:
            raise TimeoutError(f"no item within {timeout_s} s")
        self.ring.pop(item)
        return owned(item)

    def close(self):
        """Refuses further items and wakes the consumer; what is inside can still be popped. Any thread, any number."""
        self.sleeper.close()


def benchmark_handover(uint64_t items, uint64_t batch, *, uint64_t capacity=1024):
    """Nanoseconds an item between two C++ threads that claim and publish `batch` items at a time.

    Raises:
      ValueError: `batch` or `capacity` is zero.
      RuntimeError: an item was lost or came out of order.
    """
    cdef double nanoseconds
    if not batch or not 1 <= capacity <= MAX_CAPACITY:
        raise ValueError("batch and capacity must be positive")
    with nogil:
        nanoseconds = ring_benchmark_handover(items, batch, capacity)
    if nanoseconds < 0:
        raise RuntimeError("an item was lost or came out of order")
    return nanoseconds


def benchmark_round_trip(uint64_t trips):
    """Nanoseconds from one C++ thread to another and back, through a ring each way; neither sleeps.

    Raises:
      RuntimeError: an item came back wrong.
    """
    cdef double nanoseconds
    with nogil:
        nanoseconds = ring_benchmark_round_trip(trips)
    if nanoseconds < 0:
        raise RuntimeError("an item came back wrong")
    return nanoseconds


def stress_sleep(
    uint64_t items, *, uint64_t batch=1, uint64_t capacity=8, uint64_t pause_every=1, uint64_t seed=1, double limit_s=5.0
):
    """Hands items over in order to a C++ thread that sleeps whenever there is none; `seen`, `sleeps` and `wakes`.

    Fewer seen than `items` means a lost wake-up, or an item that was lost or came out of order. The producer pauses
    after one batch in `pause_every`, a power of two.

    Raises:
      ValueError: `batch` or `capacity` is zero, or `pause_every` no power of two.
    """
    cdef SleepTrial trial
    if not batch or not 1 <= capacity <= MAX_CAPACITY or not pause_every or pause_every & (pause_every - 1):
        raise ValueError("batch and capacity must be positive, pause_every a power of two")
    with nogil:
        trial = ring_stress_sleep(items, batch, capacity, pause_every, seed, limit_s)
    return {"seen": trial.seen, "sleeps": trial.sleeps, "wakes": trial.wakes}
