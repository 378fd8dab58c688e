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

// The consumer sleeps whenever the ring is empty. The producer pauses at pseudo-random places, so that both meet around
// every step of the protocol, and often goes on only when its item was taken: then nothing else can make up for a lost
// wake-up, and the sleep lasts to its limit. Returns items seen in order before that: `items` if all is well.
inline uint64_t ring_stress_sleep(uint64_t items, uint64_t capacity, uint64_t seed, double limit_s) {
    using Clock = std::chrono::steady_clock;
    SpscRing<uint64_t> ring(capacity);
    Sleeper sleeper;
    uint64_t seen = 0;
    std::atomic<bool> given_up{false};
    std::thread consumer([&] {
        uint64_t item = 0;
        for (;;) {
            const auto start = Clock::now();
            if (sleeper.wait(ring, limit_s) != Wait::ready) break;
            if (std::chrono::duration<double>(Clock::now() - start).count() >= limit_s) break;
            if (!ring.pop(item) || item != seen) break;
            ++seen;
        }
        given_up.store(true);
    });
    uint64_t random = seed | 1;
    for (uint64_t next = 0; next < items && !given_up.load();) {
        if (ring.push(next)) {
            ++next;
            if (sleeper.take()) sleeper.wake();
        }
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        while (random % 4 && ring.size() && !given_up.load()) std::this_thread::yield();
        for (volatile uint64_t pause = random % 8 ? random / 8 % 128 : 0; pause; pause = pause - 1) {}
    }
    sleeper.close();
    consumer.join();
    return seen;
}

}  // namespace engine
