// Memory straight from the system, for blocks that are kept by us rather than by malloc.
//
// Laws
// - `map_pages` gives whole pages, zero at first and taken from memory when touched; `unmap_pages` gives them back at
//   once.
// - From `kHugeFromBytes` on they begin on a huge page's border, with the advice to fill them by huge pages: a fresh
//   block then costs one fault for 2 MiB instead of 512. Smaller ones would waste too much of their last page.
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
constexpr size_t kHugeFromBytes = 2 * kHugePageBytes;

#ifdef ENGINE_MAPS_PAGES

inline void* map_anonymous(size_t size_bytes) {
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
    char* const mapped = static_cast<char*>(map_anonymous(wanted + kHugePageBytes));
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

// nullptr: out of memory.
inline void* map_pages(size_t size_bytes) {
    if (size_bytes < kHugeFromBytes) return map_anonymous(size_bytes);
    void* const pages = map_aligned(size_bytes);
    if (pages != nullptr) advise_huge(pages, size_bytes);
    return pages;
}

inline void unmap_pages(void* pages, size_t size_bytes) { munmap(pages, whole_pages(size_bytes)); }

#else

inline void* map_aligned(size_t size_bytes) { return std::malloc(size_bytes); }
inline void advise_huge(void*, size_t) {}
inline void* map_pages(size_t size_bytes) { return std::malloc(size_bytes); }
inline void unmap_pages(void* pages, size_t) { std::free(pages); }

#endif

// For structures that grow by pieces of one size and are reached at random: whole huge pages begin on a huge page's
// border, with the advice where `huge` asks for it; small pieces come from malloc. Throws std::bad_alloc.
inline void* acquire_pages(size_t size_bytes, bool huge) {
    if (size_bytes < kMappedFromBytes) return ::operator new(size_bytes, std::align_val_t(64));
    const bool whole = size_bytes % kHugePageBytes == 0;
    void* const pages = whole ? map_aligned(size_bytes) : map_pages(size_bytes);
    if (pages == nullptr) throw std::bad_alloc();
    if (huge && whole) advise_huge(pages, size_bytes);
    return pages;
}

inline void release_pages(void* pages, size_t size_bytes) noexcept {
    if (size_bytes >= kMappedFromBytes) return unmap_pages(pages, size_bytes);
    ::operator delete(pages, std::align_val_t(64));
}

}  // namespace engine
