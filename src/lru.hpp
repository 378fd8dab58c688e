// Recent keys: the exact, bounded table of the keys seen last: a ring of whole ids and hints that point into it.
//
// Laws
// - The ring is the truth, hints only point (see hint_table.hpp). Answers are exact, by position.
// - Least recently seen goes first: every sighting takes the next position, so eviction is the moving start of the
//   live range.
// - tail - oldest < 2^32 - 1, because hints keep 32 bits of a position: `reserve` refuses more.
// - One owner at a time. After an exception of `sight` (memory for an overflow bucket) the sighting did not happen.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "hint_table.hpp"

namespace engine {

class RecentKeys {
  public:
    // `hint_bits` < 32 makes fingerprints collide: for tests.
    RecentKeys(IdSeed seed, uint64_t start, uint32_t chunk_bits, uint32_t hint_bits)
        : seed_(seed), hint_mask_(hint_bits >= 32 ? ~0u : (1u << hint_bits) - 1), ring_(start, chunk_bits) {}

    const IdRing& ring() const noexcept { return ring_; }
    const HintTable& table() const noexcept { return table_; }
    const IdSeed& seed() const noexcept { return seed_; }
    uint64_t tail() const noexcept { return ring_.tail(); }
    size_t bytes() const noexcept { return ring_.bytes() + table_.bytes(); }

    void reserve(uint64_t count, uint64_t oldest) {
        if (ring_.tail() + count - oldest >= 0xfffffff0ull) throw std::length_error("more than 2^32 recent keys");
        ring_.reserve(count);
    }

    void prefetch(uint64_t hash) const noexcept { table_.prefetch(fingerprint(hash)); }
    void prefetch_id(uint64_t hash, uint64_t oldest) const noexcept {
        table_.prefetch_id(fingerprint(hash), ring_, LiveRange{oldest, ring_.tail()});
    }

    // Gives the id the next position. Returns its last position in [oldest, tail), or kNowhere. REQUIRES: reserved.
    uint64_t sight(const Id& id, uint64_t hash, uint64_t oldest) {
        const LiveRange live{oldest, ring_.tail()};
        const HintTable::Match match = table_.find(fingerprint(hash), id, ring_, live);
        if (match) {
            match.move_to(live.tail);
        } else {
            table_.insert(fingerprint(hash), live.tail, live);
            table_.grow_step(LiveRange{oldest, live.tail + 1});
        }
        ring_.append(id);
        return match.position;
    }

    // Takes the last sighting back; its key was last seen at `previous` before (kNowhere: not in the live range).
    void unsight(uint64_t previous, uint64_t oldest) noexcept {
        const uint64_t position = ring_.tail() - 1;
        const HintTable::Match match = table_.find_position(fingerprint(hash_id(*ring_.at(position), seed_)), position);
        if (match) match.move_to(previous == kNowhere ? oldest - 1 : previous);
        ring_.truncate(position);
    }

    // Forgets the positions below `oldest` for good and gives the ring's memory back.
    void forget_below(uint64_t oldest) noexcept { ring_.release_below(oldest); }

    // Lets the table shrink when it is more than twice as large as the ring needs it.
    void shrink_table() noexcept {
        const uint64_t keys = ring_.tail() - ring_.head();
        if (table_.bucket_count() * HintTable::kFill > 2 * keys)
            table_.shrink_to(keys + keys / 4, LiveRange{ring_.head(), ring_.tail()});
    }

  private:
    uint32_t fingerprint(uint64_t hash) const noexcept { return static_cast<uint32_t>(hash) & hint_mask_; }

    IdSeed seed_;
    uint32_t hint_mask_;
    IdRing ring_;
    HintTable table_;
};

}  // namespace engine
