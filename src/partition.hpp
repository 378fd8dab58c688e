// Where each row goes: key groups, partitions, and the plan that every column of a batch is scattered by.
//
// Laws
// - key group = top 15 bits of the key's hash (hash_value.hpp); partition = key_group * P >> 15. Both are persisted choices.
//   Other users of the hash (filters) take its lower bits, so that the two are independent.
// - A plan lists the wanted rows of its inputs, one input after the other, in input order. Rows of one partition keep
//   that order: the partition is stable.
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

// One batch that is to be split or gathered: its rows, and one byte a row (0: not wanted), or nullptr for all of them.
struct Input {
    int64_t length;
    const uint8_t* selection;
};

// The wanted rows of one input: rows [first, first + count) of the plan.
struct Part {
    int64_t first;
    int64_t count;
};

struct Plan {
    int64_t count = 0;             // wanted rows
    bool all_wanted = true;
    std::vector<Part> parts;       // one an input
    Block sources;                 // uint32 a wanted row: its row in its input; none when all are wanted
    Block destinations;            // uint16 a wanted row: its partition; none when there is one partition
    Block positions;               // uint32 a wanted row: its output row; none when there is one partition
    std::vector<int64_t> starts;   // partitions + 1 output rows

    bool one_partition() const { return !positions; }
    int64_t source_of(int64_t j) const { return all_wanted ? j : sources.as<uint32_t>()[j]; }
    int64_t position_of(int64_t j) const { return one_partition() ? j : positions.as<uint32_t>()[j]; }
};

inline int64_t count_wanted(const Input& input) {
    if (input.selection == nullptr) return input.length;
    int64_t count = 0;
    for (int64_t row = 0; row < input.length; ++row) count += input.selection[row] != 0;
    return count;
}

// `sources` has one slot more than rows are wanted: the loop writes before it knows whether it advances.
inline void list_sources(const Input& input, uint32_t* sources) {
    int64_t next = 0;
    for (int64_t row = 0; row < input.length; ++row) {
        sources[next] = static_cast<uint32_t>(row);
        next += input.selection == nullptr || input.selection[row] != 0;
    }
}

// A plan with one partition: the wanted rows of all inputs, in order.
inline Plan plan_gather(const std::vector<Input>& inputs) {
    Plan plan;
    int64_t rows = 0;
    for (const Input& input : inputs) {
        plan.parts.push_back({plan.count, count_wanted(input)});
        plan.count += plan.parts.back().count;
        rows += input.length;
    }
    if (rows >= kMaxPlanRows) throw std::invalid_argument("a batch may have at most 2147483647 rows");
    plan.all_wanted = plan.count == rows;
    plan.starts = {0, plan.count};
    if (plan.all_wanted) return plan;
    plan.sources = Block(static_cast<size_t>(plan.count + 1) * sizeof(uint32_t));
    for (size_t b = 0; b < inputs.size(); ++b) {
        list_sources(inputs[b], plan.sources.as<uint32_t>() + plan.parts[b].first);
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

// The hashes of the wanted rows, in the order of the plan. `keys` holds the key columns of each input, whole.
inline Block hash_wanted(const std::vector<Batch>& keys, const Plan& plan) {
    size_t rows = 0;
    for (const Batch& batch : keys) rows += static_cast<size_t>(batch.length);
    Block block(rows * sizeof(uint64_t));
    uint64_t* const hashes = block.as<uint64_t>();
    int64_t next = 0;
    for (size_t b = 0; b < keys.size(); ++b) {
        // Never in front of where the wanted ones go: those of a part are taken before the next one's are made.
        uint64_t* const whole = hashes + (plan.all_wanted ? next : plan.parts[b].first);
        hash_rows(keys[b], whole);
        next += keys[b].length;
        if (plan.all_wanted) continue;
        const uint32_t* sources = plan.sources.as<uint32_t>() + plan.parts[b].first;
        for (int64_t j = 0; j < plan.parts[b].count; ++j) whole[j] = whole[sources[j]];
    }
    return block;
}

// `keys` holds the key columns of each input, whole.
inline Plan plan_partition(const std::vector<Batch>& keys, const std::vector<Input>& inputs, uint32_t partitions) {
    Plan plan = plan_gather(inputs);
    const Block hashes = hash_wanted(keys, plan);
    plan.destinations = Block(static_cast<size_t>(plan.count) * sizeof(uint16_t));
    uint16_t* destinations = plan.destinations.as<uint16_t>();
    plan_loops().destinations(hashes.as<uint64_t>(), plan.count, partitions, destinations);
    plan.positions = Block(static_cast<size_t>(plan.count) * sizeof(uint32_t));
    plan.starts = place_rows(destinations, plan.count, partitions, plan.positions.as<uint32_t>());
    return plan;
}

// The input row of each output row: what a foreign `take` needs. REQUIRES: one input.
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
