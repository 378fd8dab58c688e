/* The sleep of the ring's consumer: SpscRing, WakeFlag and Sleeper of src/ring.hpp, access by access, with their names.
 *
 * One producer pushes ITEMS items, wakes or does not (one wake-up may follow many pushes), and closes. One consumer
 * waits, sometimes only until its time is up, and takes what there is. Searching all interleavings proves
 *   - no lost wake-up: whoever waits for ever while the other has ended is an invalid end state;
 *   - every item comes out once, in order, and whole (the assertions);
 *   - the producer never overwrites what was not read (the same assertions: the ring is smaller than ITEMS).
 *
 * Memory: every thread has a store buffer. A relaxed store may become visible after later stores to other places, a
 * release store only after everything before it; every thread sees its own stores. A sequentially consistent fence
 * drains the buffer. Mutex and exchange act on memory, with release and acquire. Loads are not reordered, so what the
 * release of `head` orders, the reads before it, is left to the thread sanitizer.
 *
 * Each of these switches takes one line of the code away and must make the search find an error:
 *   NO_PRODUCER_FENCE NO_CONSUMER_FENCE NO_SECOND_LOOK RELAXED_PUBLISH UNLATCHED_SIGNAL
 */
#ifndef ITEMS
#define ITEMS 3
#endif
#ifndef TIMEOUTS
#define TIMEOUTS 1
#endif
#define CAPACITY 2
#define SLOT(index) ((index) % CAPACITY)

mtype = { TAIL, HEAD, ARMED, CLOSED, SLOTS };

/* What all threads see: the C++ members of the same names. */
byte tail, head;
bit armed, closed;
byte slots[CAPACITY];
bit signalled;                /* plain: only touched under the mutex */
bit mutex, in_condition;      /* in_condition: the consumer is in condition_.wait */

/* Stores on their way: place, index, value, whether it is a release. */
chan produced = [4] of { mtype, byte, byte, bit };
chan consumed = [4] of { mtype, byte, byte, bit };

#define RELAXED 0
#define RELEASE 1
#define store(buffer, place, index, value, order) buffer!place, index, value, order
#define fence(buffer) empty(buffer)

#ifdef RELAXED_PUBLISH
#define PUBLISH_ORDER RELAXED
#else
#define PUBLISH_ORDER RELEASE
#endif

/* WakeFlag::take, then Sleeper::wake. */
inline take_and_wake() {
#ifndef NO_PRODUCER_FENCE
    fence(produced);
#endif
    if
    :: armed == 0
    :: else ->
        atomic { empty(produced); taken = armed; armed = 0 };   /* exchange, acq_rel */
        if
        :: taken ->
            atomic { mutex == 0; mutex = 1 };
            signalled = 1;
            atomic { empty(produced); mutex = 0 };
            atomic {                                            /* condition_.notify_one */
                in_condition = 0;
#ifdef UNLATCHED_SIGNAL
                signalled = 0;
#endif
            }
        :: else
        fi
    fi;
    taken = 0
}

active proctype Producer() {
    byte own_tail, cached_head;
    bit taken;
    do
    :: own_tail < ITEMS ->
        if                                                      /* claim(1) */
        :: own_tail - cached_head < CAPACITY
        :: else ->
            cached_head = head;
            if
            :: own_tail - cached_head < CAPACITY
            :: else ->
                take_and_wake();
                head != cached_head;                            /* full: again when the consumer has released */
                cached_head = head
            fi
        fi;
        store(produced, SLOTS, SLOT(own_tail), own_tail + 1, RELAXED);
        own_tail++;
        store(produced, TAIL, 0, own_tail, PUBLISH_ORDER);      /* publish(1) */
        if
        :: take_and_wake()
        :: skip                                                 /* one wake-up for many pushes */
        fi
    :: else -> break
    od;
    store(produced, CLOSED, 0, 1, RELEASE);                     /* close() */
    take_and_wake()
}

/* ring.ready(1): into `items`. */
inline ready() {
    if
    :: cached_tail == own_head -> cached_tail = tail
    :: else
    fi;
    items = cached_tail - own_head
}

inline arm() {
    store(consumed, ARMED, 0, 1, RELAXED);
#ifndef NO_CONSUMER_FENCE
    fence(consumed)
#else
    skip
#endif
}

inline disarm() {
    store(consumed, ARMED, 0, 0, RELAXED)
}

active proctype Consumer() {
    byte own_head, cached_tail, items, item, timeouts;
    bit was_closed, is_closed;

wait:
    was_closed = closed;
    ready();
    if
    :: items -> goto take
    :: else
    fi;
    if
    :: was_closed -> goto ended
    :: else
    fi;
    arm();
#ifndef NO_SECOND_LOOK
    ready();
    if
    :: items -> is_closed = 0
    :: else -> is_closed = closed
    fi;
    if
    :: items || is_closed -> disarm(); goto wait
    :: else
    fi;
#endif
    atomic { mutex == 0; mutex = 1 };
sleep:
    if
    :: signalled -> goto woken
    :: else
    fi;
    atomic { empty(consumed); in_condition = 1; mutex = 0 };
    if
    :: in_condition == 0 -> atomic { mutex == 0; mutex = 1 }; goto sleep
    :: timeouts < TIMEOUTS ->                                   /* wait_until: time is up */
        timeouts++;
        atomic { mutex == 0; mutex = 1; in_condition = 0 };
        if
        :: signalled -> goto woken
        :: else
        fi;
        disarm();
        ready();
        atomic { empty(consumed); mutex = 0 };
        goto wait                                               /* the caller tries again */
    fi;
woken:
    signalled = 0;
    atomic { empty(consumed); mutex = 0 };
    goto wait;

take:
    item = slots[SLOT(own_head)];
    assert(item == own_head + 1);
    own_head++;
    store(consumed, HEAD, 0, own_head, RELEASE);                /* release(1) */
    goto wait;

ended:
    assert(own_head == ITEMS)
}

/* Stores become visible: the oldest at any time, a relaxed one to another place even before it. */
#define arrives(buffer) \
    :: atomic { buffer?TAIL, index, value, _ -> tail = value } \
    :: atomic { buffer?HEAD, index, value, _ -> head = value } \
    :: atomic { buffer?CLOSED, index, value, _ -> closed = value } \
    :: atomic { buffer??TAIL, index, value, RELAXED -> tail = value } \
    :: atomic { buffer??ARMED, index, value, RELAXED -> armed = value } \
    :: atomic { buffer??SLOTS, 0, value, RELAXED -> slots[0] = value } \
    :: atomic { buffer??SLOTS, 1, value, RELAXED -> slots[1] = value }

active proctype Memory() {
    byte index, value;
end:
    do
    arrives(produced)
    arrives(consumed)
    od
}
