// The loops that a partition's plan is made by: hash -> partition -> output row, for each level of vector instructions.
//
// Laws
// - All levels give the same plan: each is the same loop in plain C++, compiled for its level.
// - Output rows are counted in stripes of the input, side by side: where nearly all rows have one key, each count waits
//   for the one before, and four such chains cost a third of one.
#pragma once

#include <cstdint>
#include <vector>

#include "simd.hpp"

namespace engine {

constexpr int kKeyGroupBits = 15;
constexpr int64_t kStripes = 4;

inline uint16_t key_group_of(uint64_t hash) { return static_cast<uint16_t>(hash >> (64 - kKeyGroupBits)); }

ENGINE_INLINE uint16_t partition_of(uint64_t hash, uint32_t partitions) {
    return static_cast<uint16_t>(static_cast<uint32_t>(hash >> (64 - kKeyGroupBits)) * partitions >> kKeyGroupBits);
}

struct PlanLoops {
    void (*destinations)(const uint64_t* hashes, int64_t count, uint32_t partitions, uint16_t* destinations);
    // positions[j] += starts[destinations[j]]
    void (*add_starts)(const uint16_t* destinations, int64_t count, const uint32_t* starts, uint32_t* positions);
};

ENGINE_INLINE void find_destinations(const uint64_t* hashes, int64_t count, uint32_t partitions,
                                     uint16_t* __restrict destinations) {
    for (int64_t j = 0; j < count; ++j) destinations[j] = partition_of(hashes[j], partitions);
}

ENGINE_INLINE void add_starts_to(const uint16_t* destinations, int64_t count, const uint32_t* starts,
                                 uint32_t* __restrict positions) {
    for (int64_t j = 0; j < count; ++j) positions[j] += starts[destinations[j]];
}

#define ENGINE_PLAN_LOOPS(LEVEL, TARGET)                                                                        \
    TARGET inline void destinations_##LEVEL(const uint64_t* hashes, int64_t count, uint32_t partitions,         \
                                            uint16_t* destinations) {                                           \
        find_destinations(hashes, count, partitions, destinations);                                             \
    }                                                                                                           \
    TARGET inline void add_starts_##LEVEL(const uint16_t* destinations, int64_t count, const uint32_t* starts,  \
                                          uint32_t* positions) {                                                \
        add_starts_to(destinations, count, starts, positions);                                                  \
    }

ENGINE_PLAN_LOOPS(scalar, )
#ifdef ENGINE_X86
ENGINE_PLAN_LOOPS(avx2, ENGINE_AVX2)
ENGINE_PLAN_LOOPS(avx512, ENGINE_AVX512)
#endif
#undef ENGINE_PLAN_LOOPS

// On ARM every compiler has the vectors of its one level anyway.
inline PlanLoops plan_loops_of(SimdLevel level) {
#ifdef ENGINE_X86
    if (level == SimdLevel::avx512) return {destinations_avx512, add_starts_avx512};
    if (level == SimdLevel::avx2) return {destinations_avx2, add_starts_avx2};
#endif
    (void)level;
    return {destinations_scalar, add_starts_scalar};
}

inline const PlanLoops& plan_loops() {
    static const PlanLoops chosen = plan_loops_of(simd_level());
    return chosen;
}

// positions[j] = how many rows of j's stripe went to j's partition before; `counts` holds kStripes rows of counts, zero.
inline void rank_rows(const uint16_t* destinations, int64_t count, uint32_t partitions, uint32_t* counts,
                      uint32_t* positions) {
    const int64_t stripe = count / kStripes;
    uint32_t* const second = counts + partitions;
    uint32_t* const third = second + partitions;
    uint32_t* const fourth = third + partitions;
    for (int64_t j = 0; j < stripe; ++j) {
        positions[j] = counts[destinations[j]]++;
        positions[j + stripe] = second[destinations[j + stripe]]++;
        positions[j + 2 * stripe] = third[destinations[j + 2 * stripe]]++;
        positions[j + 3 * stripe] = fourth[destinations[j + 3 * stripe]]++;
    }
    for (int64_t j = kStripes * stripe; j < count; ++j) positions[j] = fourth[destinations[j]]++;
}

// Fills `positions` with the output row of each row; returns where each partition starts, and the end.
inline std::vector<int64_t> place_rows(const uint16_t* destinations, int64_t count, uint32_t partitions,
                                       uint32_t* positions) {
    std::vector<uint32_t> counts(static_cast<size_t>(kStripes * partitions));
    rank_rows(destinations, count, partitions, counts.data(), positions);
    std::vector<int64_t> starts(partitions + 1);
    uint32_t next = 0;
    for (uint32_t p = 0; p < partitions; ++p) {
        starts[p] = next;
        for (uint32_t* stripe = counts.data() + p; stripe < counts.data() + counts.size(); stripe += partitions) {
            const uint32_t rows = *stripe;
            *stripe = next;
            next += rows;
        }
    }
    starts[partitions] = next;
    const int64_t stripe = count / kStripes;
    for (int64_t s = 0; s < kStripes; ++s) {
        const int64_t first = s * stripe;
        plan_loops().add_starts(destinations + first, (s + 1 < kStripes ? first + stripe : count) - first,
                                counts.data() + s * partitions, positions + first);
    }
    return starts;
}

}  // namespace engine
