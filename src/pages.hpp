// Memory straight from the system, for blocks that are kept by us rather than by malloc.
//
// Laws
// - `map_pages` gives whole pages, zero at first and taken from memory when touched; `unmap_pages` gives them back at
//   once.
// - `populate` takes memory in one call for pages that are about to be written, instead of by one fault for each. It is
//   advice: a system that does not know it, or has no memory left, leaves them to be taken when touched.
// - Fresh memory is taken by small pages. A virtual machine may have handed its free memory back to its host (free page
//   reporting: whole huge pages), and then a fresh huge page costs 512 faults of the host: 1.1 to 2.6 s a GB, where
//   small pages come first of what the host still holds: 0.3 to 0.7 s. Elsewhere huge ones save little: 0.13 s instead
//   of 0.27. Only what is reached at random for every row is worth that; what is reached at random now and then asks to
//   be gathered into huge pages later, in the background.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#define ENGINE_MAPS_PAGES 1
#include <sys/mman.h>
#if !defined(MAP_ANONYMOUS)
#define MAP_ANONYMOUS MAP_ANON
#endif
#endif

namespace engine {

constexpr size_t kMappedFromBytes = 128 * 1024;
constexpr size_t kHugePageBytes = 2 * 1024 * 1024;

#ifdef ENGINE_MAPS_PAGES

// nullptr: out of memory.
inline void* map_pages(size_t size_bytes) {
    void* pages = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? nullptr : pages;
}

inline size_t whole_pages(size_t size_bytes) {
    constexpr size_t page_bytes = 4096;  // at least: the system rounds up by itself
    return (size_bytes + page_bytes - 1) & ~(page_bytes - 1);
}

// On a huge page's border: one huge page more than asked, and what lies outside of the borders goes back.
inline void* map_aligned(size_t size_bytes) {
    const size_t wanted = whole_pages(size_bytes);
    char* const mapped = static_cast<char*>(map_pages(wanted + kHugePageBytes));
    if (mapped == nullptr) return nullptr;
    const uintptr_t border = (reinterpret_cast<uintptr_t>(mapped) + kHugePageBytes - 1) & ~(kHugePageBytes - 1);
    char* const pages = reinterpret_cast<char*>(border);
    const size_t before = static_cast<size_t>(pages - mapped);
    if (before > 0) munmap(mapped, before);
    if (before < kHugePageBytes) munmap(pages + wanted, kHugePageBytes - before);
    return pages;
}

inline void advise_huge(void* pages, size_t size_bytes) {
#if defined(MADV_HUGEPAGE)
    madvise(pages, size_bytes, MADV_HUGEPAGE);
#else
    static_cast<void>(pages);
    static_cast<void>(size_bytes);
#endif
}

inline void populate(void* pages, size_t size_bytes) {
#if defined(__linux__)
    constexpr int populate_write = 23;  // MADV_POPULATE_WRITE, since Linux 5.14: older headers lack the name
    madvise(pages, size_bytes, populate_write);
#else
    static_cast<void>(pages);
    static_cast<void>(size_bytes);
#endif
}

inline void unmap_pages(void* pages, size_t size_bytes) { munmap(pages, whole_pages(size_bytes)); }

#else

inline void* map_pages(size_t size_bytes) { return std::malloc(size_bytes); }
inline void* map_aligned(size_t size_bytes) { return std::malloc(size_bytes); }
inline void advise_huge(void*, size_t) {}
inline void populate(void*, size_t) {}
inline void unmap_pages(void* pages, size_t) { std::free(pages); }

#endif

// How a piece is filled: as it is touched; at once, and gathered into huge pages later; or by huge pages.
enum class Fill { touched, at_once, huge };

// For structures that grow by pieces of one size and are reached at random: whole huge pages begin on a huge page's
// border; small ones come from malloc. Throws std::bad_alloc.
inline void* acquire_pages(size_t size_bytes, Fill fill) {
    if (size_bytes < kMappedFromBytes) return ::operator new(size_bytes, std::align_val_t(64));
    const bool whole = size_bytes % kHugePageBytes == 0;
    void* const pages = whole ? map_aligned(size_bytes) : map_pages(size_bytes);
    if (pages == nullptr) throw std::bad_alloc();
    if (fill == Fill::at_once) populate(pages, size_bytes);
    // Behind `populate`, which would take huge pages otherwise.
    if (fill != Fill::touched && whole) advise_huge(pages, size_bytes);
    return pages;
}

inline void release_pages(void* pages, size_t size_bytes) noexcept {
    if (size_bytes >= kMappedFromBytes) return unmap_pages(pages, size_bytes);
    ::operator delete(pages, std::align_val_t(64));
}

}  // namespace engine
