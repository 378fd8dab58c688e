// Asking the cache for a line ahead of its use.
//
// The empty asm is what makes it work: gcc takes an inline function that only prefetches for one without effect, and
// deletes calls of it.
#pragma once

namespace engine {

#if defined(__GNUC__) || defined(__clang__)
inline __attribute__((always_inline)) void prefetch_read(const void* address) noexcept {
    __builtin_prefetch(address, 0, 3);
    __asm__ volatile("");
}
inline __attribute__((always_inline)) void prefetch_write(const void* address) noexcept {
    __builtin_prefetch(address, 1, 3);
    __asm__ volatile("");
}
#else
inline void prefetch_read(const void*) noexcept {}
inline void prefetch_write(const void*) noexcept {}
#endif

}  // namespace engine
