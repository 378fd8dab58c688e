// Split-block Bloom filter over 64-bit hashes of ids.
//
// Laws
// - Never a false negative: a hash that was added always tests true. A false positive only makes somebody look.
// - One key touches one 32-byte block (one cache line): eight 32-bit words, one bit set in each.
// - The block number comes from the high half of the hash, the bits from the low half: they are independent of each
//   other. It ascends with the hash: whoever comes in the order of hashes walks through the filter once.
// - The layout is a persisted format (little-endian words, the salts below); vector and scalar code agree bit for
//   bit.
// - Functions over memory owned by the caller; adding needs one owner, testing needs none.
//
// Putze, Sanders, Singler: "Cache-, hash- and space-efficient Bloom filters" (2007); salts and block shape as in
// Apache Impala and the Parquet format's split-block filter. At 16 bits a key about 0.13 % of absent keys test true.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "prefetch.hpp"
#include "simd.hpp"

namespace engine {

constexpr size_t kBloomBlockBytes = 32;
constexpr size_t kBloomPrefetchDistance = 32;
constexpr uint32_t kBloomSalts[8] = {0x47b6137bu, 0x44974d91u, 0x8824ad5bu, 0xa2b7289du,
                                     0x705495c7u, 0x2df1424bu, 0x9efc4947u, 0x5c6bfb31u};

struct BloomView {
    const uint8_t* blocks = nullptr;
    uint32_t block_count = 0;
};

inline size_t bloom_block_offset(uint64_t hash, uint32_t block_count) noexcept {
    return static_cast<size_t>(((hash >> 32) * block_count) >> 32) * kBloomBlockBytes;
}

inline void bloom_block_add(uint8_t* block, uint64_t hash) noexcept {
    uint32_t words[8];
    std::memcpy(words, block, sizeof words);
    const uint32_t key = static_cast<uint32_t>(hash);
    for (int i = 0; i < 8; ++i) words[i] |= 1u << ((key * kBloomSalts[i]) >> 27);
    std::memcpy(block, words, sizeof words);
}

inline void bloom_add(uint8_t* blocks, uint32_t block_count, uint64_t hash) noexcept {
    bloom_block_add(blocks + bloom_block_offset(hash, block_count), hash);
}

// Whether the hash may have been added to the block that it belongs to.
inline bool bloom_block_test(const uint8_t* block, uint64_t hash) noexcept {
    uint32_t words[8];
    std::memcpy(words, block, sizeof words);
    const uint32_t key = static_cast<uint32_t>(hash);
    uint32_t missing = 0;
    for (int i = 0; i < 8; ++i) missing |= ~words[i] & (1u << ((key * kBloomSalts[i]) >> 27));
    return missing == 0;
}

inline bool bloom_test(const BloomView& filter, uint64_t hash) noexcept {
    return bloom_block_test(filter.blocks + bloom_block_offset(hash, filter.block_count), hash);
}

// Tests hashes[0..count) and sets verdicts[i] to 1 (suspect) or 0 (surely absent).
inline void bloom_test_scalar(const BloomView& filter, const uint64_t* hashes, size_t count,
                              uint8_t* verdicts) noexcept {
    for (size_t i = 0; i < count; ++i) {
        if (i + kBloomPrefetchDistance < count)
            prefetch_read(filter.blocks + bloom_block_offset(hashes[i + kBloomPrefetchDistance], filter.block_count));
        verdicts[i] = bloom_test(filter, hashes[i]);
    }
}

#ifdef ENGINE_X86
ENGINE_AVX2 inline void bloom_test_avx2(const BloomView& filter, const uint64_t* hashes, size_t count,
                                        uint8_t* verdicts) noexcept {
    const __m256i salts = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kBloomSalts));
    const __m256i one = _mm256_set1_epi32(1);
    for (size_t i = 0; i < count; ++i) {
        if (i + kBloomPrefetchDistance < count)
            prefetch_read(filter.blocks + bloom_block_offset(hashes[i + kBloomPrefetchDistance], filter.block_count));
        const __m256i key = _mm256_set1_epi32(static_cast<int>(static_cast<uint32_t>(hashes[i])));
        const __m256i bits = _mm256_sllv_epi32(one, _mm256_srli_epi32(_mm256_mullo_epi32(key, salts), 27));
        const uint8_t* block = filter.blocks + bloom_block_offset(hashes[i], filter.block_count);
        const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block));
        verdicts[i] = static_cast<uint8_t>(_mm256_testc_si256(words, bits));
    }
}
#endif

using BloomTest = void (*)(const BloomView&, const uint64_t*, size_t, uint8_t*);

// A block is as wide as an AVX2 register: wider ones gain nothing.
inline BloomTest bloom_test_of(SimdLevel level) noexcept {
#ifdef ENGINE_X86
    if (level == SimdLevel::avx2 || level == SimdLevel::avx512) return bloom_test_avx2;
#endif
    (void)level;
    return bloom_test_scalar;
}

inline void bloom_test_many(const BloomView& filter, const uint64_t* hashes, size_t count, uint8_t* verdicts,
                            bool scalar_only = false) noexcept {
    static const BloomTest chosen = bloom_test_of(simd_level());
    (scalar_only ? bloom_test_scalar : chosen)(filter, hashes, count, verdicts);
}

// Blocks for so many keys at so many bits a key; at least one, at most 2^32 - 1 (128 GiB of filter).
inline uint32_t bloom_block_count(uint64_t keys, uint32_t bits_per_key) noexcept {
    const uint64_t bits = keys * bits_per_key;
    const uint64_t blocks = bits / (kBloomBlockBytes * 8) + (bits % (kBloomBlockBytes * 8) != 0);
    return static_cast<uint32_t>(blocks < 1 ? 1 : blocks > 0xffffffffull ? 0xffffffffull : blocks);
}

}  // namespace engine
