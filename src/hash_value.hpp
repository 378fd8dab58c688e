// The hash of a key: a persisted format (key groups, and with them partitions, are made of it).
//
// HASH_VERSION 1
//   number   (integers, dates, times, bool, floats; 64-bit canonical bits v)   mix(v ^ kNumberSeed)
//   bytes    (text, binary, fixed-size binary, decimals; blocks of 16 bytes, zero-padded, as little-endian words a, b)
//            s = kBytesSeed; for each block: s = fold(a ^ kLowKey, b ^ s); hash = fold(s ^ kEndKey, size ^ kSizeKey)
//   null     kNullHash
//   row      the first column's hash h; for each further column of hash c: h = mix(h * kGolden + c)
// where mix is the finaliser of MurmurHash3 (Appleby, 2011) and fold(x, y) xors the halves of the 128-bit product, as
// in wyhash (Wang Yi, 2019). Nothing here depends on the Arrow form, and no step needs a result of another row, so that
// vector code (hash_loops.hpp) agrees bit for bit.
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
// The factors of MurmurHash3's finaliser.
constexpr uint64_t kMixFirst = 0xFF51AFD7ED558CCDu;
constexpr uint64_t kMixSecond = 0xC4CEB9FE1A85EC53u;

inline uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= kMixFirst;
    x ^= x >> 33;
    x *= kMixSecond;
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

inline uint64_t absorb(uint64_t state, uint64_t low, uint64_t high) { return fold(low ^ kLowKey, high ^ state); }

// The last block: its first `size` (0 to 16) bytes, 16 may be read.
inline uint64_t absorb_last(uint64_t state, const uint8_t* data, uint64_t size) {
    return absorb(state, load64(data) & kMasks.low[size], load64(data + 8) & kMasks.high[size]);
}

// The same where 16 bytes behind the value's end may be read. Keys of up to three blocks have no loop, and no size within
// a block has a branch: the processor works on many rows at a time as long as it guesses right.
inline uint64_t hash_open_bytes(const uint8_t* data, uint64_t size) {
    uint64_t state = kBytesSeed;
    if (size <= 16) {
        const uint64_t absorbed = absorb_last(state, data, size);
        state = size == 0 ? state : absorbed;
    } else if (size <= 32) {
        state = absorb(state, load64(data), load64(data + 8));
        state = absorb_last(state, data + 16, size - 16);
    } else if (size <= 48) {
        state = absorb(state, load64(data), load64(data + 8));
        state = absorb(state, load64(data + 16), load64(data + 24));
        state = absorb_last(state, data + 32, size - 32);
    } else {
        uint64_t left = size;
        for (; left > 16; left -= 16, data += 16) state = absorb(state, load64(data), load64(data + 8));
        state = absorb_last(state, data, left);
    }
    return fold(state ^ kEndKey, size ^ kSizeKey);
}

inline uint64_t combine_hashes(uint64_t before, uint64_t column) { return mix(before * kGolden + column); }

}  // namespace engine
