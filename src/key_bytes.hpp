// The full bytes of a row's key, for those who compare whole keys: a persisted format.
//
// Laws
// - One column: the canonical bytes of its value (column_values.hpp). Several: for each in order the size of its value
//   (32 bits), then those bytes, so that the encoding of a row is unambiguous. Numbers have 8 bytes, decimals of up to
//   128 bits 16, all little-endian.
// - Keys are equal iff their bytes are, whatever Arrow form holds them.
// - Two passes over each column: sizes first, then bytes at the places that were made for them.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "column_values.hpp"

namespace engine {

inline uint64_t canonical_size(uint64_t) { return sizeof(uint64_t); }
inline uint64_t canonical_size(const Words&) { return sizeof(Words); }
inline uint64_t canonical_size(const Bytes& value) { return static_cast<uint64_t>(value.size); }

inline void put_canonical(uint8_t* target, uint64_t value) { std::memcpy(target, &value, sizeof value); }
inline void put_canonical(uint8_t* target, const Words& value) { std::memcpy(target, &value, sizeof value); }
inline void put_canonical(uint8_t* target, const Bytes& value) {
    if (value.size > 0) std::memcpy(target, value.data, static_cast<size_t>(value.size));
}

// As `put_canonical`, in steps of 16 bytes, the last of which may spill behind the value; the source is read up to its
// end only.
template <class Value>
void put_last(uint8_t* target, const Value& value) {
    put_canonical(target, value);
}
inline void put_last(uint8_t* target, const Bytes& value) {
    constexpr int64_t kStep = 16, kFewSteps = 8;
    if (value.size > kFewSteps * kStep || value.end - value.data < value.size + kStep) {
        put_canonical(target, value);
    } else {
        for (int64_t at = 0; at < value.size; at += kStep) std::memcpy(target + at, value.data + at, kStep);
    }
}

// Which rows of a batch are wanted and have a key: those that take a position.
struct KeyedRows {
    const uint8_t* keyed = nullptr;      // 0 = a component is null; nullptr = none is
    const uint8_t* selection = nullptr;  // 0 = not wanted; nullptr = all are
    bool operator()(int64_t row) const { return (!keyed || keyed[row]) && (!selection || selection[row]); }
};

template <class Use>
void for_each_keyed(const Column& column, const KeyedRows& wanted, Use&& use) {
    if (column.length == 0 || column.type.kind == Kind::null) return;
    visit_rows(column, [&](auto reader, auto rows) {
        for (int64_t row = 0; row < column.length; ++row) {
            if (!wanted(row)) continue;
            const int64_t slot = rows(row);
            if (slot >= 0) use(row, reader.read(slot));
        }
    });
}

// Calls `place(size)` for the key of every wanted row, in order; it gives the address for that key's bytes, with 16 bytes
// of room behind them that later keys may take.
template <class Place>
void write_key_bytes(const Batch& batch, const KeyedRows& wanted, Place&& place) {
    for (const Column& column : batch.columns) check_key(column);
    if (batch.columns.size() == 1) {
        for_each_keyed(batch.columns[0], wanted, [&](int64_t, const auto& value) {
            put_last(place(canonical_size(value)), value);
        });
        return;
    }
    const size_t rows = static_cast<size_t>(batch.length);
    std::vector<uint64_t> sizes(rows, batch.columns.size() * sizeof(uint32_t));
    for (const Column& column : batch.columns)
        for_each_keyed(column, wanted, [&](int64_t row, const auto& value) {
            sizes[static_cast<size_t>(row)] += canonical_size(value);
        });
    std::vector<uint8_t*> targets(rows);
    for (size_t row = 0; row < rows; ++row)
        if (wanted(static_cast<int64_t>(row))) targets[row] = place(sizes[row]);
    for (const Column& column : batch.columns)
        for_each_keyed(column, wanted, [&](int64_t row, const auto& value) {
            uint8_t*& target = targets[static_cast<size_t>(row)];
            const uint32_t size = static_cast<uint32_t>(canonical_size(value));
            std::memcpy(target, &size, sizeof size);
            put_canonical(target + sizeof size, value);
            target += sizeof size + size;
        });
}

}  // namespace engine
