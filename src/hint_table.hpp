// Hints: where in the ring of ids a key was last seen, in eight bytes a key.
// A bucket is one cache line: what a probe costs is the number of lines that it has to wait for.
//
// Laws
// - A hint is (fingerprint, position), 32 bits each. It is believed only after the whole id in the ring at that
//   position was compared: a wrong, stale or wrapped hint costs time, never an answer.
// - A hint is live iff its position is in the live range; lanes of hints that are not live are room for new ones.
// - Work per insertion is bounded: the table grows by splitting ONE bucket and shrinks by joining one (linear
//   hashing: Litwin, 1980). Buckets live in fixed pages and never move.
// - A live hint is in the chain of its home bucket: the bucket and its overflow buckets. An overflow bucket without a
//   live hint is given back by the next insertion that passes it.
// - One owner at a time. Only `insert` can fail: std::bad_alloc, with the table as it was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "id_ring.hpp"
#include "prefetch.hpp"

#if defined(__SSE2__) || defined(_M_X64)
#define ENGINE_HINTS_SSE2 1
#include <emmintrin.h>
#endif
#if defined(_MSC_VER)
#include <intrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace engine {

constexpr uint64_t kNowhere = ~0ull;

inline uint32_t lowest_bit(uint32_t mask) noexcept {
#if defined(_MSC_VER)
    unsigned long index;
    _BitScanForward(&index, mask);
    return index;
#else
    return static_cast<uint32_t>(__builtin_ctz(mask));
#endif
}

constexpr uint32_t kLanes = 7;

struct alignas(64) HintBucket {
    uint32_t fingerprints[kLanes];
    uint32_t used;  // lanes [0, used) hold hints, live or not
    uint32_t positions[kLanes];
    uint32_t next;  // number of the overflow bucket + 1, 0 = none
};
static_assert(sizeof(HintBucket) == 64, "one cache line");

// Lanes whose fingerprint is `value`; the 8th lane's bit is meaningless.
inline uint32_t equal_lanes(const HintBucket& bucket, uint32_t value) noexcept {
#ifdef ENGINE_HINTS_SSE2
    const __m128i* lanes = reinterpret_cast<const __m128i*>(bucket.fingerprints);
    const __m128i wanted = _mm_set1_epi32(static_cast<int>(value));
    const __m128i equal = _mm_packs_epi32(_mm_cmpeq_epi32(_mm_load_si128(lanes), wanted),
                                          _mm_cmpeq_epi32(_mm_load_si128(lanes + 1), wanted));
    return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(equal, equal))) & 0xffu;
#else
    uint32_t mask = 0;
    for (uint32_t i = 0; i < kLanes; ++i) mask |= static_cast<uint32_t>(bucket.fingerprints[i] == value) << i;
    return mask;
#endif
}

// Lanes whose position is not among the `span` positions that end with `newest`; the 8th lane's bit is meaningless.
inline uint32_t expired_lanes(const HintBucket& bucket, uint32_t newest, uint32_t span) noexcept {
#ifdef ENGINE_HINTS_SSE2
    const __m128i* lanes = reinterpret_cast<const __m128i*>(bucket.positions);
    const __m128i sign = _mm_set1_epi32(static_cast<int>(0x80000000u));
    const __m128i from = _mm_set1_epi32(static_cast<int>(newest));
    const __m128i limit = _mm_xor_si128(_mm_set1_epi32(static_cast<int>(span)), sign);
    __m128i live[2];
    for (int i = 0; i < 2; ++i)
        live[i] = _mm_cmplt_epi32(_mm_xor_si128(_mm_sub_epi32(from, _mm_load_si128(lanes + i)), sign), limit);
    const __m128i packed = _mm_packs_epi32(live[0], live[1]);
    return ~static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(packed, packed))) & 0xffu;
#else
    uint32_t mask = 0;
    for (uint32_t i = 0; i < kLanes; ++i) mask |= static_cast<uint32_t>(newest - bucket.positions[i] >= span) << i;
    return mask;
#endif
}

// Fixed pages of buckets: growing never moves a bucket.
class BucketPages {
  public:
    static constexpr uint32_t kPageBits = 15;  // 2 MiB a page
    ~BucketPages() { shrink(0); }
    BucketPages() = default;
    BucketPages(const BucketPages&) = delete;
    BucketPages& operator=(const BucketPages&) = delete;

    HintBucket& operator[](uint64_t number) const noexcept {
        return pages_[number >> kPageBits][number & ((1u << kPageBits) - 1)];
    }
    uint64_t capacity() const noexcept { return static_cast<uint64_t>(pages_.size()) << kPageBits; }

    void grow() {
        pages_.reserve(pages_.size() + 1);
        void* page = ::operator new(kPageBytes, std::align_val_t(kAlignment));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        // Advice only: fewer faults while a large table grows, fewer TLB misses ever after. A small one stays small.
        if (!pages_.empty()) madvise(page, kPageBytes, MADV_HUGEPAGE);
#endif
        pages_.push_back(static_cast<HintBucket*>(page));
    }

    // Gives back the pages above the first `count` buckets.
    void shrink(uint64_t count) noexcept {
        const uint64_t wanted = (count + (1u << kPageBits) - 1) >> kPageBits;
        while (pages_.size() > wanted) {
            ::operator delete(pages_.back(), std::align_val_t(kAlignment));
            pages_.pop_back();
        }
    }

  private:
    static constexpr size_t kPageBytes = sizeof(HintBucket) << kPageBits;
    static constexpr size_t kAlignment = kPageBytes;
    std::vector<HintBucket*> pages_;
};

// What a hint's liveness is judged by. REQUIRES: tail - oldest < 2^32 - 1.
struct LiveRange {
    uint64_t oldest;
    uint64_t tail;
    uint32_t newest32() const noexcept { return static_cast<uint32_t>(tail - 1); }
    uint32_t span32() const noexcept { return static_cast<uint32_t>(tail - oldest); }
    // The whole position of a hint, or kNowhere when it is not live.
    uint64_t whole(uint32_t position) const noexcept {
        const uint32_t age = newest32() - position;
        return age < span32() ? tail - 1 - age : kNowhere;
    }
};

class HintTable {
  public:
    // Hints a bucket that the table aims at: few enough that few buckets overflow, although with linear hashing those
    // that are not split yet hold twice as many as those that are.
    static constexpr uint64_t kFill = 4;

    struct Match {
        HintBucket* bucket = nullptr;
        uint32_t lane = 0;
        uint64_t position = kNowhere;
        explicit operator bool() const noexcept { return bucket != nullptr; }
        void move_to(uint64_t position) const noexcept { bucket->positions[lane] = static_cast<uint32_t>(position); }
    };

    HintTable() {
        pages_.grow();
        for (uint64_t i = 0; i <= level_mask_; ++i) clear(pages_[i]);
    }

    uint64_t bucket_count() const noexcept { return level_mask_ + 1 + split_; }
    uint64_t overflow_count() const noexcept { return overflow_used_; }
    uint64_t occupied() const noexcept { return occupied_; }
    uint64_t splits() const noexcept { return splits_; }
    size_t bytes() const noexcept { return static_cast<size_t>(bucket_count() + overflow_made_) * sizeof(HintBucket); }

    void prefetch(uint32_t fingerprint) const noexcept { prefetch_bucket(pages_[home(fingerprint)]); }

    // Once the bucket is near: asks for its first overflow bucket, and for the id that its first matching hint points
    // to.
    void prefetch_id(uint32_t fingerprint, const IdRing& ring, const LiveRange& live) const noexcept {
        const HintBucket& bucket = pages_[home(fingerprint)];
        if (bucket.next) prefetch_bucket(overflow_[bucket.next - 1]);
        const uint32_t mask = equal_lanes(bucket, fingerprint) & ((1u << bucket.used) - 1);
        if (!mask) return;
        const uint64_t position = live.whole(bucket.positions[lowest_bit(mask)]);
        if (position != kNowhere) prefetch_write(ring.at(position));
    }

    // The live hint of `id`. REQUIRES: live is within [ring.head, ring.tail].
    Match find(uint32_t fingerprint, const Id& id, const IdRing& ring, const LiveRange& live) const noexcept {
        for (HintBucket* bucket = &pages_[home(fingerprint)];; bucket = &overflow_[bucket->next - 1]) {
            uint32_t mask = equal_lanes(*bucket, fingerprint) & ((1u << bucket->used) - 1);
            for (; mask; mask &= mask - 1) {
                const uint32_t lane = lowest_bit(mask);
                const uint64_t position = live.whole(bucket->positions[lane]);
                if (position != kNowhere && *ring.at(position) == id) return {bucket, lane, position};
            }
            if (!bucket->next) return {};
        }
    }

    // The hint with this fingerprint and position, whatever the ring holds.
    Match find_position(uint32_t fingerprint, uint64_t position) const noexcept {
        for (HintBucket* bucket = &pages_[home(fingerprint)];; bucket = &overflow_[bucket->next - 1]) {
            uint32_t mask = equal_lanes(*bucket, fingerprint) & ((1u << bucket->used) - 1);
            for (; mask; mask &= mask - 1) {
                const uint32_t lane = lowest_bit(mask);
                if (bucket->positions[lane] == static_cast<uint32_t>(position)) return {bucket, lane, position};
            }
            if (!bucket->next) return {};
        }
    }

    // REQUIRES: no live hint of the same id. Never overwrites a live hint.
    void insert(uint32_t fingerprint, uint64_t position, const LiveRange& live) {
        HintBucket* bucket = &pages_[home(fingerprint)];
        while (!place(*bucket, fingerprint, static_cast<uint32_t>(position), live)) {
            if (!bucket->next) bucket->next = take_overflow();
            bucket = &overflow_[bucket->next - 1];
        }
        if (bucket->next) drop_expired(*bucket, live);
    }

    // Splits one bucket when there are more hints than the table wants. Skips it when memory is short: that costs time
    // only.
    void grow_step(const LiveRange& live) noexcept {
        const uint64_t limit = bucket_count() * kFill;
        if (occupied_ <= limit || live.tail - live.oldest <= limit || bucket_count() > 0x7fffffffull) return;
        HintBucket& source = pages_[split_];
        const uint64_t number = split_ + level_mask_ + 1;
        try {
            if (number >= pages_.capacity()) pages_.grow();
            gather(source, live, 0);
        } catch (const std::bad_alloc&) {
            return;
        }
        HintBucket* targets[2] = {&source, &pages_[number]};
        clear(*targets[0]);
        clear(*targets[1]);
        for (const Hint& hint : scratch_) {
            HintBucket*& target = targets[(hint.fingerprint & (level_mask_ + 1)) != 0];
            target = write(target, hint);
        }
        ++splits_;
        if (++split_ > level_mask_) {
            level_mask_ = level_mask_ * 2 + 1;
            split_ = 0;
        }
    }

    // Joins buckets until the table is no larger than `hints` hints need. REQUIRES: all live hints are judged by
    // `live`.
    void shrink_to(uint64_t hints, const LiveRange& live) noexcept {
        while (level_mask_ + split_ >= kFirstBuckets && (bucket_count() - 1) * kFill > hints) {
            if (!join_last(live)) break;
        }
        pages_.shrink(bucket_count());
    }

  private:
    static constexpr uint64_t kFirstBuckets = 8;
    struct Hint {
        uint32_t fingerprint;
        uint32_t position;
    };

    static void prefetch_bucket(const HintBucket& bucket) noexcept { prefetch_write(&bucket); }

    static void clear(HintBucket& bucket) noexcept {
        bucket.used = 0;
        bucket.next = 0;
    }

    uint64_t home(uint32_t fingerprint) const noexcept {
        const uint64_t number = fingerprint & level_mask_;
        return number < split_ ? (fingerprint & (level_mask_ * 2 + 1)) : number;
    }

    bool place(HintBucket& bucket, uint32_t fingerprint, uint32_t position, const LiveRange& live) noexcept {
        uint32_t lane = bucket.used;
        if (lane == kLanes) {
            const uint32_t expired = expired_lanes(bucket, live.newest32(), live.span32()) & ((1u << kLanes) - 1);
            if (!expired) return false;
            lane = lowest_bit(expired);
        } else {
            ++bucket.used;
            ++occupied_;
        }
        bucket.fingerprints[lane] = fingerprint;
        bucket.positions[lane] = position;
        return true;
    }

    uint32_t take_overflow() {
        if (!free_overflow_) {
            if (overflow_made_ >= overflow_.capacity()) overflow_.grow();
            ++overflow_made_;
            free_overflow_ = static_cast<uint32_t>(overflow_made_);
            clear(overflow_[overflow_made_ - 1]);
        }
        const uint32_t link = free_overflow_;
        HintBucket& bucket = overflow_[link - 1];
        free_overflow_ = bucket.next;
        clear(bucket);
        ++overflow_used_;
        return link;
    }

    void give_back(uint32_t link) noexcept {
        HintBucket& bucket = overflow_[link - 1];
        occupied_ -= bucket.used;
        bucket.used = 0;
        bucket.next = free_overflow_;
        free_overflow_ = link;
        --overflow_used_;
    }

    // Unlinks the bucket after this one if it has no live hint.
    void drop_expired(HintBucket& bucket, const LiveRange& live) noexcept {
        const uint32_t link = bucket.next;
        const HintBucket& next = overflow_[link - 1];
        const uint32_t lanes = (1u << next.used) - 1;
        if ((expired_lanes(next, live.newest32(), live.span32()) & lanes) != lanes) return;
        bucket.next = next.next;
        give_back(link);
    }

    // Moves the live hints of a chain to scratch and gives its overflow buckets back, keeping `spare` lanes of scratch;
    // the first bucket is left for the caller to clear. Throws before anything changed.
    void gather(HintBucket& first, const LiveRange& live, size_t kept) {
        size_t lanes = kLanes;
        for (uint32_t link = first.next; link; link = overflow_[link - 1].next) lanes += kLanes;
        scratch_.resize(kept);
        scratch_.reserve(kept + lanes);
        occupied_ -= first.used;
        collect(first, live);
        for (uint32_t link = first.next; link;) {
            const uint32_t next = overflow_[link - 1].next;
            collect(overflow_[link - 1], live);
            give_back(link);
            link = next;
        }
    }

    void collect(const HintBucket& bucket, const LiveRange& live) noexcept {
        const uint32_t expired = expired_lanes(bucket, live.newest32(), live.span32());
        for (uint32_t lane = 0; lane < bucket.used; ++lane)
            if (!((expired >> lane) & 1)) scratch_.push_back({bucket.fingerprints[lane], bucket.positions[lane]});
    }

    // Appends to a chain that is being rebuilt. The overflow buckets that `gather` gave back are enough for it.
    HintBucket* write(HintBucket* bucket, const Hint& hint) noexcept {
        if (bucket->used == kLanes) {
            bucket->next = take_overflow();
            bucket = &overflow_[bucket->next - 1];
        }
        bucket->fingerprints[bucket->used] = hint.fingerprint;
        bucket->positions[bucket->used++] = hint.position;
        ++occupied_;
        return bucket;
    }

    bool join_last(const LiveRange& live) noexcept {
        const bool halve = split_ == 0;
        const uint64_t mask = halve ? level_mask_ / 2 : level_mask_;
        const uint64_t target = halve ? mask : split_ - 1;
        HintBucket& into = pages_[target];
        HintBucket& from = pages_[target + mask + 1];
        try {
            give_back(take_overflow());  // the joined chain may need one more than the two had
            size_t lanes = 2 * kLanes;
            for (const HintBucket* first : {&into, &from})
                for (uint32_t link = first->next; link; link = overflow_[link - 1].next) lanes += kLanes;
            scratch_.reserve(lanes);
            gather(into, live, 0);
            gather(from, live, scratch_.size());
        } catch (const std::bad_alloc&) {
            return false;
        }
        clear(into);
        clear(from);
        level_mask_ = mask;
        split_ = target;
        HintBucket* last = &into;
        for (const Hint& hint : scratch_) last = write(last, hint);
        return true;
    }

    BucketPages pages_;
    BucketPages overflow_;
    std::vector<Hint> scratch_;
    uint64_t level_mask_ = kFirstBuckets - 1;  // 2^L - 1
    uint64_t split_ = 0;                       // buckets [0, split) are split by bit L
    uint64_t occupied_ = 0;                    // lanes in use, live or not
    uint64_t overflow_made_ = 0;
    uint64_t overflow_used_ = 0;
    uint64_t splits_ = 0;
    uint32_t free_overflow_ = 0;
};

}  // namespace engine
