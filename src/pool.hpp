// A pool of recycled, 64-byte aligned, size-classed buffers: kernel zero, because touching fresh pages costs more than
// the copy that fills them (0.6-0.9 ms per MB against 0.1-0.5 ns per 8-byte value in recycled memory).
//
// Laws
// - A block is at least as large as asked, starts on a 64-byte border and is followed by 64 readable and writable
//   bytes.
// - A block has an atomic reference count, 1 when acquired. The last `release` recycles it, from any thread, without
//   the GIL.
// - Idle (retained) bytes never exceed the limit: the block that was given back longest ago leaves first, whatever its
//   class, so that a change of batch size cannot fill the pool with blocks that nobody asks for again.
// - Blocks below `kSmallBytes` are not retained: malloc keeps those itself. Blocks from `kMappedFromBytes` on come
//   straight from the system and go back to it: malloc would keep the holes that they leave.
// - All kernels share the one pool of `engine._core.pool` through its table of functions (`PoolApi`), found once at
//   import.
// - The pool is never destroyed: release callbacks may run until the process ends.
// - A child of a fork never finds it locked by a thread that only its parent has.
//
// Size classes: four steps per power of two (as in jemalloc), so that a block wastes at most a quarter.
#pragma once

#include <Python.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#include "pages.hpp"

#ifdef ENGINE_MAPS_PAGES
#include <pthread.h>
#endif

namespace engine {

constexpr size_t kAlignmentBytes = 64;
constexpr size_t kPaddingBytes = 64;
constexpr size_t kHeaderBytes = 128;
constexpr size_t kSmallBytes = 16 * 1024;
constexpr int kClassSteps = 4;
constexpr int kClassCount = 64 * kClassSteps;
constexpr size_t kDefaultIdleLimitBytes = 128u << 20;
constexpr size_t kMaxBlockBytes = size_t{1} << 46;

// What one kernel module needs of the pool; the capsule `engine._core.pool._api` holds a pointer to it.
struct PoolApi {
    void* (*acquire)(size_t size_bytes);  // nullptr: out of memory
    void (*retain)(void* block);
    void (*release)(void* block);  // nullptr is allowed
    // Both need the GIL: a Buffer that takes over one reference to the block (also on error), and a read-only Buffer
    // over foreign memory that keeps `owner` alive.
    PyObject* (*wrap)(void* block, size_t size_bytes);
    PyObject* (*view)(const void* data, size_t size_bytes, PyObject* owner);
};

// Each module's copy of the table's address, set once at import.
inline const PoolApi* pool_api = nullptr;

inline void set_pool_api(const PoolApi* api) { pool_api = api; }

// The sole owner of one reference to a pooled block.
class Block {
  public:
    Block() = default;
    explicit Block(size_t size_bytes) : data_(pool_api->acquire(size_bytes)) {
        if (data_ == nullptr) throw std::bad_alloc();
    }
    Block(Block&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
    Block& operator=(Block&& other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    ~Block() {
        if (data_ != nullptr) pool_api->release(data_);
    }
    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    explicit operator bool() const { return data_ != nullptr; }
    void* detach() { return std::exchange(data_, nullptr); }

  private:
    void* data_ = nullptr;
};

struct PoolStatistics {
    size_t in_use_bytes;
    size_t idle_bytes;
    uint64_t hits;
    uint64_t misses;
};

class Pool {
  public:
    void* acquire(size_t size_bytes) {
        if (size_bytes > kMaxBlockBytes) return nullptr;
        const int size_class = class_of(size_bytes);
        const size_t capacity = size_class < 0 ? size_bytes : class_bytes(size_class);
        Header* header = size_class < 0 ? nullptr : take_idle(size_class);
        if (header == nullptr) {
            header = allocate(capacity, size_class, size_bytes);
            if (header == nullptr) return nullptr;
        }
        header->references.store(1, std::memory_order_relaxed);
        in_use_bytes_.fetch_add(capacity, std::memory_order_relaxed);
        return data_of(header);
    }

    static void retain(void* block) { header_of(block)->references.fetch_add(1, std::memory_order_relaxed); }

    void release(void* block) {
        if (block == nullptr) return;
        Header* header = header_of(block);
        // Acquire and release: whoever frees the block has seen every other owner's last access to it.
        if (header->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        in_use_bytes_.fetch_sub(header->capacity_bytes, std::memory_order_relaxed);
        if (header->size_class < 0) return free_block(header);
        Header* evicted;
        {
            std::lock_guard<std::mutex> guard(mutex_);
            push_idle(header);
            evicted = evict_above(limit_bytes_);
        }
        free_chain(evicted);
    }

    void set_limit(size_t limit_bytes) {
        Header* evicted;
        {
            std::lock_guard<std::mutex> guard(mutex_);
            limit_bytes_ = limit_bytes;
            evicted = evict_above(limit_bytes_);
        }
        free_chain(evicted);
    }

    // Gives all idle blocks back to the system; returns how many bytes that were.
    size_t trim() {
        size_t bytes;
        Header* evicted;
        {
            std::lock_guard<std::mutex> guard(mutex_);
            bytes = idle_bytes_;
            evicted = evict_above(0);
        }
        free_chain(evicted);
        return bytes;
    }

    // Around a fork, so that the child's copy is whole and unlocked.
    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

    PoolStatistics statistics() {
        std::lock_guard<std::mutex> guard(mutex_);
        return {in_use_bytes_.load(std::memory_order_relaxed), idle_bytes_, hits_, misses_};
    }

  private:
    // Lies in the 64 bytes in front of the data. An idle block is in its class's stack and in the list by age.
    struct Header {
        std::atomic<int64_t> references;
        size_t capacity_bytes;
        void* allocation;
        size_t mapped_bytes;  // 0: from malloc
        Header* class_below;
        Header* class_above;
        Header* older;
        Header* newer;
        int32_t size_class;
    };
    static_assert(sizeof(Header) <= kHeaderBytes, "the header lies in front of the data");

    static Header* header_of(void* block) {
        return reinterpret_cast<Header*>(static_cast<char*>(block) - kHeaderBytes);
    }
    static void* data_of(Header* header) { return reinterpret_cast<char*>(header) + kHeaderBytes; }

    static size_t class_bytes(int size_class) {
        const int power = size_class / kClassSteps;
        return (size_t{1} << power) + (size_t{1} << power) / kClassSteps * (size_class % kClassSteps);
    }

    // The smallest class that holds `size_bytes`; -1 for small blocks.
    static int class_of(size_t size_bytes) {
        if (size_bytes < kSmallBytes) return -1;
        int power = 0;
        while ((size_t{2} << power) <= size_bytes) ++power;
        int size_class = power * kClassSteps;
        while (class_bytes(size_class) < size_bytes) ++size_class;
        return size_class;
    }

    // Only the bytes that were asked for are about to be written.
    static Header* allocate(size_t capacity, int size_class, size_t asked_bytes) {
        const size_t size_bytes = capacity + kHeaderBytes + kPaddingBytes + kAlignmentBytes;
        const bool mapped = capacity >= kMappedFromBytes;
        void* allocation = mapped ? map_pages(size_bytes) : std::malloc(size_bytes);
        if (allocation == nullptr) return nullptr;
        if (mapped) populate(allocation, kHeaderBytes + asked_bytes);
        const uintptr_t unaligned = reinterpret_cast<uintptr_t>(allocation);
        const uintptr_t start = (unaligned + kAlignmentBytes - 1) & ~uintptr_t{kAlignmentBytes - 1};
        Header* header = new (reinterpret_cast<void*>(start)) Header{};
        header->capacity_bytes = capacity;
        header->allocation = allocation;
        header->mapped_bytes = mapped ? size_bytes : 0;
        header->size_class = size_class;
        return header;
    }

    static void free_block(Header* header) {
        if (header->mapped_bytes != 0) return unmap_pages(header->allocation, header->mapped_bytes);
        std::free(header->allocation);
    }

    Header* take_idle(int size_class) {
        std::lock_guard<std::mutex> guard(mutex_);
        Header* header = stacks_[size_class];
        if (header == nullptr) {
            ++misses_;
            return nullptr;
        }
        ++hits_;
        unlink(header);
        return header;
    }

    void push_idle(Header* header) {
        Header*& top = stacks_[header->size_class];
        header->class_below = top;
        header->class_above = nullptr;
        if (top != nullptr) top->class_above = header;
        top = header;
        header->older = newest_;
        header->newer = nullptr;
        (newest_ != nullptr ? newest_->newer : oldest_) = header;
        newest_ = header;
        idle_bytes_ += header->capacity_bytes;
    }

    void unlink(Header* header) {
        Header* const above = header->class_above;
        (above != nullptr ? above->class_below : stacks_[header->size_class]) = header->class_below;
        if (header->class_below != nullptr) header->class_below->class_above = header->class_above;
        (header->newer != nullptr ? header->newer->older : newest_) = header->older;
        (header->older != nullptr ? header->older->newer : oldest_) = header->newer;
        idle_bytes_ -= header->capacity_bytes;
    }

    // Unlinks the oldest idle blocks until at most `limit_bytes` stay; the caller frees the chain outside the lock.
    Header* evict_above(size_t limit_bytes) {
        Header* chain = nullptr;
        while (idle_bytes_ > limit_bytes) {
            Header* header = oldest_;
            unlink(header);
            header->older = chain;
            chain = header;
        }
        return chain;
    }

    static void free_chain(Header* chain) {
        while (chain != nullptr) {
            Header* next = chain->older;
            free_block(chain);
            chain = next;
        }
    }

    std::mutex mutex_;
    Header* stacks_[kClassCount] = {};
    Header* oldest_ = nullptr;
    Header* newest_ = nullptr;
    size_t idle_bytes_ = 0;
    size_t limit_bytes_ = kDefaultIdleLimitBytes;
    uint64_t hits_ = 0;
    uint64_t misses_ = 0;
    std::atomic<size_t> in_use_bytes_{0};
};

// The process's pool; meaningful in `engine._core.pool` alone, all others go through `pool_api`.
inline Pool& shared_pool() {
    static Pool* pool = new Pool();
    return *pool;
}

// Once in a process. False: out of memory.
inline bool keep_pool_whole_across_forks() {
#ifdef ENGINE_MAPS_PAGES
    const auto unlock = [] { shared_pool().unlock(); };
    return pthread_atfork([] { shared_pool().lock(); }, unlock, unlock) == 0;
#else
    return true;
#endif
}

inline void* shared_pool_acquire(size_t size_bytes) { return shared_pool().acquire(size_bytes); }
inline void shared_pool_retain(void* block) { Pool::retain(block); }
inline void shared_pool_release(void* block) { shared_pool().release(block); }

}  // namespace engine
