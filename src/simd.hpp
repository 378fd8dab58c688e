// Which vector instructions the kernels use: what the machine has, and what ENGINE_SIMD forces.
//
// Laws
// - A kernel with more than one code for a loop holds a table of function pointers, one row a level, and takes the row
//   of `simd_level()` once. Every row gives the same bits: what they compute is stored, or compared by tests.
// - A vector loop is compiled for its level by an attribute on the function (ENGINE_AVX2, ENGINE_AVX512), never by
//   flags of the file: the rest of the module must run on any machine.
// - ENGINE_SIMD names a level that is used instead of the best one. A level that this machine lacks, or that does not
//   exist, is a fault that `engine._core` raises when it is imported.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#define ENGINE_X86 1
#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc's own header makes "undefined" vectors that way
#endif
#include <immintrin.h>
#ifdef __GNUC__
#pragma GCC diagnostic pop
#endif
#ifdef _MSC_VER
#include <intrin.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define ENGINE_NEON 1
#include <arm_neon.h>
#endif

#ifdef _MSC_VER
#define ENGINE_TARGET(features)
#define ENGINE_INLINE __forceinline
#define ENGINE_APART __declspec(noinline)
#else
#define ENGINE_TARGET(features) __attribute__((target(features)))
// Inlined whatever the caller is compiled for: so one loop in plain C++ serves several levels.
#define ENGINE_INLINE inline __attribute__((always_inline))
#define ENGINE_APART __attribute__((noinline))
#endif
#define ENGINE_AVX2 ENGINE_TARGET("avx2,bmi,bmi2")
#define ENGINE_AVX512 ENGINE_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2")

namespace engine {

enum class SimdLevel { scalar, neon, avx2, avx512 };

// From the plainest to the best.
inline constexpr SimdLevel kSimdLevels[] = {SimdLevel::scalar, SimdLevel::neon, SimdLevel::avx2, SimdLevel::avx512};

inline std::string level_name(SimdLevel level) {
    switch (level) {
        case SimdLevel::neon:
            return "neon";
        case SimdLevel::avx2:
            return "avx2";
        case SimdLevel::avx512:
            return "avx512";
        default:
            return "scalar";
    }
}

#if defined(ENGINE_X86) && defined(_MSC_VER)
struct CpuFeatures {
    bool avx2 = false;
    bool avx512 = false;

    CpuFeatures() {
        int leaf[4];
        __cpuid(leaf, 0);
        if (leaf[0] < 7) return;
        __cpuid(leaf, 1);
        const bool saved_by_system = (leaf[2] & (1 << 27)) != 0;
        const unsigned long long saved = saved_by_system ? _xgetbv(0) : 0;
        __cpuidex(leaf, 7, 0);
        const auto has = [&](int bit) { return (leaf[1] >> bit & 1) != 0; };
        avx2 = (saved & 0x06) == 0x06 && has(5) && has(3) && has(8);
        avx512 = avx2 && (saved & 0xE6) == 0xE6 && has(16) && has(17) && has(30) && has(31);
    }
};
#elif defined(ENGINE_X86)
struct CpuFeatures {
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                __builtin_cpu_supports("pclmul");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
};
#endif

inline bool machine_has(SimdLevel level) {
#ifdef ENGINE_X86
    static const CpuFeatures features;
    if (level == SimdLevel::avx2) return features.avx2;
    if (level == SimdLevel::avx512) return features.avx512;
#endif
#ifdef ENGINE_NEON
    if (level == SimdLevel::neon) return true;
#endif
    return level == SimdLevel::scalar;
}

inline std::vector<SimdLevel> machine_levels() {
    std::vector<SimdLevel> levels;
    for (SimdLevel level : kSimdLevels) {
        if (machine_has(level)) levels.push_back(level);
    }
    return levels;
}

struct SimdChoice {
    SimdLevel level = SimdLevel::scalar;
    std::string fault;  // why ENGINE_SIMD cannot be followed; empty where it can
};

inline SimdChoice choose_simd(const char* forced) {
    SimdChoice choice;
    const std::vector<SimdLevel> levels = machine_levels();
    choice.level = levels.back();
    if (forced == nullptr || *forced == '\0') return choice;
    choice.fault = "expected a level that this machine has, which are";
    for (SimdLevel level : levels) {
        if (level_name(level) == forced) return {level, ""};
        choice.fault += " " + level_name(level);
    }
    return choice;
}

inline const SimdChoice& simd_choice() {
    static const SimdChoice choice = choose_simd(std::getenv("ENGINE_SIMD"));
    return choice;
}

inline SimdLevel simd_level() { return simd_choice().level; }

}  // namespace engine
