// Full keys in blocks for files: a block is read whole and verified before a key in it is believed.
//
// Laws
// - The block is a persisted format, little-endian: for each of its keys the end of its bytes (32 bits, from the first
//   key's begin), then the bytes. Its checksum (CRC32C), keys and size stand in the table beside the blocks (12 bytes
//   a block), whose owner vouches for them.
// - A block is full at 4 KiB; one key may be larger.
// - No I/O. Nothing of a block is read outside its size, whatever it holds.
#pragma once

#include <cstdint>
#include <cstring>
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

// The block of the keys from `start` on, at most up to `stop`, appended to `blocks`.
inline KeyBlock append_block(const KeyPages& pages, uint64_t start, uint64_t stop, std::vector<uint8_t>& blocks) {
    uint64_t keys = 0, bytes = 0;
    while (start + keys < stop) {
        const uint64_t more = pages.at(start + keys).size + sizeof(uint32_t);
        if (keys > 0 && bytes + more > kKeyBlockBytes) break;
        bytes += more;
        ++keys;
    }
    if (bytes > UINT32_MAX) throw std::length_error("a key has almost 4 GiB");
    const size_t begin = blocks.size();
    blocks.resize(begin + bytes);
    uint8_t* end_slot = blocks.data() + begin;
    uint8_t* const first_key = end_slot + keys * sizeof(uint32_t);
    uint8_t* target = first_key;
    for (uint64_t i = 0; i < keys; ++i, end_slot += sizeof(uint32_t)) {
        const KeyView key = pages.at(start + i);
        if (key.size > 0) std::memcpy(target, key.data, key.size);
        target += key.size;
        const uint32_t end = static_cast<uint32_t>(target - first_key);
        std::memcpy(end_slot, &end, sizeof end);
    }
    const uint32_t crc = crc32c(0, blocks.data() + begin, bytes);
    return {static_cast<uint32_t>(keys), static_cast<uint32_t>(bytes), crc};
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
