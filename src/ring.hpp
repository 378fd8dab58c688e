// A bounded ring from one producer thread to one consumer thread, and the eventcount by which the consumer sleeps.
//
// Laws:
//  - One thread pushes, one thread pops; which threads these are may change only with a happens-before between them.
//  - Indices are 64-bit, only grow, and wrap modulo 2^64; index & mask is the slot. `tail - head` is the number of
//    items, always in [0, capacity]. head <= cached_tail <= tail and cached_head <= head (modulo 2^64).
//  - A slot belongs to the producer from the consumer's release of it until the producer publishes it, else to the
//    consumer: tail and head are stored with release and read by the other side with acquire.
//  - No lost wake-up: the consumer arms, fences, looks again, sleeps; the producer publishes, fences, looks at the
//    flag. The fences are sequentially consistent, so at least one side sees the other's store. A model of these lines,
//    tests/stress/ring_sleep.pml, is searched through: who changes them changes it.
//
// Sources: Lamport, "Specifying Concurrent Program Modules" (1983): the ring needs no lock with one reader and one
// writer. Giacomoni, Moseley and Vachharajani, "FastForward for Efficient Pipeline Parallelism" (2008), and Vyukov's
// SPSC queue: each side must keep off the other's cache line, here by a private copy of the opposite index. Thompson et
// al., "Disruptor" (2011): monotonic indices, claim and publish in batches. Vyukov's "eventcount" (2008): the sleep.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

namespace engine {

// Two lines of 64 bytes: adjacent-line prefetchers pull pairs, and some ARM cores have lines of 128 bytes.
constexpr size_t false_sharing_bytes = 128;

template <typename T>
struct alignas(false_sharing_bytes) Padded {
    T value{};
};

// Whether the consumer is about to sleep. Several producers may share one flag: one of them is told to wake.
class WakeFlag {
public:
    // Consumer: afterwards look at every ring once more before sleeping.
    void arm() noexcept {
        armed_.value.store(1, std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_seq_cst);
    }

    void disarm() noexcept { armed_.value.store(0, std::memory_order_relaxed); }

    // Producer, after publishing: true for the one caller that must wake the consumer.
    bool take() noexcept {
        std::atomic_thread_fence(std::memory_order_seq_cst);
        return armed_.value.load(std::memory_order_relaxed) != 0 &&
               armed_.value.exchange(0, std::memory_order_acq_rel) != 0;
    }

private:
    Padded<std::atomic<uint32_t>> armed_;
};

template <typename T>
class SpscRing {
public:
    static constexpr uint64_t max_capacity = uint64_t(1) << 32;

    // Capacity is rounded up to a power of two. Indices start at `first_index`, so that tests reach their wrap-around.
    // REQUIRES: 1 <= capacity <= max_capacity. Throws std::bad_alloc.
    explicit SpscRing(uint64_t capacity, uint64_t first_index = 0) {
        uint64_t size = 1;
        while (size < capacity) size *= 2;
        slots_ = std::make_unique<T[]>(static_cast<size_t>(size));
        mask_ = size - 1;
        producer_.value.tail.store(first_index, std::memory_order_relaxed);
        producer_.value.cached_head = first_index;
        consumer_.value.head.store(first_index, std::memory_order_relaxed);
        consumer_.value.cached_tail = first_index;
    }

    uint64_t capacity() const noexcept { return mask_ + 1; }

    // Any thread; exact on either side's own thread while the other side rests.
    uint64_t size() const noexcept {
        const uint64_t head = consumer_.value.head.load(std::memory_order_acquire);
        return producer_.value.tail.load(std::memory_order_acquire) - head;
    }

    // ---- producer ----

    // Slots that may be written, at most `wanted`: to_write(0) ... to_write(n - 1), then publish(n).
    uint64_t claim(uint64_t wanted) noexcept {
        Producer& own = producer_.value;
        const uint64_t tail = own.tail.load(std::memory_order_relaxed);
        uint64_t free = capacity() - (tail - own.cached_head);
        if (free < wanted) {
            own.cached_head = consumer_.value.head.load(std::memory_order_acquire);
            free = capacity() - (tail - own.cached_head);
        }
        return free < wanted ? free : wanted;
    }

    T& to_write(uint64_t at) noexcept {
        return slots_[static_cast<size_t>((producer_.value.tail.load(std::memory_order_relaxed) + at) & mask_)];
    }

    void publish(uint64_t count) noexcept {
        const uint64_t tail = producer_.value.tail.load(std::memory_order_relaxed);
        producer_.value.tail.store(tail + count, std::memory_order_release);
    }

    bool push(T item) noexcept {
        if (claim(1) == 0) return false;
        to_write(0) = item;
        publish(1);
        return true;
    }

    // ---- consumer ----

    // Items that may be read, at most `wanted`: to_read(0) ... to_read(n - 1), then release(n).
    uint64_t ready(uint64_t wanted) noexcept {
        Consumer& own = consumer_.value;
        const uint64_t head = own.head.load(std::memory_order_relaxed);
        uint64_t items = own.cached_tail - head;
        if (items < wanted) {
            own.cached_tail = producer_.value.tail.load(std::memory_order_acquire);
            items = own.cached_tail - head;
        }
        return items < wanted ? items : wanted;
    }

    T& to_read(uint64_t at) noexcept {
        return slots_[static_cast<size_t>((consumer_.value.head.load(std::memory_order_relaxed) + at) & mask_)];
    }

    void release(uint64_t count) noexcept {
        const uint64_t head = consumer_.value.head.load(std::memory_order_relaxed);
        consumer_.value.head.store(head + count, std::memory_order_release);
    }

    bool pop(T& item) noexcept {
        if (ready(1) == 0) return false;
        item = to_read(0);
        release(1);
        return true;
    }

private:
    struct Producer {
        std::atomic<uint64_t> tail{0};
        uint64_t cached_head = 0;
    };
    struct Consumer {
        std::atomic<uint64_t> head{0};
        uint64_t cached_tail = 0;
    };

    std::unique_ptr<T[]> slots_;
    uint64_t mask_ = 0;
    Padded<Producer> producer_;
    Padded<Consumer> consumer_;
};

enum class Wait : int { ready = 0, closed = 1, timeout = 2 };

// The consumer's bed beside a ring: sleep until there is an item, the ring is closed, or time is up.
class Sleeper {
public:
    static constexpr double forever_s = 1e9;

    // Producer, after publishing: true for the one that must call `wake`.
    bool take() noexcept { return flag_.take(); }

    void wake() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            signalled_ = true;
        }
        condition_.notify_one();
    }

    // Any thread, any number of times.
    void close() {
        closed_.store(true, std::memory_order_release);
        if (take()) wake();
    }

    bool closed() const noexcept { return closed_.load(std::memory_order_acquire); }

    // Consumer: how often it lay down.
    uint64_t sleeps() const noexcept { return sleeps_; }

    // Consumer, without the GIL. What lies in a closed ring is still ready. From `forever_s` on there is no time limit.
    template <typename Ring>
    Wait wait(Ring& ring, double timeout_s) {
        const bool limited = timeout_s < forever_s;
        const auto deadline = std::chrono::steady_clock::now() +
            std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                std::chrono::duration<double>(limited ? timeout_s : 0.0));
        for (;;) {
            const bool was_closed = closed();  // before the look: nothing is pushed after the close
            if (ring.ready(1)) return Wait::ready;
            if (was_closed) return Wait::closed;
            flag_.arm();
            if (ring.ready(1) || closed()) {
                flag_.disarm();
                continue;
            }
            // A producer that took the flag earlier may signal late: that is a spurious wake-up, and we look again.
            ++sleeps_;
            std::unique_lock<std::mutex> lock(mutex_);
            const auto woken = [this] { return signalled_; };
            if (!limited) {
                condition_.wait(lock, woken);
            } else if (!condition_.wait_until(lock, deadline, woken)) {
                flag_.disarm();
                return ring.ready(1) ? Wait::ready : Wait::timeout;
            }
            signalled_ = false;
        }
    }

private:
    WakeFlag flag_;
    std::mutex mutex_;
    std::condition_variable condition_;
    bool signalled_ = false;
    std::atomic<bool> closed_{false};
    uint64_t sleeps_ = 0;
};

}  // namespace engine
