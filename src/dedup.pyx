"""The dedup window: exact, bounded, undoable; recent keys in memory, older ones in sealed runs that the caller reads.

Laws: one owner at a time; the GIL is released while rows are probed; foreign buffers are only read, and held only
during a call, but for the filters of `set_runs`; no I/O: what a sealed run knows comes in through `resolve`.
Algorithm and invariants: `dedup.hpp`, `lru.hpp`, `horizon.hpp`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.deque cimport deque
from libcpp.vector cimport vector

from collections import namedtuple

cdef extern from "dedup.hpp" namespace "engine" nogil:
    cdef struct Id:
        uint64_t low
        uint64_t high
    cdef cppclass IdSeed:
        IdSeed()
    IdSeed load_seed(const uint8_t* data)
    cdef cppclass BloomView:
        const uint8_t* blocks
        uint32_t block_count
    cdef cppclass SealedRun:
        uint64_t first
        uint64_t stop
        BloomView filter
    cdef cppclass IdBatch:
        const uint8_t* ids
        const uint8_t* keyed
        const uint8_t* selection
        const int64_t* clock
        size_t rows
        uint8_t* mask
    cdef cppclass Sighting:
        uint64_t position
        uint64_t previous
    cdef cppclass Tally:
        uint64_t rows
        uint64_t duplicates
        uint64_t null_keys
        uint64_t recent_hits
        uint64_t run_hits
        uint64_t run_lookups
    cdef cppclass Mark:
        uint64_t position
        int64_t clock
    cdef cppclass HorizonState "engine::Horizon::State":
        cbool running
        int64_t now
        int64_t mark_base
        uint64_t marks_made
        uint64_t marks_passed
        uint64_t position
    cdef cppclass Horizon:
        cbool timed()
        deque[Mark] pending(const HorizonState&) except +
    cdef cppclass IdRing:
        uint64_t head()
        size_t chunk_ids()
        void copy_out(uint64_t start, uint64_t stop, uint8_t* target)
    cdef cppclass HintTable:
        uint64_t bucket_count()
        uint64_t overflow_count()
        uint64_t splits()
        size_t bytes()
    cdef cppclass RecentKeys:
        const IdRing& ring()
        const HintTable& table()
        const IdSeed& seed()
        size_t bytes()
    cdef cppclass Candidates:
        const vector[uint32_t]& suspects()
        void ask(const BloomView& filter, uint64_t run_stop) except +
        const vector[uint32_t]& wanted_pages(uint32_t block_count, uint64_t run_stop) except +
        void sift(
            const uint32_t* pages, size_t count, const uint8_t* bytes, uint32_t block_count, uint64_t run_stop
        ) except +
    cdef cppclass Window "engine::DedupWindow":
        Window(IdSeed, cbool timed, uint64_t within, uint64_t start, uint32_t chunk_bits, uint32_t hint_bits) except +
        const RecentKeys& recent()
        void limit_table_bytes(size_t limit_bytes)
        const Horizon& horizon()
        const HorizonState& committed_horizon()
        const Tally& committed_tally()
        const Tally& last_tally()
        uint64_t oldest()
        uint64_t committed()
        uint64_t tail()
        uint64_t oldest_token()
        uint64_t oldest_token_stop()
        cbool is_open(uint64_t token)
        uint64_t probe(const IdBatch& batch, cbool has_runs) except +
        Candidates& candidates()
        Id suspect_id(uint32_t suspect)
        void resolve(const uint64_t* positions) except +
        vector[Sighting] duplicates() except +
        void commit()
        void abort(uint64_t token)
        void seal_below(uint64_t position)
        void replay(const uint8_t* ids, size_t count) except +
        void restore_horizon(const HorizonState& state, deque[Mark] marks, const Tally& tally)

cdef uint64_t FOREVER = 0xFFFFFFFFFFFFFFFFULL

Counts = namedtuple("Counts", "rows duplicates null_keys recent_hits run_hits run_lookups")


cdef object counts_of(const Tally& tally):
    return Counts(tally.rows, tally.duplicates, tally.null_keys, tally.recent_hits, tally.run_hits, tally.run_lookups)


cdef class Borrowed:
    """A contiguous buffer of somebody else, held for the length of a call."""

    cdef Py_buffer view
    cdef bint held

    def __cinit__(self):
        self.held = False

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    cdef const uint8_t* take(self, object source, Py_ssize_t size, str what) except? NULL:
        """The address of at least `size` bytes. An empty buffer may give NULL, which is not an error."""
        if source is None:
            return NULL
        PyObject_GetBuffer(source, &self.view, PyBUF_SIMPLE)
        self.held = True
        if self.view.len < size:
            raise ValueError(f"{what}: {size} bytes are needed, the buffer has {self.view.len}")
        return <const uint8_t*> self.view.buf


cdef class DedupWindow:
    """Which of the rows were seen before, among the last `within` keyed rows or within a time on their own clock.

    Args:
      seed: 16 secret bytes; keys' places in memory and in sealed runs depend on them.
      within: the window: so many rows, or clock units if `timed`; None is for ever.
      timed: the window is one of time; every probe then gives a clock.
      start: the position of the first row.
      chunk_ids: ids that the ring takes from memory at once; a power of two.
      hint_bits: fingerprint bits in use; fewer than 32 make keys collide, for tests.
      table_bytes: the hint table grows no larger but for overflow buckets, and fills up instead; None is no limit.
    """

    cdef Window* window
    cdef bytearray mask
    cdef uint64_t last         # the token of the last probe
    cdef list filters          # (Borrowed | None) beside runs, oldest first
    cdef vector[SealedRun] runs
    cdef Py_ssize_t asked      # how many the last suspects were, -1 = none
    cdef Py_ssize_t sifting    # the run of the last `wanted_pages`, -1 = none

    def __cinit__(
        self, *, bytes seed not None, within=None, bint timed=False, uint64_t start=0, uint32_t chunk_ids=65536,
        uint32_t hint_bits=32, table_bytes=None
    ):
        cdef uint32_t chunk_bits = 0
        if len(seed) != 16:
            raise ValueError(f"seed: 16 bytes are needed, not {len(seed)}")
        while chunk_bits < 24 and (<uint32_t> 1 << chunk_bits) < chunk_ids:
            chunk_bits += 1
        if chunk_ids != (<uint32_t> 1 << chunk_bits):
            raise ValueError(f"chunk_ids must be a power of two up to 2**24, not {chunk_ids}")
        if not 1 <= hint_bits <= 32:
            raise ValueError(f"hint_bits must be 1 to 32, not {hint_bits}")
        cdef uint64_t span = FOREVER if within is None else within
        cdef size_t limit_bytes = <size_t> -1 if table_bytes is None else table_bytes
        self.filters = []
        self.asked = self.sifting = -1
        self.window = new Window(
            load_seed(<const uint8_t*> PyBytes_AS_STRING(seed)), timed and within is not None, span, start,
            chunk_bits, hint_bits
        )
        self.window.limit_table_bytes(limit_bytes)

    def __dealloc__(self):
        del self.window

    def probe(self, ids, Py_ssize_t rows, *, keyed=None, selection=None, clock=None):
        """Mark rows as seen and tell which are wanted; gives (token, mask): uint8 a row, 1 = not a duplicate.

        `ids` has 16 bytes a row, `keyed` and `selection` one (0 = no key, 0 = not wanted anyway), `clock` an int64.
        Rows that only sealed runs can judge stand as wanted until `resolve` has answered the `suspects` of every run.

        Raises: ValueError: a buffer is too small; MemoryError: nothing was marked.
        """
        cdef IdBatch batch
        cdef uint64_t token
        cdef Borrowed borrowed_ids = Borrowed(), borrowed_keyed = Borrowed(), borrowed_selection = Borrowed()
        cdef Borrowed borrowed_clock = Borrowed()
        if self.window.horizon().timed() and clock is None and rows:
            raise ValueError("a window of time needs a clock value for every row")
        cdef bytearray mask = bytearray(rows)
        batch.rows = <size_t> rows
        batch.ids = borrowed_ids.take(ids, rows * 16, "ids")
        batch.keyed = borrowed_keyed.take(keyed, rows, "keyed")
        batch.selection = borrowed_selection.take(selection, rows, "selection")
        batch.clock = <const int64_t*> borrowed_clock.take(clock, rows * 8, "clock")
        batch.mask = <uint8_t*> <char*> mask
        cdef cbool has_runs = self.runs.size() > 0
        self.asked = self.sifting = -1
        self.mask = mask
        self.last = 0
        with nogil:
            token = self.window.probe(batch, has_runs)
        self.last = token
        return token, mask

    def suspects(self, Py_ssize_t run):
        """Ids (16 bytes each, in the order of runs) of the last probe that run `run` (0 = oldest) must be asked for; ask
        the newest first. Raises IndexError.
        """
        cdef SealedRun asked = self._run(run)
        self.sifting = -1
        with nogil:
            self.window.candidates().ask(asked.filter, asked.stop)
        return self._suspects()

    def wanted_pages(self, Py_ssize_t run, uint32_t block_count):
        """Begin `suspects` for a run whose filter of so many blocks is not in memory: the pages (4 KiB) of it that
        `sift` must be given, as ascending uint32.
        """
        cdef SealedRun asked = self._run(run)
        cdef const vector[uint32_t]* pages
        self.asked = -1
        self.sifting = run
        with nogil:
            pages = &self.window.candidates().wanted_pages(block_count, asked.stop)
        return PyBytes_FromStringAndSize(<const char*> pages.data(), <Py_ssize_t> pages.size() * 4)

    def sift(self, Py_ssize_t run, uint32_t block_count, numbers, pages):
        """Go on with some of the wanted pages, in their order: their `numbers` as uint32, then their bytes."""
        if run < 0 or run != self.sifting:
            raise ValueError("sift goes on with the pages that were wanted of a run, and none are")
        cdef SealedRun asked = self._run(run)
        cdef Borrowed borrowed_numbers = Borrowed(), borrowed_pages = Borrowed()
        cdef const uint32_t* first = <const uint32_t*> borrowed_numbers.take(numbers, 0, "numbers")
        cdef size_t count = <size_t> borrowed_numbers.view.len // 4
        cdef const uint8_t* bits = borrowed_pages.take(pages, <Py_ssize_t> count * 4096, "pages")
        with nogil:
            self.window.candidates().sift(first, count, bits, block_count, asked.stop)

    def sifted(self):
        """The suspects, once all wanted pages were sifted."""
        if self.sifting < 0:
            raise ValueError("no pages were wanted")
        self.sifting = -1
        return self._suspects()

    cdef SealedRun _run(self, Py_ssize_t run) except *:
        if not 0 <= run < <Py_ssize_t> self.runs.size():
            raise IndexError(f"there is no run {run}")
        return self.runs[run]

    cdef bytes _suspects(self):
        cdef const vector[uint32_t]* found = &self.window.candidates().suspects()
        cdef Py_ssize_t count = <Py_ssize_t> found.size()
        cdef bytes ids = PyBytes_FromStringAndSize(NULL, count * 16)
        cdef Id* target = <Id*> PyBytes_AS_STRING(ids)
        cdef Py_ssize_t i
        for i in range(count):
            target[i] = self.window.suspect_id(found[0][i])
        self.asked = count
        return ids

    def resolve(self, positions):
        """Answer the last `suspects`: uint64 a suspect, where the run saw it last, 2**64 - 1 = nowhere."""
        cdef Borrowed borrowed = Borrowed()
        if self.asked < 0:
            raise ValueError("resolve answers suspects, and nothing was asked")
        cdef const uint64_t* found = <const uint64_t*> borrowed.take(positions, self.asked * 8, "positions")
        self.window.resolve(found)
        self.asked = self.sifting = -1

    def last_counts(self):
        """Counts of the last probe, while its token is open."""
        if self.window.oldest_token() == 0:
            raise ValueError("no token is open")
        return counts_of(self.window.last_tally())

    def duplicates(self):
        """Pairs (position, previous) of uint64: where the duplicates of the last probe are, in no order, and where their
        ids were sighted before. Raises ValueError unless its token is open.
        """
        if not self.window.is_open(self.last):
            raise ValueError("the last probe's token is not open")
        cdef vector[Sighting] found
        with nogil:
            found = self.window.duplicates()
        return PyBytes_FromStringAndSize(<const char*> found.data(), <Py_ssize_t> (found.size() * sizeof(Sighting)))

    def commit(self, uint64_t token):
        """Make the marks of `token` final. Raises ValueError unless it is the oldest open token."""
        if token == 0 or token != self.window.oldest_token():
            raise ValueError(f"token {token} is not the oldest open token; tokens commit in the order of their probes")
        with nogil:
            self.window.commit()

    def abort(self, uint64_t token):
        """Take back the marks of `token` and of every later one. Raises ValueError unless it is open."""
        if not self.window.is_open(token):
            raise ValueError(f"token {token} is not open")
        self.asked = self.sifting = -1
        with nogil:
            self.window.abort(token)

    def set_runs(self, runs):
        """Name the sealed runs, oldest first: (first position, stop position, filter blocks or None)."""
        cdef vector[SealedRun] described
        cdef SealedRun run
        cdef Borrowed borrowed
        filters = []
        for first, stop, blocks in runs:
            borrowed = Borrowed()
            run.first = first
            run.stop = stop
            run.filter.blocks = borrowed.take(blocks, 32, "filter")
            run.filter.block_count = 0 if blocks is None else <uint32_t> (borrowed.view.len // 32)
            described.push_back(run)
            filters.append(borrowed)
        self.runs = described
        self.filters = filters
        self.asked = self.sifting = -1

    def seal_below(self, uint64_t position):
        """Forget recent keys last seen below `position`: a run named by `set_runs` answers for them."""
        if position > self.window.committed():
            raise ValueError("only committed positions can be sealed")
        with nogil:
            self.window.seal_below(position)

    def ids(self, uint64_t start, uint64_t stop):
        """The ids of the positions [start, stop), 16 bytes each, of those still in the ring."""
        if not self.window.recent().ring().head() <= start <= stop <= self.window.tail():
            raise ValueError(f"positions {start} to {stop} are not in memory")
        cdef bytes ids = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> (stop - start) * 16)
        cdef uint8_t* target = <uint8_t*> PyBytes_AS_STRING(ids)
        with nogil:
            self.window.recent().ring().copy_out(start, stop, target)
        return ids

    def replay(self, ids):
        """Mark ids (16 bytes each) as seen and committed at the next positions: for a window that is being restored."""
        cdef Borrowed borrowed = Borrowed()
        if self.window.oldest_token():
            raise ValueError("a window with open tokens cannot be restored into")
        cdef const uint8_t* start = borrowed.take(ids, 0, "ids")
        cdef size_t count = <size_t> borrowed.view.len // 16
        with nogil:
            self.window.replay(start, count)

    def horizon_state(self):
        """The committed horizon, clock and marks, and the committed counts, as JSON-able values."""
        cdef HorizonState state = self.window.committed_horizon()
        cdef deque[Mark] marks = self.window.horizon().pending(state)
        cdef size_t i
        listed = [[marks[i].position, marks[i].clock] for i in range(marks.size())]
        return {
            "horizon": state.position, "clock": state.now if state.running else None, "mark_base": state.mark_base,
            "marks": listed, "counts": list(counts_of(self.window.committed_tally())),
        }

    def restore_horizon(self, state):
        """Take over what `horizon_state` gave."""
        cdef HorizonState horizon
        cdef deque[Mark] marks
        cdef Mark mark
        cdef Tally tally
        horizon.position = state["horizon"]
        horizon.running = state["clock"] is not None
        horizon.now = state["clock"] or 0
        horizon.mark_base = state["mark_base"]
        for position, clock in state["marks"]:
            mark.position = position
            mark.clock = clock
            marks.push_back(mark)
        tally.rows, tally.duplicates, tally.null_keys = state["counts"][:3]
        tally.recent_hits, tally.run_hits, tally.run_lookups = state["counts"][3:]
        self.window.restore_horizon(horizon, marks, tally)

    @property
    def oldest(self):
        """Positions from here on are answered by the recent keys."""
        return self.window.oldest()

    @property
    def committed(self):
        """The position after the last committed row."""
        return self.window.committed()

    @property
    def oldest_token(self):
        """(the token that is committed next, the position after its last row), or None."""
        cdef uint64_t token = self.window.oldest_token()
        return (token, self.window.oldest_token_stop()) if token else None

    @property
    def tail(self):
        """The position of the next keyed row."""
        return self.window.tail()

    @property
    def horizon(self):
        """Committed sightings below this position no longer count."""
        return self.window.committed_horizon().position

    @property
    def counts(self):
        """Counts of all committed probes."""
        return counts_of(self.window.committed_tally())

    @property
    def recent_bytes(self):
        """Memory of the ring and the hint table."""
        return self.window.recent().bytes()

    @property
    def buckets(self):
        """(buckets, overflow buckets, splits so far) of the hint table."""
        return (
            self.window.recent().table().bucket_count(),
            self.window.recent().table().overflow_count(),
            self.window.recent().table().splits(),
        )
