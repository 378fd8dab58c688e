// The hash of every row's key, over all Arrow forms of its columns. What the hash of a value is: hash_value.hpp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "hash_loops.hpp"

namespace engine {

// 4 KiB of canonical numbers stay in the nearest cache between the two loops over them.
constexpr int64_t kNumbersAtOnce = 512;

// `hash_values(reader, column, loops, hashes)`: every row of a plain column, null slots too where they can be read.
template <class Reader>
void hash_values(const Reader& reader, const Column& column, const HashLoops& loops, uint64_t* hashes) {
    if constexpr (Reader::shape == Shape::number) {
        for (int64_t first = 0; first < column.length; first += kNumbersAtOnce) {
            const int64_t left = column.length - first;
            const int64_t count = left < kNumbersAtOnce ? left : kNumbersAtOnce;
            for (int64_t row = first; row < first + count; ++row) hashes[row] = reader.read(row);
            loops.numbers(hashes + first, count, hashes + first);
        }
    } else {
        for (int64_t row = 0; row < column.length; ++row) {
            if (!Reader::null_slots_readable && column.is_null(row)) continue;
            hashes[row] = hash_value(reader.read(row));
        }
    }
}

inline void hash_values(const IntegerReader<int64_t>& reader, const Column& column, const HashLoops& loops,
                        uint64_t* hashes) {
    loops.numbers(reinterpret_cast<const uint64_t*>(reader.slots), column.length, hashes);
}

inline void hash_values(const Decimal128Reader& reader, const Column& column, const HashLoops&, uint64_t* hashes) {
    for (int64_t row = 0; row < column.length; ++row) {
        read_ahead(reader.slots + row * 16);
        hashes[row] = hash_value(reader.read(row));
    }
}

inline void hash_values(const FixedBytesReader& reader, const Column& column, const HashLoops& loops,
                        uint64_t* hashes) {
    if (reader.width == 16) return hash_values(Decimal128Reader(column), column, loops, hashes);
    // All but the values whose last 16 bytes reach behind the buffer.
    const int64_t behind = reader.width == 0 ? column.length : (16 + reader.width - 1) / reader.width;
    const int64_t open = column.length < behind ? 0 : column.length - behind;
    for (int64_t row = 0; row < open; ++row) {
        const uint8_t* value = reader.slots + row * reader.width;
        read_ahead(value);
        hashes[row] = hash_open_bytes(value, static_cast<uint64_t>(reader.width));
    }
    for (int64_t row = open; row < column.length; ++row) hashes[row] = hash_value(reader.read(row));
}

// So many leading texts have at least 16 readable bytes behind their end.
template <class Offset>
int64_t open_texts(const TextReader<Offset>& reader, int64_t length) {
    int64_t open = length;
    while (open > 0 && reader.offsets[length] - reader.offsets[open] < 16) --open;
    return open;
}

template <class Offset>
void hash_values(const TextReader<Offset>& reader, const Column& column, const HashLoops& loops, uint64_t* hashes) {
    const int64_t open = open_texts(reader, column.length);
    if constexpr (std::is_same_v<Offset, int32_t>) {
        loops.texts32(reader.offsets, reader.bytes, open, hashes);
    } else {
        loops.texts64(reader.offsets, reader.bytes, open, hashes);
    }
    for (int64_t row = open; row < column.length; ++row) hashes[row] = hash_value(reader.read(row));
}

void hash_column(const Column& column, const HashLoops& loops, uint64_t* hashes);

// A plain column: without nulls in sight; nulls are written over afterwards.
inline void hash_plain_column(const Column& column, const HashLoops& loops, uint64_t* hashes) {
    visit_values(column, [&](auto reader) { hash_values(reader, column, loops, hashes); });
    for_each_null(column, [&](int64_t row) { hashes[row] = kNullHash; });
}

// A dictionary's values are hashed once and looked up; one that is longer than the batch is read row by row.
inline void hash_dictionary_column(const Column& column, const HashLoops& loops, uint64_t* hashes) {
    if (column.dictionary->length > column.length) {
        visit_rows(column, [&](auto reader, auto rows) {
            for (int64_t row = 0; row < column.length; ++row) {
                const int64_t slot = rows(row);
                hashes[row] = slot < 0 ? kNullHash : hash_value(reader.read(slot));
            }
        });
        return;
    }
    const Block resolved_block = resolve_dictionary(column);
    const Block table_block(static_cast<size_t>(column.dictionary->length) * sizeof(uint64_t));
    const int64_t* resolved = resolved_block.as<int64_t>();
    uint64_t* table = table_block.as<uint64_t>();
    hash_column(*column.dictionary, loops, table);
    for (int64_t row = 0; row < column.length; ++row) {
        hashes[row] = resolved[row] < 0 ? kNullHash : table[resolved[row]];
    }
}

inline void hash_column(const Column& column, const HashLoops& loops, uint64_t* hashes) {
    check_key(column);
    if (column.type.kind == Kind::null) {
        for (int64_t row = 0; row < column.length; ++row) hashes[row] = kNullHash;
    } else if (column.length > 0) {
        column.dictionary ? hash_dictionary_column(column, loops, hashes) : hash_plain_column(column, loops, hashes);
    }
}

// One 64-bit hash a row over all columns of `batch`, in their order. `hashes` holds `batch.length` values.
inline void hash_rows(const Batch& batch, uint64_t* hashes, const HashLoops& loops = hash_loops()) {
    if (batch.columns.empty()) return;
    hash_column(batch.columns[0], loops, hashes);
    if (batch.columns.size() == 1) return;
    const Block column_block(static_cast<size_t>(batch.length) * sizeof(uint64_t));
    uint64_t* column_hashes = column_block.as<uint64_t>();
    for (size_t index = 1; index < batch.columns.size(); ++index) {
        hash_column(batch.columns[index], loops, column_hashes);
        for (int64_t row = 0; row < batch.length; ++row) hashes[row] = combine_hashes(hashes[row], column_hashes[row]);
    }
}

}  // namespace engine
