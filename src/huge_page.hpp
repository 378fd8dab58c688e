// Memory in pieces of 2 MiB, where the system may back each by one page: large structures that are reached at random
// pay for address translations as much as for the data itself.
//
// Laws
// - A piece of whole huge pages begins on a huge page's border; the advice to use one is given only when asked.
// - Advice only: a system without huge pages gives ordinary memory. An allocation that fails throws std::bad_alloc.
#pragma once

#include <cstddef>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace engine {

constexpr size_t kHugePageBytes = size_t{2} << 20;

inline size_t huge_alignment(size_t size_bytes) noexcept {
    return size_bytes % kHugePageBytes == 0 ? kHugePageBytes : 64;
}

inline void* acquire_pages(size_t size_bytes, bool huge) {
    const size_t alignment = huge_alignment(size_bytes);
    void* start = ::operator new(size_bytes, std::align_val_t(alignment));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (huge && alignment == kHugePageBytes) madvise(start, size_bytes, MADV_HUGEPAGE);
#else
    static_cast<void>(huge);
#endif
    return start;
}

inline void release_pages(void* start, size_t size_bytes) noexcept {
    ::operator delete(start, std::align_val_t(huge_alignment(size_bytes)));
}

}  // namespace engine
