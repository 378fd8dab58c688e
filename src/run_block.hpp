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
// - A run and its filter ascend with the hash: each is written, merged and asked from front to back.
// - No I/O; one owner at a time; allocation failure throws std::bad_alloc.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "bloom.hpp"
#include "crc32c.hpp"
#include "id_hash.hpp"
#include "prefetch.hpp"

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

// Cuts sorted entries into blocks and gathers what the reader of the run wants besides: the first id of each block, and
// the filter where the caller lends memory for it.
class RunEncoder {
  public:
    // `filter` has `filter_blocks` blocks of zeros, or none.
    RunEncoder(IdSeed seed, uint8_t* filter, uint32_t filter_blocks)
        : seed_(seed), filter_(filter), filter_blocks_(filter_blocks) {}

    // REQUIRES: larger than every entry before it, with its hash.
    void add(const RunEntry& entry, uint64_t hash) {
        if (pending_ == 0) {
            blocks_.resize(blocks_.size() + kBlockBytes);
            first_ids_.push_back(entry.id);
        }
        uint8_t* block = blocks_.data() + blocks_.size() - kBlockBytes;
        std::memcpy(block + kBlockHeaderBytes + pending_ * sizeof(RunEntry), &entry, sizeof entry);
        if (filter_blocks_) bloom_add(filter_, filter_blocks_, hash);
        count_ += 1;
        first_position_ = std::min(first_position_, entry.position);
        last_position_ = std::max(last_position_, entry.position);
        if (++pending_ == kBlockEntries) close_block();
    }
    void add(const RunEntry& entry) { add(entry, hash_id(entry.id, seed_)); }

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

    const std::vector<Id>& first_ids() const noexcept { return first_ids_; }
    uint64_t count() const noexcept { return count_; }
    uint64_t first_position() const noexcept { return first_position_; }
    uint64_t last_position() const noexcept { return last_position_; }

  private:
    IdSeed seed_;
    uint8_t* filter_;
    uint32_t filter_blocks_;
    std::vector<uint8_t> blocks_;
    std::vector<Id> first_ids_;
    uint32_t pending_ = 0;  // entries in the block that is not closed yet
    uint32_t blocks_closed_ = 0;
    uint64_t count_ = 0;
    uint64_t first_position_ = kAbsent;
    uint64_t last_position_ = 0;
};

// Adds the entries of a sound block to the part of a filter of `filter_blocks` blocks that begins at `first_block`;
// those that belong to other parts are left out.
inline void add_block_to_filter(const uint8_t* block, const IdSeed& seed, uint32_t filter_blocks, uint32_t first_block,
                                uint8_t* part, size_t part_bytes) noexcept {
    for (uint32_t i = 0; i < block_count_of(block); ++i) {
        const RunEntry entry = load_entry(block + kBlockHeaderBytes + i * sizeof(RunEntry));
        const uint64_t hash = hash_id(entry.id, seed);
        const size_t offset = bloom_block_offset(hash, filter_blocks);
        const size_t start = static_cast<size_t>(first_block) * kBloomBlockBytes;
        if (offset >= start && offset < start + part_bytes) bloom_block_add(part + offset - start, hash);
    }
}

// Which blocks of a run an id can be in: four bytes a block, the upper half of the hash of its first id.
class RunIndex {
  public:
    struct Span {
        uint32_t first;
        uint32_t stop;
    };

    // Fewer than 32 `prefix_bits` make blocks hard to tell apart: for tests.
    RunIndex(IdSeed seed, const uint8_t* first_ids, size_t count, uint32_t prefix_bits)
        : seed_(seed), shift_(64 - prefix_bits) {
        prefixes_.reserve(count);
        for (size_t i = 0; i < count; ++i) prefixes_.push_back(prefix(hash_id(load_id(first_ids + i * sizeof(Id)), seed)));
    }

    // The blocks that may hold hashes from `low` to `high`, both included. Of blocks that begin with one prefix any may,
    // and the one before them.
    Span locate(uint64_t low, uint64_t high) const noexcept {
        const auto first = std::lower_bound(prefixes_.begin(), prefixes_.end(), prefix(low)) - prefixes_.begin();
        const auto after = std::upper_bound(prefixes_.begin(), prefixes_.end(), prefix(high)) - prefixes_.begin();
        return {static_cast<uint32_t>(first > 0 ? first - 1 : 0), static_cast<uint32_t>(after)};
    }

    const IdSeed& seed() const noexcept { return seed_; }
    size_t bytes() const noexcept { return prefixes_.capacity() * sizeof(uint32_t); }

  private:
    uint32_t prefix(uint64_t hash) const noexcept { return static_cast<uint32_t>(hash >> shift_); }

    IdSeed seed_;
    uint32_t shift_;
    std::vector<uint32_t> prefixes_;
};

// Sorts ids that were seen at consecutive positions, one part of the hash range at a time.
class IdSorter {
  public:
    // `ids` has 16 bytes each, the first one was seen at `first`. REQUIRES: count < 2^32; `ids` stay as they are.
    IdSorter(const uint8_t* ids, size_t count, uint64_t first, IdSeed seed, uint32_t parts)
        : ids_(ids), first_(first), seed_(seed), parts_(parts) {
        group(count);
    }

    // The entries of one part, each id once with its last position.
    const std::vector<RunEntry>& sort(uint32_t part) {
        gather(part);
        spread();
        sorted_.clear();
        sorted_.reserve(spread_.size());
        for (size_t i = 0; i < spread_.size(); ++i) {
            if (i + kAhead < spread_.size()) prefetch_read(ids_ + spread_[i + kAhead].index * sizeof(Id));
            const Id id = id_at(spread_[i].index);
            const bool last = i + 1 == spread_.size() || spread_[i].hash != spread_[i + 1].hash ||
                              !(id == id_at(spread_[i + 1].index));
            if (last) sorted_.push_back({id, first_ + spread_[i].index});
        }
        return sorted_;
    }

  private:
    struct Item {
        uint64_t hash;
        uint32_t index;
    };

    Id id_at(uint32_t index) const { return load_id(ids_ + size_t{index} * sizeof(Id)); }
    uint64_t hash_at(uint32_t index) const { return hash_id(id_at(index), seed_); }
    uint32_t part_of(uint64_t hash) const { return static_cast<uint32_t>(((hash >> 32) * parts_) >> 32); }

    // Lists the ids of each part, by counting: else every part would have to look at all ids.
    void group(size_t count) {
        part_starts_.assign(size_t{parts_} + 1, 0);
        for (size_t i = 0; i < count; ++i) ++part_starts_[part_of(hash_at(static_cast<uint32_t>(i))) + 1];
        for (size_t p = 0; p < parts_; ++p) part_starts_[p + 1] += part_starts_[p];
        grouped_.resize(count);
        std::vector<uint32_t> next(part_starts_.begin(), part_starts_.end() - 1);
        for (size_t i = 0; i < count; ++i) {
            const uint32_t index = static_cast<uint32_t>(i);
            grouped_[next[part_of(hash_at(index))]++] = index;
        }
    }

    void gather(uint32_t part) {
        gathered_.clear();
        gathered_.reserve(part_starts_[part + 1] - part_starts_[part]);
        const uint32_t stop = part_starts_[part + 1];
        for (uint32_t k = part_starts_[part]; k < stop; ++k) {
            if (k + kAhead < stop) prefetch_read(ids_ + grouped_[k + kAhead] * sizeof(Id));
            gathered_.push_back({hash_at(grouped_[k]), grouped_[k]});
        }
    }

    // Hashes are uniform: one counting pass by the bits below the part puts items into tiny buckets, which are sorted
    // one by one.
    void spread() {
        const uint64_t buckets = gathered_.size() / 2 + 1;
        const auto bucket_of = [&](const Item& item) {
            return (static_cast<uint32_t>((item.hash >> 32) * parts_) * buckets) >> 32;
        };
        starts_.assign(static_cast<size_t>(buckets) + 1, 0);
        for (const Item& item : gathered_) ++starts_[bucket_of(item)];
        uint32_t sum = 0;
        for (uint32_t& start : starts_) sum += std::exchange(start, sum);
        spread_.resize(gathered_.size());
        for (const Item& item : gathered_) spread_[starts_[bucket_of(item)]++] = item;
        const auto before = [&](const Item& left, const Item& right) {
            if (left.hash != right.hash) return left.hash < right.hash;
            const Id a = id_at(left.index), b = id_at(right.index);
            if (a == b) return left.index < right.index;
            return RunKey{left.hash, a} < RunKey{right.hash, b};
        };
        // By insertion: an item moves within its bucket.
        for (size_t i = 1; i < spread_.size(); ++i) {
            const Item item = spread_[i];
            size_t k = i;
            for (; k > 0 && before(item, spread_[k - 1]); --k) spread_[k] = spread_[k - 1];
            spread_[k] = item;
        }
    }

    // A part's ids lie all over the ring: each is asked for so many keys ahead.
    static constexpr uint32_t kAhead = 16;

    const uint8_t* ids_;
    uint64_t first_;
    IdSeed seed_;
    uint32_t parts_;
    std::vector<uint32_t> part_starts_;
    std::vector<uint32_t> grouped_;  // indices of ids, part by part, ascending in each
    std::vector<Item> gathered_;
    std::vector<Item> spread_;
    std::vector<RunEntry> sorted_;
    std::vector<uint32_t> starts_;
};

// Merges runs from pieces of whole blocks: an id's last position wins, entries below the horizon are left out.
class RunMerger {
  public:
    RunMerger(IdSeed seed, size_t inputs, uint64_t horizon)
        : seed_(seed), horizon_(horizon), inputs_(inputs), heads_(inputs, kEnded) {}

    // Takes the next blocks of an input; none means that it has ended. Returns the number of the first damaged block,
    // or -1.
    int64_t feed(size_t input, const uint8_t* blocks, size_t count) {
        Input& into = inputs_[input];
        into.entries.clear();
        into.hashes.clear();
        into.next = 0;
        into.ended = count == 0;
        for (size_t i = 0; i < count; ++i, ++into.block) {
            const uint8_t* block = blocks + i * kBlockBytes;
            if (!block_is_sound(block, into.block)) return into.block;
            const size_t before = into.entries.size(), entries = block_count_of(block);
            into.entries.resize(before + entries);
            std::memcpy(static_cast<void*>(into.entries.data() + before), block + kBlockHeaderBytes,
                        entries * sizeof(RunEntry));
        }
        into.hashes.resize(into.entries.size());
        for (size_t i = 0; i < into.entries.size(); ++i) into.hashes[i] = hash_id(into.entries[i].id, seed_);
        heads_[input] = into.ended ? kEnded : into.hashes[0];
        return -1;
    }

    // Merges until an input must be fed (returns its index) or all have ended (returns -1). REQUIRES: each was fed once.
    int64_t merge(RunEncoder& out) {
        for (size_t i = 0; i < inputs_.size(); ++i)
            if (!inputs_[i].ended && inputs_[i].next == inputs_[i].entries.size()) return static_cast<int64_t>(i);
        for (;;) {
            size_t least = 0;
            bool alone = true;
            for (size_t i = 1; i < heads_.size(); ++i) {
                alone = heads_[i] < heads_[least] || (alone && heads_[i] != heads_[least]);
                least = heads_[i] < heads_[least] ? i : least;
            }
            const int64_t starving = alone && heads_[least] != kEnded ? emit(least, out) : emit_equal(out);
            if (starving != kGoOn) return starving;
        }
    }

  private:
    // Also a hash, if a rare one: `emit_equal` looks twice.
    static constexpr uint64_t kEnded = ~0ull;
    static constexpr int64_t kAllEnded = -1;
    static constexpr int64_t kGoOn = -2;

    struct Input {
        std::vector<RunEntry> entries;
        std::vector<uint64_t> hashes;
        size_t next = 0;
        uint32_t block = 0;
        bool ended = false;
    };

    // The entry of one input is the least by its hash alone.
    int64_t emit(size_t least, RunEncoder& out) {
        const Input& input = inputs_[least];
        const RunEntry& entry = input.entries[input.next];
        if (entry.position >= horizon_) out.add(entry, heads_[least]);
        return advance(least);
    }

    // Several inputs have the least hash: with equal ids, mostly.
    int64_t emit_equal(RunEncoder& out) {
        const Input* least = nullptr;
        RunKey key{};
        for (const Input& input : inputs_) {
            if (input.ended) continue;
            const RunKey head{input.hashes[input.next], input.entries[input.next].id};
            if (least && !(head < key)) continue;
            least = &input;
            key = head;
        }
        if (!least) return kAllEnded;
        uint64_t position = 0;
        int64_t starving = kGoOn;
        for (size_t i = 0; i < inputs_.size(); ++i) {
            const Input& input = inputs_[i];
            if (input.ended || !(input.entries[input.next].id == key.id)) continue;
            position = std::max(position, input.entries[input.next].position);
            const int64_t hungry = advance(i);
            if (starving == kGoOn) starving = hungry;
        }
        if (position >= horizon_) out.add({key.id, position}, key.hash);
        return starving;
    }

    int64_t advance(size_t number) noexcept {
        Input& input = inputs_[number];
        if (++input.next == input.entries.size()) return static_cast<int64_t>(number);
        heads_[number] = input.hashes[input.next];
        return kGoOn;
    }

    IdSeed seed_;
    uint64_t horizon_;
    std::vector<Input> inputs_;
    std::vector<uint64_t> heads_;  // the hash of each input's next entry
};

}  // namespace engine
