// The identities of a column of texts (fingerprint.hpp), for each level of vector instructions.
//
// Laws
// - All levels agree bit for bit with `id_of_bytes`.
// - Texts are open, as in hash_loops.hpp: behind the end of each of them at least 16 bytes may be read.
//
// A fingerprint of 36 characters is ten folded products: here eight rows at a time are twice as fast as one.
#pragma once

#include <cstdint>

#include "fingerprint.hpp"
#include "hash_loops.hpp"

namespace engine {

template <class Offset>
void identify_scalar(const Offset* offsets, const uint8_t* bytes, int64_t count, const FingerprintKeys& keys,
                     uint8_t* ids) {
    for (int64_t row = 0; row < count; ++row) {
        const uint8_t* text = bytes + offsets[row];
        const int64_t size = offsets[row + 1] - offsets[row];
        read_ahead(text);
        store_words(ids + row * kIdBytes, id_of_bytes(keys, {text, size, text + size + 16}));
    }
}

#ifdef ENGINE_X86

ENGINE_AVX512 inline __m512i xor_of(__m512i x, __m512i y, __m512i z) {
    return _mm512_ternarylogic_epi64(x, y, z, 0x96);
}

ENGINE_AVX512 inline __m512i safe_fold_avx512(__m512i x, __m512i y) {
    return xor_of(fold_avx512(x, y), x, _mm512_ror_epi64(y, 32));
}

struct EightFingerprints {
    __m512i s;
    __m512i t;
};

ENGINE_AVX512 inline EightFingerprints absorb_blocks(const __m512i* keys, const EightFingerprints& state,
                                                     const EightBlocks& blocks) {
    return {safe_fold_avx512(xor_of(blocks.low, keys[0], state.s), xor_of(blocks.high, keys[1], state.t)),
            safe_fold_avx512(xor_of(blocks.low, keys[2], state.t), xor_of(blocks.high, keys[3], state.s))};
}

template <class Offset>
ENGINE_AVX512 inline EightFingerprints absorb_texts(const __m512i* keys, const Offset* offsets, const uint8_t* bytes,
                                                    __m512i sizes) {
    EightFingerprints state{_mm512_setzero_si512(), _mm512_setzero_si512()};
    const __m512i block = _mm512_set1_epi64(16);
    alignas(64) int64_t places[8];
    __m512i next = load_starts(offsets);
    __m512i left = sizes;
    for (; _mm512_cmplt_epi64_mask(left, block) == 0; left = _mm512_sub_epi64(left, block)) {
        _mm512_store_si512(places, next);
        state = absorb_blocks(keys, state, load_whole_blocks(bytes, places));
        next = _mm512_add_epi64(next, block);
    }
    for (__mmask8 live = _mm512_test_epi64_mask(left, left); live != 0; live = _mm512_test_epi64_mask(left, left)) {
        _mm512_store_si512(places, next);
        const EightFingerprints after = absorb_blocks(keys, state, load_blocks(bytes, places, left));
        state = {_mm512_mask_mov_epi64(state.s, live, after.s), _mm512_mask_mov_epi64(state.t, live, after.t)};
        // A text that has come to its end stays there.
        const __m512i step = _mm512_min_epi64(left, block);
        next = _mm512_add_epi64(next, step);
        left = _mm512_sub_epi64(left, step);
    }
    return absorb_blocks(keys, state, {sizes, _mm512_setzero_si512()});
}

ENGINE_AVX512 inline void store_ids(uint8_t* ids, __m512i low, __m512i high) {
    const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    _mm512_storeu_si512(ids, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(ids + 64, _mm512_permutex2var_epi64(low, second, high));
}

template <class Offset>
ENGINE_AVX512 void identify_avx512(const Offset* offsets, const uint8_t* bytes, int64_t count,
                                   const FingerprintKeys& secret, uint8_t* ids) {
    __m512i keys[8];
    for (int i = 0; i < 8; ++i) keys[i] = every_lane(secret.k[i]);
    int64_t row = 0;
    for (; row + 8 <= count; row += 8) {
        const uint8_t* text = bytes + offsets[row];
        for (const uint8_t* line = text; line < bytes + offsets[row + 8]; line += 64) read_ahead(line);
        const __m512i sizes = _mm512_sub_epi64(load_starts(offsets + row + 1), load_starts(offsets + row));
        const EightFingerprints state = absorb_texts(keys, offsets + row, bytes, sizes);
        __m512i low = safe_fold_avx512(_mm512_xor_si512(state.s, keys[4]), _mm512_xor_si512(state.t, keys[5]));
        __m512i high = safe_fold_avx512(_mm512_xor_si512(state.t, keys[6]), _mm512_xor_si512(state.s, keys[7]));
        const __mmask8 whole = _mm512_cmpeq_epi64_mask(sizes, _mm512_set1_epi64(kIdBytes));
        if (whole != 0) {
            const EightBlocks blocks = load_blocks(bytes, offsets + row, sizes);
            low = _mm512_mask_mov_epi64(low, whole, blocks.low);
            high = _mm512_mask_mov_epi64(high, whole, blocks.high);
        }
        store_ids(ids + row * kIdBytes, low, high);
    }
    identify_scalar(offsets + row, bytes, count - row, secret, ids + row * kIdBytes);
}

#endif

template <class Offset>
using Identify = void (*)(const Offset*, const uint8_t*, int64_t, const FingerprintKeys&, uint8_t*);

template <class Offset>
Identify<Offset> identify_of(SimdLevel level) {
#ifdef ENGINE_X86
    if (level == SimdLevel::avx512) return identify_avx512<Offset>;
#endif
    (void)level;
    return identify_scalar<Offset>;
}

template <class Offset>
void identify_open_texts(const Offset* offsets, const uint8_t* bytes, int64_t count, const FingerprintKeys& keys,
                         uint8_t* ids) {
    static const Identify<Offset> chosen = identify_of<Offset>(simd_level());
    chosen(offsets, bytes, count, keys, ids);
}

}  // namespace engine
