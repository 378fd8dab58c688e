// Hands items over to a thread that sleeps whenever there is none, and prints what came of it: seen sleeps wakes.
// Usage: ring_stress ITEMS BATCH CAPACITY PAUSE_EVERY SEED LIMIT_S. Built by test_ring_stress.py in several ways.
#include <cstdio>
#include <cstdlib>

#include "ring_trial.hpp"

int main(int count, char** arguments) {
    if (count != 7) return 2;
    const auto number = [&](int at) { return std::strtoull(arguments[at], nullptr, 10); };
    const engine::SleepTrial trial = engine::ring_stress_sleep(number(1), number(2), number(3), number(4), number(5),
                                                               std::strtod(arguments[6], nullptr));
    std::printf("%llu %llu %llu\n", static_cast<unsigned long long>(trial.seen),
                static_cast<unsigned long long>(trial.sleeps), static_cast<unsigned long long>(trial.wakes));
    return 0;
}
