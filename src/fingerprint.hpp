// The seeded 128-bit fingerprint of a key: a persisted format.
//
// Two lanes (s, t) of folded multiplies (hash_value.hpp) under eight keys k0..k7 expanded from a secret seed.
// Each 16-byte block (a, b) of a column, zero-padded, then (size, ordinal) of the column is absorbed as
//   s' = safe(a ^ k0 ^ s, b ^ k1 ^ t)      t' = safe(a ^ k2 ^ t, b ^ k3 ^ s)
// with safe(x, y) = fold(x, y) ^ x ^ rotate(y, 32),
// and the result is safe(s ^ k4, t ^ k5), safe(t ^ k6, s ^ k7). Sizes at the end of each column make the
// encoding of a row unambiguous. The xor in `safe` keeps the other factor when one is zero (the weakness of plain
// folding). The seed makes collisions unpredictable to whoever chooses the keys.
#pragma once

#include <cstdint>
#include <cstring>

#include "hash_value.hpp"

namespace engine {

constexpr int kIdBytes = 16;

struct FingerprintKeys {
    uint64_t k[8];

    explicit FingerprintKeys(const uint8_t* seed) {
        const uint64_t first = load64(seed), second = load64(seed + 8);
        for (uint64_t i = 0; i < 8; ++i) k[i] = mix(first + (i + 1) * kGolden) ^ mix(second ^ mix((i + 1) * kGolden));
    }
};

inline uint64_t safe_fold(uint64_t x, uint64_t y) { return fold(x, y) ^ x ^ (y << 32 | y >> 32); }

struct Fingerprint {
    uint64_t s = 0;
    uint64_t t = 0;

    void absorb_block(const FingerprintKeys& keys, uint64_t a, uint64_t b) {
        const uint64_t next = safe_fold(a ^ keys.k[0] ^ s, b ^ keys.k[1] ^ t);
        t = safe_fold(a ^ keys.k[2] ^ t, b ^ keys.k[3] ^ s);
        s = next;
    }

    void absorb(const FingerprintKeys& keys, uint64_t ordinal, uint64_t number) {
        absorb_block(keys, number, 0);
        absorb_block(keys, 8, ordinal);
    }

    void absorb(const FingerprintKeys& keys, uint64_t ordinal, const Words& words) {
        absorb_block(keys, words.low, words.high);
        absorb_block(keys, 16, ordinal);
    }

    void absorb(const FingerprintKeys& keys, uint64_t ordinal, const Bytes& value) {
        for_each_block(value, [&](const Words& block) { absorb_block(keys, block.low, block.high); });
        absorb_block(keys, static_cast<uint64_t>(value.size), ordinal);
    }

    Words finish(const FingerprintKeys& keys) const {
        return {safe_fold(s ^ keys.k[4], t ^ keys.k[5]), safe_fold(t ^ keys.k[6], s ^ keys.k[7])};
    }
};

inline void store_words(uint8_t* id, const Words& words) {
    std::memcpy(id, &words.low, 8);
    std::memcpy(id + 8, &words.high, 8);
}

// The identity of a single value of bytes: itself where it has 16 of them.
inline Words id_of_bytes(const FingerprintKeys& keys, const Bytes& value) {
    if (value.size == kIdBytes) return load_padded(value.data, kIdBytes, value.end);
    Fingerprint fingerprint;
    fingerprint.absorb(keys, 0, value);
    return fingerprint.finish(keys);
}

}  // namespace engine
