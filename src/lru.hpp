// Recent keys: the exact, bounded table of the keys seen last: a ring of whole ids and hints that point into it.
//
// Laws
// - The ring is the truth, hints only point (see hint_table.hpp). Answers are exact, by position.
// - Least recently seen goes first: every sighting takes the next position, so eviction is the moving start of the
//   live range.
// - tail - oldest < 2^32 - 1, because hints keep 32 bits of a position: `reserve` refuses more.
// - One owner at a time. After an exception of `sight` (memory for an overflow bucket) the ids before the one that
//   found no memory have been sighted, and no other.
//
// The loop goes by groups, and each group passes three stations, so that nobody waits for memory: two groups ahead
// ids are hashed, copied to the ring, and their buckets asked for; one group ahead the ids that the buckets' hints
// point to are asked for; then each id is looked up and its hint set. Asking goes in tight loops: a prefetch that waits
// for its address translation holds up what follows it, and only in a tight loop is that the next prefetch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "hint_table.hpp"

namespace engine {

constexpr uint64_t kNowhere = ~0ull;

class RecentKeys {
  public:
    // `hint_bits` < 32 makes hashes collide in the table: for tests.
    RecentKeys(IdSeed seed, uint64_t start, uint32_t chunk_bits, uint32_t hint_bits)
        : seed_(seed), hash_mask_(hint_bits >= 32 ? ~0ull : (1ull << hint_bits) - 1), ring_(start, chunk_bits) {}

    const IdRing& ring() const noexcept { return ring_; }
    const HintTable& table() const noexcept { return table_; }
    const IdSeed& seed() const noexcept { return seed_; }
    uint64_t tail() const noexcept { return ring_.tail(); }
    size_t bytes() const noexcept { return ring_.bytes() + table_.bytes(); }
    void limit_table_bytes(size_t limit_bytes) noexcept { table_.limit_bytes(limit_bytes); }

    void reserve(uint64_t count, uint64_t oldest) {
        if (ring_.tail() + count - oldest >= 0xfffffff0ull) throw std::length_error("more than 2^32 recent keys");
        ring_.reserve(count);
    }

    // Gives `count` ids the next positions, and says how many positions before it each was sighted last: `ages`, 0 =
    // not in [oldest, its position). The ids lie 16 bytes apart at `ids`: all of them, or those with the numbers in
    // `rows`.
    // REQUIRES: reserved.
    void sight(const uint8_t* ids, const uint32_t* rows, size_t count, uint64_t oldest, uint32_t* ages) {
        static const SightLoop loop = loop_of(simd_level());
        loop(*this, Source{ids, rows, count, ring_.tail()}, oldest, ages);
    }

    // Takes the last sighting back; `age` is what it was given.
    void unsight(uint32_t age, uint64_t oldest) noexcept {
        const uint64_t position = ring_.tail() - 1;
        const uint64_t previous = age ? position - age : oldest - 1;
        table_.move(table_hash(*ring_.at(position)), position, previous);
        ring_.truncate(position);
    }

    // Forgets the positions below `oldest` for good and gives the ring's memory back.
    void forget_below(uint64_t oldest) noexcept { ring_.release_below(oldest); }

    // Lets the table shrink when it is more than twice as large as the ring needs it.
    void shrink_table() noexcept {
        const uint64_t keys = ring_.tail() - ring_.head();
        if (HintTable::hints_for(table_.bucket_count()) <= 2 * keys) return;
        const LiveRange live{ring_.head(), ring_.tail()};
        const IdView view = ring_.view();
        table_.shrink_to(keys + keys / 4, Hashes{view, seed_, hash_mask_, live});
    }

  private:
    static constexpr size_t kGroup = 64;

    struct Source {
        const uint8_t* ids;
        const uint32_t* rows;
        size_t count;
        uint64_t position;
    };

    // Ids on their way through the stations.
    struct Group {
        size_t count;
        uint64_t position;
        uint64_t splits;  // of the table when the homes were looked up
        Id ids[kGroup];
        uint64_t hashes[kGroup];
        HintTable::Home homes[kGroup];
    };

    using SightLoop = void (*)(RecentKeys&, const Source&, uint64_t oldest, uint32_t* ages);

    static SightLoop loop_of(SimdLevel level) noexcept {
#ifdef ENGINE_X86
        if (level == SimdLevel::avx512) return sight_avx512;
#endif
        static_cast<void>(level);
        return sight_plain;
    }

    static void sight_plain(RecentKeys& keys, const Source& source, uint64_t oldest, uint32_t* ages) {
        keys.sight_groups<PlainLanes>(source, oldest, ages);
    }
#ifdef ENGINE_X86
    ENGINE_AVX512 static void sight_avx512(RecentKeys& keys, const Source& source, uint64_t oldest, uint32_t* ages) {
        keys.sight_groups<WideLanes>(source, oldest, ages);
    }
#endif

    template <class Level>
    ENGINE_INLINE void sight_groups(const Source& source, uint64_t oldest, uint32_t* ages) {
        Group groups[3];
        fetch(source, 0, groups[0]);
        fetch(source, kGroup, groups[1]);
        for (size_t first = 0, turn = 0; first < source.count; first += kGroup, turn = (turn + 1) % 3) {
            fetch(source, first + 2 * kGroup, groups[(turn + 2) % 3]);
            ask<Level>(groups[(turn + 1) % 3], oldest);
            point<Level>(groups[turn], oldest, ages + first);
        }
    }

    uint64_t table_hash(const Id& id) const noexcept { return hash_id(id, seed_) & hash_mask_; }

    // The group of the ids from number `first` on: fills their places in the ring and asks for their buckets.
    ENGINE_INLINE void fetch(const Source& source, size_t first, Group& group) const noexcept {
        group.count = first < source.count ? std::min(kGroup, source.count - first) : 0;
        group.position = source.position + first;
        group.splits = table_.splits();
        const IdView view = ring_.view();
        for (size_t i = 0; i < group.count; ++i) {
            const size_t row = source.rows ? source.rows[first + i] : first + i;
            const Id id = load_id(source.ids + row * sizeof(Id));
            group.ids[i] = id;
            group.hashes[i] = table_hash(id);
            group.homes[i] = table_.home(group.hashes[i]);
            prefetch_write(group.homes[i].bucket);
        }
        view.write(group.position, group.ids, group.count);
    }

    // Asks for what the buckets of the group point to.
    template <class Level>
    ENGINE_INLINE void ask(const Group& group, uint64_t oldest) const noexcept {
        const IdView view = ring_.view();
        const LiveRange live{oldest, ring_.tail()};
        for (size_t i = 0; i < group.count; ++i)
            table_.prefetch_answer<Level>(group.homes[i], view, live);
    }

    template <class Level>
    ENGINE_INLINE void point(Group& group, uint64_t oldest, uint32_t* ages) {
        // Homes that moved are near those that were asked for, or new and still in the cache.
        if (group.splits != table_.splits())
            for (size_t i = 0; i < group.count; ++i) group.homes[i] = table_.home(group.hashes[i]);
        const IdView view = ring_.view();
        size_t done = 0;
        try {
            for (; done < group.count; ++done)
                ages[done] = table_.point<Level>(group.homes[done], view, LiveRange{oldest, group.position + done},
                                                 group.ids[done]);
        } catch (...) {
            ring_.advance(done);
            throw;
        }
        ring_.advance(done);
        const LiveRange live{oldest, ring_.tail()};
        table_.grow(done, Hashes{view, seed_, hash_mask_, live});
    }

    IdSeed seed_;
    uint64_t hash_mask_;
    IdRing ring_;
    HintTable table_;
};

}  // namespace engine
