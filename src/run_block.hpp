// Sealed runs of ids: sorted entries in checksummed blocks; sorting, writing, searching and merging them.
//
// Laws
// - A run holds each id once, with the last position at which it was seen, ordered by (seeded hash, id). Runs of one
//   window share a seed.
// - The block is a persisted format: 4,096 bytes, little-endian; 16 bytes of header (CRC32C of all that follows it,
//   block number, entry count, zero), then up to 170 entries of 24 bytes (id, position), then zeros. All zeros is
//   never a valid block.
// - Every block is verified whenever it is read: a damaged one is reported, never searched.
// - Memory is bounded: sorting goes by parts of the hash range, merging by the pieces that the caller feeds.
// - No I/O; one owner at a time; allocation failure throws std::bad_alloc.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bloom.hpp"
#include "crc32c.hpp"
#include "id_ring.hpp"

namespace engine {

constexpr size_t kBlockBytes = 4096;
constexpr size_t kBlockHeaderBytes = 16;
constexpr uint64_t kAbsent = ~0ull;

struct RunEntry {
    Id id;
    uint64_t position;
};
static_assert(sizeof(RunEntry) == 24, "a persisted format");
constexpr uint32_t kBlockEntries = (kBlockBytes - kBlockHeaderBytes) / sizeof(RunEntry);

struct BlockHeader {
    uint32_t checksum;
    uint32_t number;
    uint32_t count;
    uint32_t zero;
};

// The place of an id in a run.
struct RunKey {
    uint64_t hash;
    Id id;
    bool operator<(const RunKey& other) const noexcept {
        if (hash != other.hash) return hash < other.hash;
        if (id.high != other.id.high) return id.high < other.id.high;
        return id.low < other.id.low;
    }
};

inline RunKey run_key(const Id& id, const IdSeed& seed) noexcept { return {hash_id(id, seed), id}; }

inline RunEntry load_entry(const uint8_t* bytes) noexcept {
    RunEntry entry;
    std::memcpy(&entry, bytes, sizeof entry);
    return entry;
}

// Whether the 4,096 bytes are block `number`, undamaged.
inline bool block_is_sound(const uint8_t* block, uint32_t number) noexcept {
    BlockHeader header;
    std::memcpy(&header, block, sizeof header);
    return header.number == number && header.count >= 1 && header.count <= kBlockEntries &&
           header.checksum == crc32c(0, block + sizeof header.checksum, kBlockBytes - sizeof header.checksum);
}

inline uint32_t block_count_of(const uint8_t* block) noexcept {
    BlockHeader header;
    std::memcpy(&header, block, sizeof header);
    return header.count;
}

// The position of `key` in a sound block, or kAbsent.
inline uint64_t find_in_block(const uint8_t* block, const RunKey& key, const IdSeed& seed) noexcept {
    uint32_t low = 0, high = block_count_of(block);
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        const RunEntry entry = load_entry(block + kBlockHeaderBytes + middle * sizeof(RunEntry));
        if (entry.id == key.id) return entry.position;
        if (run_key(entry.id, seed) < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return kAbsent;
}

// Cuts sorted entries into blocks and gathers what the reader of the run wants in memory: the first id of each block,
// and the filter.
class RunEncoder {
  public:
    RunEncoder(IdSeed seed, uint64_t expected_keys, uint32_t bits_per_key) : seed_(seed) {
        filter_.resize(bloom_block_count(expected_keys, bits_per_key) * kBloomBlockBytes);
        filter_blocks_ = static_cast<uint32_t>(filter_.size() / kBloomBlockBytes);
    }

    // REQUIRES: larger than every entry before it.
    void add(const RunEntry& entry) {
        if (pending_ == 0) {
            blocks_.resize(blocks_.size() + kBlockBytes);
            first_ids_.push_back(entry.id);
        }
        uint8_t* block = blocks_.data() + blocks_.size() - kBlockBytes;
        std::memcpy(block + kBlockHeaderBytes + pending_ * sizeof(RunEntry), &entry, sizeof entry);
        bloom_add(filter_.data(), filter_blocks_, hash_id(entry.id, seed_));
        count_ += 1;
        first_position_ = std::min(first_position_, entry.position);
        last_position_ = std::max(last_position_, entry.position);
        if (++pending_ == kBlockEntries) close_block();
    }

    void close_block() noexcept {
        if (pending_ == 0) return;
        uint8_t* block = blocks_.data() + blocks_.size() - kBlockBytes;
        BlockHeader header{0, blocks_closed_++, pending_, 0};
        std::memcpy(block, &header, sizeof header);
        header.checksum = crc32c(0, block + sizeof header.checksum, kBlockBytes - sizeof header.checksum);
        std::memcpy(block, &header.checksum, sizeof header.checksum);
        pending_ = 0;
    }

    // Closed blocks that were not taken yet lie at the front of `blocks`.
    size_t closed_bytes() const noexcept { return blocks_.size() - (pending_ ? kBlockBytes : 0); }
    const std::vector<uint8_t>& blocks() const noexcept { return blocks_; }
    void drop(size_t bytes) { blocks_.erase(blocks_.begin(), blocks_.begin() + static_cast<std::ptrdiff_t>(bytes)); }

    const std::vector<uint8_t>& filter() const noexcept { return filter_; }
    const std::vector<Id>& first_ids() const noexcept { return first_ids_; }
    uint64_t count() const noexcept { return count_; }
    uint64_t first_position() const noexcept { return first_position_; }
    uint64_t last_position() const noexcept { return last_position_; }

  private:
    IdSeed seed_;
    std::vector<uint8_t> blocks_;
    std::vector<uint8_t> filter_;
    std::vector<Id> first_ids_;
    uint32_t filter_blocks_ = 0;
    uint32_t pending_ = 0;  // entries in the block that is not closed yet
    uint32_t blocks_closed_ = 0;
    uint64_t count_ = 0;
    uint64_t first_position_ = kAbsent;
    uint64_t last_position_ = 0;
};

// Which block of a run an id can be in.
class RunIndex {
  public:
    RunIndex(IdSeed seed, const uint8_t* first_ids, size_t count) : seed_(seed) {
        keys_.reserve(count);
        for (size_t i = 0; i < count; ++i) keys_.push_back(run_key(load_id(first_ids + i * sizeof(Id)), seed));
    }

    // The block, or 2^32 - 1 when the id sorts before the first one.
    uint32_t locate(const Id& id) const noexcept {
        const auto after = std::upper_bound(keys_.begin(), keys_.end(), run_key(id, seed_));
        return static_cast<uint32_t>(after - keys_.begin()) - 1;
    }

    const IdSeed& seed() const noexcept { return seed_; }
    size_t bytes() const noexcept { return keys_.capacity() * sizeof(RunKey); }

  private:
    IdSeed seed_;
    std::vector<RunKey> keys_;
};

// Sorts a slice of a ring, one part of the hash range at a time.
class SliceSorter {
  public:
    // The entries of positions [start, stop) in part `part` of `parts`, each id once with its last position.
    const std::vector<RunEntry>& sort(const IdRing& ring, const IdSeed& seed, uint64_t start, uint64_t stop,
                                      uint32_t part, uint32_t parts) {
        gather(ring, seed, start, stop, part, parts);
        spread(parts);
        sorted_.clear();
        for (size_t i = 0; i < spread_.size(); ++i) {
            const bool last = i + 1 == spread_.size() || !(spread_[i].key.id == spread_[i + 1].key.id);
            if (last) sorted_.push_back({spread_[i].key.id, spread_[i].position});
        }
        return sorted_;
    }

  private:
    struct Item {
        RunKey key;
        uint64_t position;
        bool operator<(const Item& other) const noexcept {
            if (key < other.key) return true;
            return key.id == other.key.id && position < other.position;
        }
    };

    void gather(const IdRing& ring, const IdSeed& seed, uint64_t start, uint64_t stop, uint32_t part, uint32_t parts) {
        gathered_.clear();
        for (uint64_t position = start; position < stop; ++position) {
            const Id id = *ring.at(position);
            const uint64_t hash = hash_id(id, seed);
            if (((hash >> 32) * parts) >> 32 == part) gathered_.push_back({{hash, id}, position});
        }
    }

    // Hashes are uniform: one counting pass by the bits below the part puts items into tiny buckets, which are sorted
    // one by one.
    void spread(uint32_t parts) {
        const uint64_t buckets = gathered_.size() / 4 + 1;
        const auto bucket_of = [&](const Item& item) {
            return (static_cast<uint32_t>((item.key.hash >> 32) * parts) * buckets) >> 32;
        };
        starts_.assign(static_cast<size_t>(buckets) + 1, 0);
        for (const Item& item : gathered_) ++starts_[bucket_of(item) + 1];
        for (size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
        spread_.resize(gathered_.size());
        ends_.assign(starts_.begin(), starts_.end() - 1);
        for (const Item& item : gathered_) spread_[ends_[bucket_of(item)]++] = item;
        for (size_t i = 0; i + 1 < starts_.size(); ++i)
            if (starts_[i + 1] - starts_[i] > 1)
                std::sort(spread_.begin() + starts_[i], spread_.begin() + starts_[i + 1]);
    }

    std::vector<Item> gathered_;
    std::vector<Item> spread_;
    std::vector<RunEntry> sorted_;
    std::vector<uint32_t> starts_;
    std::vector<uint32_t> ends_;
};

// Merges runs, oldest first, from pieces of whole blocks: an id's last position wins, entries below the horizon are
// left out.
class RunMerger {
  public:
    RunMerger(IdSeed seed, size_t inputs, uint64_t horizon) : seed_(seed), horizon_(horizon), inputs_(inputs) {}

    // Takes the next blocks of an input; none means that it has ended. Returns the number of the first damaged block,
    // or -1.
    int64_t feed(size_t input, const uint8_t* blocks, size_t count) {
        Input& into = inputs_[input];
        into.entries.clear();
        into.next = 0;
        into.ended = count == 0;
        for (size_t i = 0; i < count; ++i) {
            const uint8_t* block = blocks + i * kBlockBytes;
            if (!block_is_sound(block, into.block)) return into.block;
            ++into.block;
            for (uint32_t j = 0; j < block_count_of(block); ++j)
                into.entries.push_back(load_entry(block + kBlockHeaderBytes + j * sizeof(RunEntry)));
        }
        if (!into.ended) into.head = run_key(into.entries[0].id, seed_);
        return -1;
    }

    // Merges into `out` until an input must be fed (returns its index) or all have ended (returns -1). REQUIRES: each
    // was fed once.
    int64_t merge(std::vector<RunEntry>& out) {
        for (;;) {
            const Input* least = nullptr;
            for (size_t i = 0; i < inputs_.size(); ++i) {
                const Input& input = inputs_[i];
                if (input.ended) continue;
                if (input.next == input.entries.size()) return static_cast<int64_t>(i);
                if (!least || input.head < least->head) least = &input;
            }
            if (!least) return -1;
            emit(least->head, out);
        }
    }

  private:
    struct Input {
        std::vector<RunEntry> entries;
        size_t next = 0;
        RunKey head{};
        uint32_t block = 0;
        bool ended = false;
    };

    void emit(const RunKey key, std::vector<RunEntry>& out) {
        uint64_t position = 0;
        for (Input& input : inputs_) {
            if (input.ended || !(input.head.id == key.id)) continue;
            position = std::max(position, input.entries[input.next].position);
            if (++input.next < input.entries.size()) input.head = run_key(input.entries[input.next].id, seed_);
        }
        if (position >= horizon_) out.push_back({key.id, position});
    }

    IdSeed seed_;
    uint64_t horizon_;
    std::vector<Input> inputs_;
};

}  // namespace engine
