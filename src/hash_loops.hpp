// The loops that the hash (hash.hpp) spends its time in, for each level of vector instructions.
//
// Laws
// - All levels agree bit for bit with `hash_value`.
// - Numbers come as canonical 64-bit values; `numbers` and `hashes` may be the same memory.
// - Texts are *open*: behind the end of each of them at least 16 bytes may be read. The last rows of a foreign buffer are
//   not, and are hashed by the caller.
#pragma once

#include <cstdint>

#include "hash_value.hpp"
#include "prefetch.hpp"
#include "simd.hpp"

namespace engine {

struct HashLoops {
    void (*numbers)(const uint64_t* numbers, int64_t count, uint64_t* hashes);
    void (*texts32)(const int32_t* offsets, const uint8_t* bytes, int64_t count, uint64_t* hashes);
    void (*texts64)(const int64_t* offsets, const uint8_t* bytes, int64_t count, uint64_t* hashes);
};

// In steps of a cache line, so that the inner loop can be unrolled into vectors.
ENGINE_INLINE void mix_numbers(const uint64_t* numbers, int64_t count, uint64_t* hashes) {
    int64_t row = 0;
    for (; row + 8 <= count; row += 8) {
        read_ahead(numbers + row);
        for (int64_t i = row; i < row + 8; ++i) hashes[i] = hash_value(numbers[i]);
    }
    for (; row < count; ++row) hashes[row] = hash_value(numbers[row]);
}

inline void hash_numbers_scalar(const uint64_t* numbers, int64_t count, uint64_t* hashes) {
    mix_numbers(numbers, count, hashes);
}

template <class Offset>
ENGINE_INLINE uint64_t hash_open_text(const Offset* offsets, const uint8_t* bytes, int64_t row) {
    const uint8_t* text = bytes + offsets[row];
    read_ahead(text);
    return hash_open_bytes(text, static_cast<uint64_t>(offsets[row + 1] - offsets[row]));
}

template <class Offset>
ENGINE_APART void hash_texts_scalar(const Offset* offsets, const uint8_t* bytes, int64_t count, uint64_t* hashes) {
    for (int64_t row = 0; row < count; ++row) hashes[row] = hash_open_text(offsets, bytes, row);
}

#ifdef ENGINE_X86

ENGINE_AVX2 inline void hash_numbers_avx2(const uint64_t* numbers, int64_t count, uint64_t* hashes) {
    mix_numbers(numbers, count, hashes);
}

ENGINE_AVX512 inline __m512i every_lane(uint64_t word) { return _mm512_set1_epi64(static_cast<int64_t>(word)); }

ENGINE_AVX512 inline __m512i xor_shifted(__m512i x) { return _mm512_xor_si512(x, _mm512_srli_epi64(x, 33)); }

ENGINE_AVX512 inline void hash_numbers_avx512(const uint64_t* numbers, int64_t count, uint64_t* hashes) {
    const __m512i seed = every_lane(kNumberSeed);
    const __m512i first = every_lane(kMixFirst);
    const __m512i second = every_lane(kMixSecond);
    int64_t row = 0;
    for (; row + 8 <= count; row += 8) {
        read_ahead(numbers + row);
        __m512i x = xor_shifted(_mm512_xor_si512(_mm512_loadu_si512(numbers + row), seed));
        x = xor_shifted(_mm512_mullo_epi64(x, first));
        x = xor_shifted(_mm512_mullo_epi64(x, second));
        _mm512_storeu_si512(hashes + row, x);
    }
    for (; row < count; ++row) hashes[row] = hash_value(numbers[row]);
}

// Both halves of eight products of 64 bits, xored: schoolbook multiplication by halves of 32 bits. The halves are moved
// by shuffles where they can be, as those run beside the multiplications and shifts do not.
ENGINE_AVX512 inline __m512i fold_avx512(__m512i x, __m512i y) {
    const __m512i low_half = _mm512_set1_epi64(0xFFFFFFFF);
    const __m512i x_high = _mm512_shuffle_epi32(x, _MM_PERM_DDBB);
    const __m512i y_high = _mm512_shuffle_epi32(y, _MM_PERM_DDBB);
    const __m512i low = _mm512_mul_epu32(x, y);
    const __m512i upper = _mm512_add_epi64(_mm512_srli_epi64(low, 32), _mm512_mul_epu32(x, y_high));
    const __m512i lower = _mm512_add_epi64(_mm512_mul_epu32(x_high, y), _mm512_and_si512(upper, low_half));
    const __m512i carried = _mm512_add_epi64(_mm512_srli_epi64(upper, 32), _mm512_srli_epi64(lower, 32));
    const __m512i high = _mm512_add_epi64(_mm512_mul_epu32(x_high, y_high), carried);
    return _mm512_xor_si512(_mm512_mask_shuffle_epi32(low, 0xAAAA, lower, _MM_PERM_CCAA), high);
}

ENGINE_AVX512 inline __m512i load_starts(const int32_t* offsets) {
    return _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets)));
}
ENGINE_AVX512 inline __m512i load_starts(const int64_t* offsets) { return _mm512_loadu_si512(offsets); }

// The 16 bytes at `first` and at `second`, one behind the other.
ENGINE_AVX512 inline __m256i load_pair(const uint8_t* first, const uint8_t* second) {
    const __m128i below = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(below),
                                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(second)), 1);
}

struct EightBlocks {
    __m512i low;
    __m512i high;
};

template <class Offset>
ENGINE_AVX512 inline EightBlocks load_whole_blocks(const uint8_t* bytes, const Offset* places) {
    const __m512i before =
        _mm512_inserti64x4(_mm512_castsi256_si512(load_pair(bytes + places[0], bytes + places[1])),
                           load_pair(bytes + places[2], bytes + places[3]), 1);
    const __m512i behind =
        _mm512_inserti64x4(_mm512_castsi256_si512(load_pair(bytes + places[4], bytes + places[5])),
                           load_pair(bytes + places[6], bytes + places[7]), 1);
    return {_mm512_permutex2var_epi64(before, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), behind),
            _mm512_permutex2var_epi64(before, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), behind)};
}

// The first `sizes` (from 16 on: 16) bytes at eight places, padded with zeros; 16 are read at each.
template <class Offset>
ENGINE_AVX512 inline EightBlocks load_blocks(const uint8_t* bytes, const Offset* places, __m512i sizes) {
    const EightBlocks whole = load_whole_blocks(bytes, places);
    const __m512i all = _mm512_set1_epi64(-1);
    const __m512i bits = _mm512_slli_epi64(sizes, 3);
    const __m512i high_bits =
        _mm512_max_epi64(_mm512_sub_epi64(bits, _mm512_set1_epi64(64)), _mm512_setzero_si512());
    // A shift by 64 or more leaves zero: then every bit of the word is kept.
    return {_mm512_andnot_si512(_mm512_sllv_epi64(all, bits), whole.low),
            _mm512_andnot_si512(_mm512_sllv_epi64(all, high_bits), whole.high)};
}

// Eight texts of up to 16 bytes, one block each.
template <class Offset>
ENGINE_AVX512 inline __m512i hash_short_texts(const Offset* offsets, const uint8_t* bytes, __m512i sizes) {
    const EightBlocks blocks = load_blocks(bytes, offsets, sizes);
    const __m512i seed = every_lane(kBytesSeed);
    const __m512i folded =
        fold_avx512(_mm512_xor_si512(blocks.low, every_lane(kLowKey)), _mm512_xor_si512(blocks.high, seed));
    const __m512i state = _mm512_mask_mov_epi64(folded, _mm512_testn_epi64_mask(sizes, sizes), seed);
    return fold_avx512(_mm512_xor_si512(state, every_lane(kEndKey)), _mm512_xor_si512(sizes, every_lane(kSizeKey)));
}

// So many rows go by the plain loop where one of eight is long: where one is, more follow.
constexpr int64_t kLongRun = 64;

// Long texts gain nothing from vectors: their chains of products overlap across rows as they are. And they stay apart,
// compiled for any machine: gcc makes them a quarter slower with the instructions of this level.
template <class Offset>
ENGINE_AVX512 void hash_texts_avx512(const Offset* offsets, const uint8_t* bytes, int64_t count, uint64_t* hashes) {
    int64_t row = 0;
    while (row + 8 <= count) {
        const __m512i sizes = _mm512_sub_epi64(load_starts(offsets + row + 1), load_starts(offsets + row));
        if (_mm512_cmpgt_epu64_mask(sizes, _mm512_set1_epi64(16)) == 0) {
            read_ahead(bytes + offsets[row]);
            read_ahead(bytes + offsets[row] + 64);
            _mm512_storeu_si512(hashes + row, hash_short_texts(offsets + row, bytes, sizes));
            row += 8;
        } else {
            const int64_t run = count - row < kLongRun ? count - row : kLongRun;
            hash_texts_scalar(offsets + row, bytes, run, hashes + row);
            row += run;
        }
    }
    hash_texts_scalar(offsets + row, bytes, count - row, hashes + row);
}

#endif

#ifdef ENGINE_NEON

// The low 64 bits of two products with a constant.
inline uint64x2_t multiply_neon(uint64x2_t x, uint64_t factor) {
    const uint32x2_t low = vmovn_u64(x);
    const uint32x2_t factor_low = vdup_n_u32(static_cast<uint32_t>(factor));
    const uint32x2_t factor_high = vdup_n_u32(static_cast<uint32_t>(factor >> 32));
    const uint64x2_t crossed = vmlal_u32(vmull_u32(low, factor_high), vshrn_n_u64(x, 32), factor_low);
    return vmlal_u32(vshlq_n_u64(crossed, 32), low, factor_low);
}

inline uint64x2_t xor_shifted(uint64x2_t x) { return veorq_u64(x, vshrq_n_u64(x, 33)); }

inline void hash_numbers_neon(const uint64_t* numbers, int64_t count, uint64_t* hashes) {
    const uint64x2_t seed = vdupq_n_u64(kNumberSeed);
    int64_t row = 0;
    for (; row + 2 <= count; row += 2) {
        if (row % 8 == 0) read_ahead(numbers + row);
        uint64x2_t x = xor_shifted(veorq_u64(vld1q_u64(numbers + row), seed));
        x = xor_shifted(multiply_neon(x, kMixFirst));
        x = xor_shifted(multiply_neon(x, kMixSecond));
        vst1q_u64(hashes + row, x);
    }
    for (; row < count; ++row) hashes[row] = hash_value(numbers[row]);
}

#endif

inline HashLoops hash_loops_of(SimdLevel level) {
#ifdef ENGINE_X86
    if (level == SimdLevel::avx512) {
        return {hash_numbers_avx512, hash_texts_avx512<int32_t>, hash_texts_avx512<int64_t>};
    }
    if (level == SimdLevel::avx2) return {hash_numbers_avx2, hash_texts_scalar<int32_t>, hash_texts_scalar<int64_t>};
#endif
#ifdef ENGINE_NEON
    if (level == SimdLevel::neon) return {hash_numbers_neon, hash_texts_scalar<int32_t>, hash_texts_scalar<int64_t>};
#endif
    (void)level;
    return {hash_numbers_scalar, hash_texts_scalar<int32_t>, hash_texts_scalar<int64_t>};
}

inline const HashLoops& hash_loops() {
    static const HashLoops chosen = hash_loops_of(simd_level());
    return chosen;
}

}  // namespace engine
