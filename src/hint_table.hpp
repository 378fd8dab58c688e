// Hints: where in the ring of ids a key was last seen, in six bytes a key.
// A bucket is one cache line: what a probe costs is the number of lines that it has to wait for.
//
// Laws
// - A hint is a fingerprint of 16 bits and 32 bits of a position. It is believed only after the whole id in the ring at
//   that position was compared: a wrong, stale or wrapped hint costs time, never an answer.
// - A hint is live iff its position is in the live range; lanes of hints that are not live are room for new ones.
// - The table does not grow beyond `limit_bytes`, but for overflow buckets: from there on chains grow instead. Seven
//   hints a bucket cost a probe a tenth more than four and a half, and half as many bytes.
// - Work per insertion is bounded: the table grows by splitting ONE bucket and shrinks by joining one (linear
//   hashing: Litwin, 1980). Buckets live in fixed pages and never move.
// - A live hint is in the chain of its home bucket: the bucket and its overflow buckets. An overflow bucket without a
//   live hint is given back by the next insertion that passes it.
// - One owner at a time. Only `point` can fail: std::bad_alloc, with the table as it was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "pages.hpp"
#include "id_ring.hpp"
#include "prefetch.hpp"
#include "simd.hpp"

namespace engine {

inline uint32_t lowest_bit(uint32_t mask) noexcept {
#if defined(_MSC_VER)
    unsigned long index;
    _BitScanForward(&index, mask);
    return index;
#else
    return static_cast<uint32_t>(__builtin_ctz(mask));
#endif
}

// A choice by masks: compilers turn a conditional one into a branch.
inline uint32_t all_bits_if(bool condition) noexcept { return 0u - static_cast<uint32_t>(condition); }

constexpr uint32_t kLanes = 10;

struct alignas(64) HintBucket {
    uint16_t fingerprints[kLanes];
    uint32_t used : 4;   // lanes [0, used) hold hints, live or not
    uint32_t next : 28;  // number of the overflow bucket + 1, 0 = none
    uint32_t positions[kLanes];
};
static_assert(sizeof(HintBucket) == 64, "one cache line");

// Lanes of a bucket as bits: with a fingerprint, and with a position among the `span` ones that end with `newest`.
struct Lanes {
    uint32_t equal;
    uint32_t live;
    uint32_t matching() const noexcept { return equal & live; }
    uint32_t vacant() const noexcept { return ~live & ((1u << kLanes) - 1); }
};

#ifdef ENGINE_X86
// Four positions each: all bits set where the age is below the limit, both with their sign bits turned over.
inline __m128i younger(__m128i positions, __m128i from, __m128i limit) noexcept {
    return _mm_cmplt_epi32(_mm_sub_epi32(from, positions), limit);
}
#endif

inline Lanes inspect(const HintBucket& bucket, uint16_t fingerprint, uint32_t newest, uint32_t span) noexcept {
    const uint32_t used = (1u << bucket.used) - 1;
#ifdef ENGINE_X86
    // The second half of the fingerprints is read together with what follows them: only its lowest lanes count.
    const __m128i* fingerprints = reinterpret_cast<const __m128i*>(bucket.fingerprints);
    const __m128i wanted = _mm_set1_epi16(static_cast<short>(fingerprint));
    const __m128i equal = _mm_packs_epi16(_mm_cmpeq_epi16(_mm_load_si128(fingerprints), wanted),
                                          _mm_cmpeq_epi16(_mm_load_si128(fingerprints + 1), wanted));
    const __m128i* positions = reinterpret_cast<const __m128i*>(bucket.positions);
    const __m128i from = _mm_set1_epi32(static_cast<int>(newest ^ 0x80000000u));
    const __m128i limit = _mm_set1_epi32(static_cast<int>(span ^ 0x80000000u));
    const __m128i first = _mm_packs_epi32(younger(_mm_loadu_si128(positions), from, limit),
                                          younger(_mm_loadu_si128(positions + 1), from, limit));
    const __m128i rest = younger(_mm_loadl_epi64(positions + 2), from, limit);
    const __m128i live = _mm_packs_epi16(first, _mm_packs_epi32(rest, rest));
    return {static_cast<uint32_t>(_mm_movemask_epi8(equal)) & used,
            static_cast<uint32_t>(_mm_movemask_epi8(live)) & used};
#else
    uint32_t equal = 0, live = 0;
    for (uint32_t i = 0; i < kLanes; ++i) {
        equal |= static_cast<uint32_t>(bucket.fingerprints[i] == fingerprint) << i;
        live |= static_cast<uint32_t>(newest - bucket.positions[i] < span) << i;
    }
    return {equal & used, live & used};
#endif
}

// The same, for loops that are compiled for a level.
struct PlainLanes {
    static Lanes inspect(const HintBucket& bucket, uint16_t fingerprint, uint32_t newest, uint32_t span) noexcept {
        return engine::inspect(bucket, fingerprint, newest, span);
    }
};

#ifdef ENGINE_X86
// The whole line at once.
struct WideLanes {
    ENGINE_AVX512 static inline Lanes inspect(const HintBucket& bucket, uint16_t fingerprint, uint32_t newest,
                                              uint32_t span) noexcept {
        const uint32_t used = (1u << bucket.used) - 1;
        const __m512i line = _mm512_load_si512(&bucket);
        const __m512i age = _mm512_sub_epi32(_mm512_set1_epi32(static_cast<int>(newest)), line);
        const uint32_t equal = _mm512_cmpeq_epi16_mask(line, _mm512_set1_epi16(static_cast<short>(fingerprint)));
        const uint32_t live = _mm512_cmplt_epu32_mask(age, _mm512_set1_epi32(static_cast<int>(span)));
        return {equal & used, (live >> kFirstPosition) & used};
    }
    static constexpr uint32_t kFirstPosition = offsetof(HintBucket, positions) / sizeof(uint32_t);
};
#endif

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
        // A small table stays small: its only page is filled by ordinary pages as they are touched.
        const Fill fill = pages_.empty() ? Fill::touched : Fill::huge;
        pages_.push_back(static_cast<HintBucket*>(acquire_pages(kPageBytes, fill)));
    }

    // Gives back the pages above the first `count` buckets.
    void shrink(uint64_t count) noexcept {
        const uint64_t wanted = (count + (1u << kPageBits) - 1) >> kPageBits;
        while (pages_.size() > wanted) {
            release_pages(pages_.back(), kPageBytes);
            pages_.pop_back();
        }
    }

  private:
    static constexpr size_t kPageBytes = sizeof(HintBucket) << kPageBits;
    std::vector<HintBucket*> pages_;
};

// What a hint's liveness is judged by. REQUIRES: tail - oldest < 2^32 - 1.
struct LiveRange {
    uint64_t oldest;
    uint64_t tail;
    uint32_t newest32() const noexcept { return static_cast<uint32_t>(tail - 1); }
    uint32_t span32() const noexcept { return static_cast<uint32_t>(tail - oldest); }
    // How long ago a hint's position was, counted back from the tail: 1 = the last. REQUIRES: the hint is live.
    uint32_t age(uint32_t position) const noexcept { return static_cast<uint32_t>(tail) - position; }
};

// The hashes of the ids that live hints point to.
struct Hashes {
    const IdView& ids;
    const IdSeed& seed;
    uint64_t mask;
    const LiveRange& live;
    uint64_t of(uint32_t position) const noexcept {
        return hash_id(*ids.at(live.tail - live.age(position)), seed) & mask;
    }
};

class HintTable {
  public:
    // How many hints so many buckets are for: few enough that few buckets overflow, although with linear hashing those
    // that are not split yet hold twice as many as those that are.
    static constexpr uint64_t hints_for(uint64_t buckets) noexcept { return buckets * 9 / 2; }

    HintTable() {
        pages_.grow();
        for (uint64_t i = 0; i <= level_mask_; ++i) clear(pages_[i]);
    }

    uint64_t bucket_count() const noexcept { return level_mask_ + 1 + split_; }
    uint64_t overflow_count() const noexcept { return overflow_used_; }
    uint64_t occupied() const noexcept { return occupied_; }
    uint64_t splits() const noexcept { return splits_; }
    size_t bytes() const noexcept { return static_cast<size_t>(bucket_count() + overflow_made_) * sizeof(HintBucket); }
    void limit_bytes(size_t limit_bytes) noexcept { limit_bytes_ = limit_bytes; }

    // Where the hint of a hash is, and as what. Buckets stay where they are; which one is the home changes as the table
    // grows.
    struct Home {
        HintBucket* bucket;
        uint16_t fingerprint;
    };
    Home home(uint64_t hash) const noexcept {
        const uint64_t number = hash & level_mask_;
        const bool is_split = number < split_;
        return {&pages_[is_split ? hash & (level_mask_ * 2 + 1) : number], fingerprint(hash, level_ + is_split)};
    }

    // Once the home is near: asks for its first overflow bucket, and for the id that its matching hint points to, or,
    // where none matches, for the ring's end.
    template <class Level>
    ENGINE_INLINE void prefetch_answer(const Home& home, const IdView& ids, const LiveRange& live) const noexcept {
        const HintBucket& bucket = *home.bucket;
        if (bucket.next) prefetch_write(&overflow_[bucket.next - 1]);
        const uint32_t matching = Level::inspect(bucket, home.fingerprint, live.newest32(), live.span32()).matching();
        const uint32_t lane = lowest_bit(matching | 1u << (kLanes - 1));
        prefetch_read(ids.at(live.tail - (live.age(bucket.positions[lane]) & all_bits_if(matching != 0))));
    }

    // Makes the hint of the id at `live.tail` point there, adding one if there is none; returns the age of the position
    // that it pointed to, or 0. `id` is that id. Never overwrites the live hint of another. Nobody can foretell whether
    // an id is known: both cases write one lane, by the same instructions, and an unknown id is compared with itself.
    template <class Level>
    ENGINE_INLINE uint32_t point(const Home& home, const IdView& ids, const LiveRange& live, const Id& id) {
        HintBucket& bucket = *home.bucket;
        const Lanes lanes = Level::inspect(bucket, home.fingerprint, live.newest32(), live.span32());
        const uint32_t known = all_bits_if(lanes.matching() != 0);
        const uint32_t candidates = (lanes.matching() & known) | (lanes.vacant() & ~known);
        if ((candidates != 0) & ((known | (bucket.next == 0)) != 0)) {
            const uint32_t lane = lowest_bit(candidates);
            const uint32_t age = live.age(bucket.positions[lane]) & known;
            if (*ids.at(live.tail - age) == id) {
                put(bucket, lane, home.fingerprint, live);
                return age;
            }
        }
        return point_in_chain(home, ids, live);
    }

    // Makes the hint that points to `position` point to `target` instead, if there is one.
    void move(uint64_t hash, uint64_t position, uint64_t target) noexcept {
        const Home place = home(hash);
        for (HintBucket* bucket = place.bucket;; bucket = &overflow_[bucket->next - 1]) {
            for (uint32_t mask = inspect(*bucket, place.fingerprint, 0, 0).equal; mask; mask &= mask - 1) {
                uint32_t& hint = bucket->positions[lowest_bit(mask)];
                if (hint != static_cast<uint32_t>(position)) continue;
                hint = static_cast<uint32_t>(target);
                return;
            }
            if (!bucket->next) return;
        }
    }

    // Splits up to `steps` buckets while there are more hints than the table wants. Skips it when memory is short: that
    // costs time only.
    void grow(uint64_t steps, const Hashes& hashes) noexcept {
        while (steps-- > 0 && wants_to_grow(hashes.live) && split_next(hashes)) {
        }
    }

    // Joins buckets until the table is no larger than `hints` hints need. REQUIRES: all live hints are judged by
    // `hashes.live`.
    void shrink_to(uint64_t hints, const Hashes& hashes) noexcept {
        while (level_mask_ + split_ >= kFirstBuckets && hints_for(bucket_count() - 1) > hints) {
            if (!join_last(hashes)) break;
        }
        pages_.shrink(bucket_count());
    }

  private:
    static constexpr uint64_t kFirstBuckets = 8;
    static constexpr uint64_t kSplitsAhead = 8;
    static constexpr uint32_t kLaneCountMask = 15;
    static constexpr uint64_t kMostOverflow = (1u << 28) - 1;  // what `next` can name
    struct Hint {
        uint16_t fingerprint;
        uint32_t position;
    };

    static void clear(HintBucket& bucket) noexcept {
        bucket.used = 0;
        bucket.next = 0;
    }

    // The number of a bucket is the low `depth` bits of its hashes. A fingerprint has the top 8 bits of the hash, which
    // do not depend on that, and the byte of it that holds bit `depth`: which way the hint goes when its bucket is
    // split. So only a split that steps into another byte has to read the ids.
    static uint16_t fingerprint(uint64_t hash, uint32_t depth) noexcept {
        return static_cast<uint16_t>(((hash >> (depth & ~7u)) & 0xff) << 8 | hash >> 56);
    }
    static uint32_t goes_above(uint16_t fingerprint, uint32_t depth) noexcept {
        return (fingerprint >> (8 + (depth & 7))) & 1;
    }
    // Whether fingerprints of buckets of this depth and of the next are different.
    static bool steps_over(uint32_t depth) noexcept { return (depth & 7) == 7; }

    // Vacant lanes are the dead ones and those after the last that is in use: the lowest never skips one of these.
    void put(HintBucket& bucket, uint32_t lane, uint16_t fingerprint, const LiveRange& live) noexcept {
        const uint32_t added = lane == bucket.used;
        bucket.used = (bucket.used + added) & kLaneCountMask;
        occupied_ += added;
        bucket.fingerprints[lane] = fingerprint;
        bucket.positions[lane] = static_cast<uint32_t>(live.tail);
    }

    // `point`, for ids whose home is full, has overflow buckets, or holds the fingerprint of another id.
    ENGINE_APART uint32_t point_in_chain(const Home& home, const IdView& ids, const LiveRange& live) {
        const uint16_t fingerprint = home.fingerprint;
        HintBucket* room = nullptr;
        HintBucket* bucket = home.bucket;
        for (;; bucket = &overflow_[bucket->next - 1]) {
            const Lanes lanes = inspect(*bucket, fingerprint, live.newest32(), live.span32());
            for (uint32_t mask = lanes.matching(); mask; mask &= mask - 1) {
                uint32_t& hint = bucket->positions[lowest_bit(mask)];
                const uint32_t age = live.age(hint);
                if (!(*ids.at(live.tail - age) == *ids.at(live.tail))) continue;
                hint = static_cast<uint32_t>(live.tail);
                return age;
            }
            if (!room && lanes.vacant()) room = bucket;
            if (!bucket->next) break;
        }
        if (!room) {
            bucket->next = take_overflow();
            room = &overflow_[bucket->next - 1];
        }
        put(*room, lowest_bit(inspect(*room, fingerprint, live.newest32(), live.span32()).vacant()), fingerprint, live);
        if (room->next) drop_expired(*room, live);
        return 0;
    }

    bool wants_to_grow(const LiveRange& live) const noexcept {
        const uint64_t limit = hints_for(bucket_count());
        return occupied_ > limit && live.tail - live.oldest > limit && bucket_count() <= 0x7fffffffull &&
               bytes() < limit_bytes_;
    }

    bool split_next(const Hashes& hashes) noexcept {
        HintBucket& source = pages_[split_];
        const uint64_t number = split_ + level_mask_ + 1;
        try {
            if (number >= pages_.capacity()) pages_.grow();
            source.next ? split_chain(source, pages_[number], hashes) : split_bucket(source, pages_[number], hashes);
        } catch (const std::bad_alloc&) {
            return false;
        }
        ++splits_;
        if (++split_ > level_mask_) {
            level_mask_ = level_mask_ * 2 + 1;
            ++level_;
            split_ = 0;
        }
        ask_for_split(hashes);
        return true;
    }

    // Asks for what the splits some steps from now need: two buckets, and the ids where they must be read.
    void ask_for_split(const Hashes& hashes) const noexcept {
        const uint64_t later = (split_ + 2 * kSplitsAhead) & level_mask_, above = later + level_mask_ + 1;
        prefetch_write(&pages_[later]);
        if (above < pages_.capacity()) prefetch_write(&pages_[above]);
        if (!steps_over(level_)) return;
        const HintBucket& bucket = pages_[(split_ + kSplitsAhead) & level_mask_];
        uint32_t lanes = inspect(bucket, 0, hashes.live.newest32(), hashes.live.span32()).live;
        for (; lanes; lanes &= lanes - 1)
            prefetch_read(hashes.ids.at(hashes.live.tail - hashes.live.age(bucket.positions[lowest_bit(lanes)])));
    }

    // Which way a hint goes is a coin's toss: each is written to both buckets, and counted in one.
    void split_bucket(HintBucket& source, HintBucket& above, const Hashes& hashes) noexcept {
        const HintBucket old = source;
        uint32_t stay = 0, go = 0;
        uint32_t lanes = inspect(old, 0, hashes.live.newest32(), hashes.live.span32()).live;
        for (; lanes; lanes &= lanes - 1) {
            const uint32_t lane = lowest_bit(lanes), position = old.positions[lane];
            uint16_t hint = old.fingerprints[lane];
            const uint32_t goes = goes_above(hint, level_);
            if (steps_over(level_)) hint = fingerprint(hashes.of(position), level_ + 1);
            source.fingerprints[stay] = above.fingerprints[go] = hint;
            source.positions[stay] = above.positions[go] = position;
            stay += goes ^ 1;
            go += goes;
        }
        source.used = stay & kLaneCountMask;
        above.used = go & kLaneCountMask;
        above.next = 0;
        occupied_ -= old.used - stay - go;
    }

    // Throws before anything changed.
    void split_chain(HintBucket& source, HintBucket& above, const Hashes& hashes) {
        gather(source, hashes.live, 0);
        clear(source);
        clear(above);
        HintBucket* targets[2] = {&source, &above};
        for (Hint& hint : scratch_) {
            HintBucket*& target = targets[goes_above(hint.fingerprint, level_)];
            if (steps_over(level_)) hint.fingerprint = fingerprint(hashes.of(hint.position), level_ + 1);
            target = write(target, hint);
        }
    }

    uint32_t take_overflow() {
        if (!free_overflow_) {
            if (overflow_made_ == kMostOverflow) throw std::bad_alloc();
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
        if (inspect(next, 0, live.newest32(), live.span32()).live) return;
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
        uint32_t mask = inspect(bucket, 0, live.newest32(), live.span32()).live;
        for (; mask; mask &= mask - 1)
            scratch_.push_back({bucket.fingerprints[lowest_bit(mask)], bucket.positions[lowest_bit(mask)]});
    }

    // Appends to a chain that is being rebuilt. The overflow buckets that `gather` gave back are enough for it.
    HintBucket* write(HintBucket* bucket, const Hint& hint) noexcept {
        if (bucket->used == kLanes) {
            bucket->next = take_overflow();
            bucket = &overflow_[bucket->next - 1];
        }
        bucket->fingerprints[bucket->used] = hint.fingerprint;
        bucket->positions[bucket->used] = hint.position;
        bucket->used = bucket->used + 1;
        ++occupied_;
        return bucket;
    }

    bool join_last(const Hashes& hashes) noexcept {
        const bool halve = split_ == 0;
        const uint64_t mask = halve ? level_mask_ / 2 : level_mask_;
        const uint64_t target = halve ? mask : split_ - 1;
        const uint32_t depth = halve ? level_ - 1 : level_;
        HintBucket& into = pages_[target];
        HintBucket& from = pages_[target + mask + 1];
        try {
            give_back(take_overflow());  // the joined chain may need one more than the two had
            size_t lanes = 2 * kLanes;
            for (const HintBucket* first : {&into, &from})
                for (uint32_t link = first->next; link; link = overflow_[link - 1].next) lanes += kLanes;
            scratch_.reserve(lanes);
            gather(into, hashes.live, 0);
            gather(from, hashes.live, scratch_.size());
        } catch (const std::bad_alloc&) {
            return false;
        }
        clear(into);
        clear(from);
        level_mask_ = mask;
        level_ = depth;
        split_ = target;
        HintBucket* last = &into;
        for (Hint& hint : scratch_) {
            if (steps_over(depth)) hint.fingerprint = fingerprint(hashes.of(hint.position), depth);
            last = write(last, hint);
        }
        return true;
    }

    BucketPages pages_;
    BucketPages overflow_;
    std::vector<Hint> scratch_;
    uint32_t level_ = 3;
    uint64_t level_mask_ = kFirstBuckets - 1;  // 2^level - 1
    uint64_t split_ = 0;                       // buckets [0, split) are split by bit `level`
    uint64_t occupied_ = 0;                    // lanes in use, live or not
    uint64_t overflow_made_ = 0;
    uint64_t overflow_used_ = 0;
    uint64_t splits_ = 0;
    size_t limit_bytes_ = ~size_t{0};
    uint32_t free_overflow_ = 0;
};

}  // namespace engine
