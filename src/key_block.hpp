// Full keys in blocks for files: a block is read whole and verified before a key in it is believed.
//
// Laws
// - The block is a persisted format, little-endian: for each of its keys the end of its bytes (32 bits, from the first
//   key's begin), then the bytes. Its checksum (CRC32C), keys and size stand in the table beside the blocks (12 bytes
//   a block), whose owner vouches for them.
// - A block is full at 4 KiB; one key may be larger.
// - No I/O. Nothing of a block is read outside its size, whatever it holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "crc32c.hpp"
#include "key_pages.hpp"

namespace engine {

constexpr size_t kKeyBlockBytes = 4096;

struct KeyBlock {
    uint32_t keys;
    uint32_t bytes;
    uint32_t crc;
};
static_assert(sizeof(KeyBlock) == 12, "the table's format");

// The block of the keys from `start` on, at most up to `stop` and to the end of their page, appended to `blocks`.
inline KeyBlock append_block(const KeyPages& pages, uint64_t start, uint64_t stop, std::vector<uint8_t>& blocks) {
    const KeySpan span = pages.span_from(start);
    const size_t most = static_cast<size_t>(std::min<uint64_t>(span.count, stop - start));
    const auto bytes_of = [&](size_t keys) { return keys * sizeof(uint32_t) + (span.ends[keys - 1] - span.begin); };
    size_t keys = 1;
    while (keys < most && bytes_of(keys + 1) <= kKeyBlockBytes) ++keys;
    const size_t bytes = bytes_of(keys);
    if (bytes > UINT32_MAX) throw std::length_error("a key has almost 4 GiB");
    const size_t begin = blocks.size();
    blocks.resize(begin + bytes);
    uint8_t* const block = blocks.data() + begin;
    for (size_t key = 0; key < keys; ++key) {
        const uint32_t end = span.ends[key] - span.begin;
        std::memcpy(block + key * sizeof end, &end, sizeof end);
    }
    const size_t ends_bytes = keys * sizeof(uint32_t);
    if (bytes > ends_bytes) std::memcpy(block + ends_bytes, span.bytes + span.begin, bytes - ends_bytes);
    return {static_cast<uint32_t>(keys), static_cast<uint32_t>(bytes), crc32c(0, block, bytes)};
}

inline uint32_t block_end(const uint8_t* block, uint32_t key) {
    uint32_t end;
    std::memcpy(&end, block + key * sizeof end, sizeof end);
    return end;
}

// Whether the block is what its entry in the table says, and its keys lie inside it.
inline bool is_sound(const KeyBlock& entry, const uint8_t* block) {
    const uint64_t ends_bytes = uint64_t{entry.keys} * sizeof(uint32_t);
    if (entry.keys == 0 || ends_bytes > entry.bytes || crc32c(0, block, entry.bytes) != entry.crc) return false;
    uint32_t before = 0;
    for (uint32_t key = 0; key < entry.keys; ++key) {
        const uint32_t end = block_end(block, key);
        if (end < before) return false;
        before = end;
    }
    return before == entry.bytes - ends_bytes;
}

// REQUIRES: the block is sound, key < entry.keys.
inline KeyView key_in_block(const KeyBlock& entry, const uint8_t* block, uint32_t key) {
    const uint32_t begin = key == 0 ? 0 : block_end(block, key - 1);
    return {block + entry.keys * sizeof(uint32_t) + begin, block_end(block, key) - begin};
}

// REQUIRES: the block is sound.
inline void append_keys(KeyPages& pages, const KeyBlock& entry, const uint8_t* block) {
    pages.append_each(entry.keys, [&](size_t key) { return key_in_block(entry, block, static_cast<uint32_t>(key)); });
}

}  // namespace engine
