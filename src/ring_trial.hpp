// Two C++ threads around one ring: its speed, and its sleep under stress. Python threads take turns on the GIL and would
// hide a wrong memory order; these do not.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "ring.hpp"

namespace engine {

// Hands the numbers 0 ... items - 1 over in batches. Returns nanoseconds an item, or -1 if one was lost or misplaced.
inline double ring_benchmark_handover(uint64_t items, uint64_t batch, uint64_t capacity) {
    SpscRing<uint64_t> ring(capacity);
    bool in_order = true;
    const auto start = std::chrono::steady_clock::now();
    std::thread consumer([&] {
        for (uint64_t expected = 0; expected < items;) {
            const uint64_t count = ring.ready(batch);
            if (count == 0) std::this_thread::yield();
            for (uint64_t at = 0; at < count; ++at) in_order &= ring.to_read(at) == expected++;
            ring.release(count);
        }
    });
    for (uint64_t next = 0; next < items;) {
        const uint64_t left = items - next;
        const uint64_t count = ring.claim(left < batch ? left : batch);
        if (count == 0) std::this_thread::yield();
        for (uint64_t at = 0; at < count; ++at) ring.to_write(at) = next++;
        ring.publish(count);
    }
    consumer.join();
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
    return in_order ? took.count() / static_cast<double>(items ? items : 1) : -1.0;
}

// Tells the core that this thread spins: it polls less, and the other side gets the cache line sooner.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Pops without sleeping. Gives the core away now and then: with one core nothing would happen for a time slice.
inline uint64_t spin_pop(SpscRing<uint64_t>& ring) {
    uint64_t item = 0;
    for (uint32_t tries = 1; !ring.pop(item); ++tries) {
        relax();
        if (tries % 4096 == 0) std::this_thread::yield();
    }
    return item;
}

// Sends numbers to a thread that sends them back, one at a time. Returns nanoseconds a round trip, or -1 if one came
// back wrong.
inline double ring_benchmark_round_trip(uint64_t trips) {
    SpscRing<uint64_t> there(64);
    SpscRing<uint64_t> back(64);
    std::thread echo([&] {
        for (uint64_t trip = 0; trip < trips; ++trip) back.push(spin_pop(there));
    });
    bool right = true;
    const auto start = std::chrono::steady_clock::now();
    for (uint64_t trip = 0; trip < trips; ++trip) {
        there.push(trip);
        right &= spin_pop(back) == trip;
    }
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
    echo.join();
    return right ? took.count() / static_cast<double>(trips ? trips : 1) : -1.0;
}

// Two plain words, written without any order of their own: a reader that comes too early sees them differ.
struct TrialItem {
    uint64_t number = 0;
    uint64_t again = 0;
};

struct SleepTrial {
    uint64_t seen = 0;      // items that came whole and in order: all of them, if all is well
    uint64_t sleeps = 0;    // how often the consumer lay down
    uint64_t wakes = 0;     // how often the producer woke it
};

// The consumer sleeps whenever the ring is empty. The producer pauses at pseudo-random places, after one batch in
// `pause_every` (a power of two), so that both meet around every step of the protocol, and often goes on only when all
// was taken: then nothing else can make up for a lost wake-up, and the sleep lasts to its limit.
inline SleepTrial ring_stress_sleep(uint64_t items, uint64_t batch, uint64_t capacity, uint64_t pause_every,
                                    uint64_t seed, double limit_s) {
    using Clock = std::chrono::steady_clock;
    SpscRing<TrialItem> ring(capacity, 0 - items / 2);  // the indices wrap half way
    Sleeper sleeper;
    SleepTrial trial;
    std::atomic<bool> given_up{false};
    std::thread consumer([&] {
        for (bool whole = true; whole;) {
            const auto start = Clock::now();
            if (sleeper.wait(ring, limit_s) != Wait::ready) break;
            if (std::chrono::duration<double>(Clock::now() - start).count() >= limit_s) break;
            for (uint64_t count; whole && (count = ring.ready(batch)) != 0; ring.release(count)) {
                for (uint64_t at = 0; at < count && whole; ++at) {
                    const TrialItem item = ring.to_read(at);
                    whole = item.number == trial.seen && item.again == item.number;
                    trial.seen += whole;
                }
            }
        }
        given_up.store(true);
    });
    uint64_t random = seed | 1;
    for (uint64_t next = 0; next < items && !given_up.load(std::memory_order_relaxed);) {
        const uint64_t left = items - next;
        const uint64_t count = ring.claim(left < batch ? left : batch);
        if (count == 0) std::this_thread::yield();
        for (uint64_t at = 0; at < count; ++at, ++next) ring.to_write(at) = TrialItem{next, next};
        ring.publish(count);
        if (sleeper.take()) ++trial.wakes, sleeper.wake();
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        if (random >> 32 & (pause_every - 1)) continue;
        while (random % 4 && ring.size() && !given_up.load()) std::this_thread::yield();
        for (volatile uint64_t pause = random % 8 ? random / 8 % 128 : 0; pause; pause = pause - 1) {}
    }
    sleeper.close();
    consumer.join();
    trial.sleeps = sleeper.sleeps();
    return trial;
}

}  // namespace engine
