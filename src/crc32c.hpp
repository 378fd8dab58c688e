// CRC32C (Castagnoli), the checksum of every durable frame.
//
// Laws:
//  - crc32c(crc32c(0, a), b) == crc32c(0, a + b): `value` is the checksum of the bytes before; 0 where there are none.
//  - Every path gives the same bits: the result is stored in files.
//  - Reads exactly [data, data + size), takes no lock, keeps no state: safe from any thread, without the GIL.
//
// The crc32 instruction has a latency of three cycles and a throughput of one, so three streams run side by side and
// are joined by a carry-less multiplication: shifting a checksum over n zero bytes is a product with x^(8n) mod P.
// Sources: Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction" (Intel, 2011);
// Kounavis and Berry, "A Systematic Approach to Building High Performance Software-Based CRC Generators" (slicing by 8).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "simd.hpp"

#if defined(ENGINE_NEON) && defined(__ARM_FEATURE_CRC32)
#define ENGINE_CRC32C_ARM 1
#include <arm_acle.h>
#endif

#define ENGINE_CRC32C_TARGET ENGINE_TARGET("sse4.2,pclmul")

namespace engine {
namespace crc32c_detail {

constexpr uint32_t polynomial = 0x82F63B78u;  // bits reversed: bit 31 is x^0

// ---- slicing by 8: works everywhere, whatever the byte order ----

using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables() {
    Tables tables{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? polynomial : 0);
        tables[0][byte] = value;
    }
    for (size_t slice = 1; slice < 8; ++slice)
        for (size_t byte = 0; byte < 256; ++byte) {
            const uint32_t before = tables[slice - 1][byte];
            tables[slice][byte] = (before >> 8) ^ tables[0][before & 0xFF];
        }
    return tables;
}

inline constexpr Tables tables = make_tables();

inline uint32_t load_little_endian(const uint8_t* p) {
    return uint32_t(p[0]) | uint32_t(p[1]) << 8 | uint32_t(p[2]) << 16 | uint32_t(p[3]) << 24;
}

inline uint32_t portable(uint32_t value, const uint8_t* data, size_t size) {
    uint32_t state = ~value;
    for (; size >= 8; data += 8, size -= 8) {
        const uint32_t low = state ^ load_little_endian(data);
        const uint32_t high = load_little_endian(data + 4);
        state = tables[7][low & 0xFF] ^ tables[6][(low >> 8) & 0xFF] ^ tables[5][(low >> 16) & 0xFF] ^
                tables[4][low >> 24] ^ tables[3][high & 0xFF] ^ tables[2][(high >> 8) & 0xFF] ^
                tables[1][(high >> 16) & 0xFF] ^ tables[0][high >> 24];
    }
    for (; size; ++data, --size) state = (state >> 8) ^ tables[0][(state ^ *data) & 0xFF];
    return ~state;
}

// ---- x86-64: SSE4.2 and PCLMULQDQ, which every machine of a vector level has ----
#ifdef ENGINE_X86

// a * b mod P, both bit-reversed.
constexpr uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int bit = 31; bit >= 0; --bit) {
        if ((a >> bit) & 1) product ^= b;
        b = (b >> 1) ^ ((b & 1) ? polynomial : 0);
    }
    return product;
}

constexpr uint32_t power_of_x(uint32_t exponent) {
    uint32_t result = 0x80000000u, square = 0x40000000u;  // x^0, x^1
    for (; exponent; exponent >>= 1, square = multiply(square, square))
        if (exponent & 1) result = multiply(result, square);
    return result;
}

// The factor that shifts over `bytes` zero bytes. The product of two reversed 32-bit values lies one bit too low in
// the 64-bit operand of crc32, and that instruction multiplies by x^32 itself: hence 33 less.
constexpr uint32_t shift_factor(uint32_t bytes) { return power_of_x(8 * bytes - 33); }

inline uint64_t load64(const uint8_t* p) {
    uint64_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

ENGINE_CRC32C_TARGET inline uint64_t carryless_product(uint64_t a, uint32_t b) {
    const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<long long>(a)),
                                                 _mm_cvtsi64_si128(static_cast<long long>(b)), 0);
    return static_cast<uint64_t>(_mm_cvtsi128_si64(product));
}

// Three streams of `Bytes` each, as long as three fit.
template <uint32_t Bytes>
ENGINE_CRC32C_TARGET inline uint64_t three_streams(uint64_t state, const uint8_t*& data, size_t& size) {
    static_assert(Bytes % 8 == 0 && Bytes >= 8, "streams are read in words");
    constexpr uint32_t once = shift_factor(Bytes), twice = shift_factor(2 * Bytes);
    for (; size >= 3 * Bytes; data += 3 * Bytes, size -= 3 * Bytes) {
        uint64_t second = 0, third = 0;
        for (uint32_t at = 0; at < Bytes; at += 8) {
            state = _mm_crc32_u64(state, load64(data + at));
            second = _mm_crc32_u64(second, load64(data + Bytes + at));
            third = _mm_crc32_u64(third, load64(data + 2 * Bytes + at));
        }
        state = third ^ _mm_crc32_u64(0, carryless_product(state, twice) ^ carryless_product(second, once));
    }
    return state;
}

ENGINE_CRC32C_TARGET inline uint32_t hardware(uint32_t value, const uint8_t* data, size_t size) {
    uint64_t state = static_cast<uint32_t>(~value);
    state = three_streams<2048>(state, data, size);  // 6 KiB lie in the nearest cache and hide the joining
    state = three_streams<128>(state, data, size);
    for (; size >= 8; data += 8, size -= 8) state = _mm_crc32_u64(state, load64(data));
    for (; size; ++data, --size) state = _mm_crc32_u8(static_cast<uint32_t>(state), *data);
    return ~static_cast<uint32_t>(state);
}

// ---- ARMv8: compiled in only where the target promises the instructions ----
#elif defined(ENGINE_CRC32C_ARM)

inline uint32_t hardware(uint32_t value, const uint8_t* data, size_t size) {
    uint32_t state = ~value;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        std::memcpy(&word, data, sizeof word);
        state = __crc32cd(state, word);
    }
    for (; size; ++data, --size) state = __crc32cb(state, *data);
    return ~state;
}

#endif

using Function = uint32_t (*)(uint32_t, const uint8_t*, size_t);

inline Function function_of(SimdLevel level) {
#if defined(ENGINE_X86) || defined(ENGINE_CRC32C_ARM)
    if (level != SimdLevel::scalar) return hardware;
#endif
    (void)level;
    return portable;
}

inline const Function chosen = function_of(simd_level());

}  // namespace crc32c_detail

// The checksum of the bytes behind `value` followed by [data, data + size). `data` may be null where size is 0.
inline uint32_t crc32c(uint32_t value, const uint8_t* data, size_t size) {
    return crc32c_detail::chosen(value, data, size);
}

inline uint32_t crc32c_portable(uint32_t value, const uint8_t* data, size_t size) {
    return crc32c_detail::portable(value, data, size);
}

inline bool crc32c_uses_hardware() { return crc32c_detail::chosen != crc32c_detail::portable; }

}  // namespace engine
