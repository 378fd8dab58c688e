// The 128-bit identity of a row and its secret-seeded 64-bit hash.
//
// Laws
// - The hash is a persisted format: runs on disk are sorted by it. HASH must not change without a new run format
//   version.
// - The seed is secret and random: without it nobody can aim ids at one bucket, one filter block or one hint.
// - Ids are read as two little-endian words; foreign memory is copied out, so no alignment is asked of it.
//
// The mixing step is the folded multiply of wyhash (Wang Yi, 2019): 64 x 64 -> 128 bits, the halves xored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

namespace engine {

struct Id {
    uint64_t low;
    uint64_t high;
    bool operator==(const Id& other) const noexcept { return low == other.low && high == other.high; }
};

struct IdSeed {
    uint64_t low = 0;
    uint64_t high = 0;
};

inline Id load_id(const uint8_t* bytes) noexcept {
    Id id;
    std::memcpy(&id, bytes, sizeof id);
    return id;
}

inline IdSeed load_seed(const uint8_t* bytes) noexcept {
    IdSeed seed;
    std::memcpy(&seed, bytes, sizeof seed);
    return seed;
}

inline uint64_t folded_multiply(uint64_t left, uint64_t right) noexcept {
#if defined(__SIZEOF_INT128__)
    const unsigned __int128 product = static_cast<unsigned __int128>(left) * right;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
#elif defined(_MSC_VER) && defined(_M_X64)
    uint64_t upper;
    const uint64_t lower = _umul128(left, right, &upper);
    return lower ^ upper;
#else
    const uint64_t a = left >> 32, b = left & 0xffffffffu, c = right >> 32, d = right & 0xffffffffu;
    const uint64_t bd = b * d, ad = a * d, bc = b * c, ac = a * c;
    const uint64_t middle = (bd >> 32) + (ad & 0xffffffffu) + (bc & 0xffffffffu);
    const uint64_t lower = (middle << 32) | (bd & 0xffffffffu);
    return lower ^ (ac + (ad >> 32) + (bc >> 32) + (middle >> 32));
#endif
}

// All 64 bits are usable: the recent-key table takes the low half, the Bloom filter's block number the high half.
inline uint64_t hash_id(const Id& id, const IdSeed& seed) noexcept {
    const uint64_t mixed =
        folded_multiply(id.low ^ seed.low ^ 0xa0761d6478bd642full, id.high ^ seed.high ^ 0xe7037ed1a0b428dbull);
    return folded_multiply(mixed ^ seed.high ^ 0x8ebc6af09c88c6e3ull, mixed ^ 0x589965cc75374cc3ull);
}

}  // namespace engine
