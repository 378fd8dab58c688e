// Where each row goes: key groups, partitions, and the plan that every column of a batch is scattered by.
//
// Laws
// - key group = top 15 bits of the key's hash (hash_value.hpp); partition = key_group * P >> 15. Both are persisted choices.
//   Other users of the hash (filters) take its lower bits, so that the two are independent.
// - A plan lists the wanted rows in input order. Rows of one partition keep that order: the partition is stable.
// - Partition p owns the output rows [starts[p], starts[p + 1]).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "hash.hpp"
#include "partition_loops.hpp"

namespace engine {

constexpr int kMaxPartitions = 1024;
constexpr int64_t kMaxPlanRows = int64_t{1} << 31;

inline void key_groups(const Batch& batch, uint16_t* groups) {
    const Block hashes_block(static_cast<size_t>(batch.length) * sizeof(uint64_t));
    uint64_t* hashes = hashes_block.as<uint64_t>();
    hash_rows(batch, hashes);
    for (int64_t row = 0; row < batch.length; ++row) groups[row] = key_group_of(hashes[row]);
}

struct Plan {
    int64_t count = 0;             // wanted rows
    bool all_wanted = true;
    Block sources;                 // uint32 a wanted row: its input row; none when all are wanted
    Block destinations;            // uint16 a wanted row: its partition; none when there is one partition
    Block positions;               // uint32 a wanted row: its output row; none when there is one partition
    std::vector<int64_t> starts;   // partitions + 1 output rows

    bool one_partition() const { return !positions; }
    int64_t source_of(int64_t j) const { return all_wanted ? j : sources.as<uint32_t>()[j]; }
    int64_t position_of(int64_t j) const { return one_partition() ? j : positions.as<uint32_t>()[j]; }
};

inline int64_t count_wanted(const uint8_t* selection, int64_t length) {
    int64_t count = 0;
    for (int64_t row = 0; row < length; ++row) count += selection[row] != 0;
    return count;
}

// A plan with one partition: the wanted rows, in order. `selection` is one byte a row, or nullptr for all.
inline Plan plan_gather(int64_t length, const uint8_t* selection) {
    if (length >= kMaxPlanRows) throw std::invalid_argument("a batch may have at most 2147483647 rows");
    Plan plan;
    plan.count = selection == nullptr ? length : count_wanted(selection, length);
    plan.all_wanted = plan.count == length;
    plan.starts = {0, plan.count};
    if (plan.all_wanted) return plan;
    // One slot more than wanted: the loop writes before it knows whether it advances.
    plan.sources = Block(static_cast<size_t>(plan.count + 1) * sizeof(uint32_t));
    uint32_t* sources = plan.sources.as<uint32_t>();
    int64_t next = 0;
    for (int64_t row = 0; row < length; ++row) {
        sources[next] = static_cast<uint32_t>(row);
        next += selection[row] != 0;
    }
    return plan;
}

// The index of the partition that owns all rows, or -1.
inline int only_partition(const Plan& plan) {
    for (size_t p = 0; p + 1 < plan.starts.size(); ++p) {
        if (plan.starts[p + 1] - plan.starts[p] == plan.count) return static_cast<int>(p);
    }
    return -1;
}

// `keys` holds the key columns of the whole batch.
inline Plan plan_partition(const Batch& keys, const uint8_t* selection, uint32_t partitions) {
    Plan plan = plan_gather(keys.length, selection);
    const size_t count = static_cast<size_t>(plan.count);
    const Block hashes_block(static_cast<size_t>(keys.length) * sizeof(uint64_t));
    uint64_t* hashes = hashes_block.as<uint64_t>();
    hash_rows(keys, hashes);
    plan.destinations = Block(count * sizeof(uint16_t));
    uint16_t* destinations = plan.destinations.as<uint16_t>();
    uint64_t* wanted = hashes;
    for (size_t j = 0; !plan.all_wanted && j < count; ++j) wanted[j] = hashes[plan.sources.as<uint32_t>()[j]];
    plan_loops().destinations(wanted, plan.count, partitions, destinations);
    plan.positions = Block(count * sizeof(uint32_t));
    plan.starts = place_rows(destinations, plan.count, partitions, plan.positions.as<uint32_t>());
    return plan;
}

// The input row of each output row: what a foreign `take` needs.
inline void invert_plan(const Plan& plan, int64_t* indices) {
    for (int64_t j = 0; j < plan.count; ++j) indices[plan.position_of(j)] = plan.source_of(j);
}

// wanted = selected before and mask true (a null mask is not wanted); returns how many rows are.
inline int64_t combine_selection(const uint8_t* selection, const Column& mask, uint8_t* wanted) {
    int64_t count = 0;
    for (int64_t row = 0; row < mask.length; ++row) {
        const int64_t slot = mask.offset + row;
        const uint8_t bit = mask.values[slot >> 3] >> (slot & 7) & 1;
        wanted[row] = selection == nullptr ? bit : static_cast<uint8_t>(bit & (selection[row] != 0));
    }
    for_each_null(mask, [&](int64_t row) { wanted[row] = 0; });
    for (int64_t row = 0; row < mask.length; ++row) count += wanted[row];
    return count;
}

}  // namespace engine
