// The hash of a row's key: a persisted format (key groups, and with them partitions, are made of it).
//
// HASH_VERSION 1
//   number   (integers, dates, times, bool, floats; 64-bit canonical bits v)   mix(v ^ kNumberSeed)
//   bytes    (text, binary, fixed-size binary, decimals; blocks of 16 bytes, zero-padded, as little-endian words a, b)
//            s = kBytesSeed; for each block: s = fold(a ^ kLowKey, b ^ s); hash = fold(s ^ kEndKey, size ^ kSizeKey)
//   null     kNullHash
//   row      the first column's hash h; for each further column of hash c: h = mix(h * kGolden + c)
// where mix is the finaliser of MurmurHash3 (Appleby, 2011) and fold(x, y) xors the halves of the 128-bit product, as
// in wyhash (Wang Yi, 2019). Nothing here depends on the Arrow form, and no step needs a result of another row, so that
// a SIMD version can agree bit for bit.
//
// The seed is public and fixed. What must withstand chosen keys (identities for dedup) is in key_ids.hpp.
#pragma once

#include <cstdint>

#include "column_values.hpp"

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

namespace engine {

constexpr int kHashVersion = 1;
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
// Digits of pi after the point, as in Blowfish: nothing up the sleeve.
constexpr uint64_t kNumberSeed = 0x243F6A8885A308D3u;
constexpr uint64_t kBytesSeed = 0x13198A2E03707344u;
constexpr uint64_t kLowKey = 0xA4093822299F31D0u;
constexpr uint64_t kEndKey = 0x082EFA98EC4E6C89u;
constexpr uint64_t kSizeKey = 0x452821E638D01377u;
constexpr uint64_t kNullHash = 0xBE5466CF34E90C6Cu;

inline uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xFF51AFD7ED558CCDu;
    x ^= x >> 33;
    x *= 0xC4CEB9FE1A85EC53u;
    x ^= x >> 33;
    return x;
}

struct Product {
    uint64_t low;
    uint64_t high;
};

inline Product multiply(uint64_t x, uint64_t y) {
#if defined(__SIZEOF_INT128__)
    __extension__ typedef unsigned __int128 Wide;
    const Wide product = static_cast<Wide>(x) * y;
    return {static_cast<uint64_t>(product), static_cast<uint64_t>(product >> 64)};
#elif defined(_MSC_VER) && defined(_M_X64)
    Product product;
    product.low = _umul128(x, y, &product.high);
    return product;
#else
    const uint64_t x0 = x & 0xFFFFFFFFu, x1 = x >> 32, y0 = y & 0xFFFFFFFFu, y1 = y >> 32;
    const uint64_t p00 = x0 * y0, p01 = x0 * y1, p10 = x1 * y0, p11 = x1 * y1;
    const uint64_t middle = (p00 >> 32) + (p01 & 0xFFFFFFFFu) + (p10 & 0xFFFFFFFFu);
    return {middle << 32 | (p00 & 0xFFFFFFFFu), p11 + (p01 >> 32) + (p10 >> 32) + (middle >> 32)};
#endif
}

inline uint64_t fold(uint64_t x, uint64_t y) {
    const Product product = multiply(x, y);
    return product.low ^ product.high;
}

inline uint64_t hash_value(uint64_t number) { return mix(number ^ kNumberSeed); }

inline uint64_t hash_value(const Words& words) {
    const uint64_t state = fold(words.low ^ kLowKey, words.high ^ kBytesSeed);
    return fold(state ^ kEndKey, 16 ^ kSizeKey);
}

inline uint64_t hash_value(const Bytes& value) {
    uint64_t state = kBytesSeed;
    for_each_block(value, [&](const Words& block) { state = fold(block.low ^ kLowKey, block.high ^ state); });
    return fold(state ^ kEndKey, static_cast<uint64_t>(value.size) ^ kSizeKey);
}

inline uint64_t combine_hashes(uint64_t before, uint64_t column) { return mix(before * kGolden + column); }

void hash_column(const Column& column, uint64_t* hashes);

// A plain column: without nulls in sight, so that loops over numbers vectorise; nulls are written over afterwards.
inline void hash_plain_column(const Column& column, uint64_t* hashes) {
    visit_values(column, [&](auto reader) {
        for (int64_t row = 0; row < column.length; ++row) {
            if (!decltype(reader)::null_slots_readable && column.is_null(row)) continue;
            hashes[row] = hash_value(reader.read(row));
        }
    });
    for_each_null(column, [&](int64_t row) { hashes[row] = kNullHash; });
}

// A dictionary's values are hashed once and looked up; one that is longer than the batch is read row by row.
inline void hash_dictionary_column(const Column& column, uint64_t* hashes) {
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
    hash_column(*column.dictionary, table);
    for (int64_t row = 0; row < column.length; ++row) {
        hashes[row] = resolved[row] < 0 ? kNullHash : table[resolved[row]];
    }
}

inline void hash_column(const Column& column, uint64_t* hashes) {
    check_key(column);
    if (column.type.kind == Kind::null) {
        for (int64_t row = 0; row < column.length; ++row) hashes[row] = kNullHash;
    } else if (column.length > 0) {
        column.dictionary ? hash_dictionary_column(column, hashes) : hash_plain_column(column, hashes);
    }
}

// One 64-bit hash a row over all columns of `batch`, in their order. `hashes` holds `batch.length` values.
inline void hash_rows(const Batch& batch, uint64_t* hashes) {
    if (batch.columns.empty()) return;
    hash_column(batch.columns[0], hashes);
    if (batch.columns.size() == 1) return;
    const Block column_block(static_cast<size_t>(batch.length) * sizeof(uint64_t));
    uint64_t* column_hashes = column_block.as<uint64_t>();
    for (size_t index = 1; index < batch.columns.size(); ++index) {
        hash_column(batch.columns[index], column_hashes);
        for (int64_t row = 0; row < batch.length; ++row) hashes[row] = combine_hashes(hashes[row], column_hashes[row]);
    }
}

}  // namespace engine
