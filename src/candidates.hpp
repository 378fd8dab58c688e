// The rows of a batch that only sealed runs can judge: sorted by hash once, sifted by the filter of each run.
//
// Laws
// - Sorted by hash, rows go through a filter, a run's index and its blocks in the order in which those lie: one pass,
//   each cache line, page and block touched once for all rows that need it.
// - `suspects` are the rows that a filter could not clear, of those whose horizon the run reaches; the caller looks
//   them up, newest run first, and says with `resolve` what was found. A row that was found is settled: older runs are
//   not asked for it.
// - A filter is in memory, or comes page by page (`wanted_pages`, then `sift` with those pages, in order), or is
//   missing: then every row is a suspect.
// - One owner at a time; only `add`, `sort` and the suspects' lists take memory (std::bad_alloc).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "bloom.hpp"

namespace engine {

constexpr size_t kFilterPageBytes = 4096;
constexpr uint64_t kNotInRun = ~0ull;

class Candidates {
  public:
    void clear() noexcept {
        items_.clear();
        hashes_.clear();
        order_.clear();
        suspects_.clear();
        settled_ = 0;
        sorted_ = false;
    }

    void reserve(size_t count) {
        items_.reserve(count);
        hashes_.reserve(count);
    }

    // A row whose id was given `position`; sightings below `horizon` do not count for it.
    void add(uint64_t position, uint64_t horizon, uint32_t row, uint64_t hash) {
        items_.push_back({position, horizon, row});
        hashes_.push_back(hash);
    }

    const std::vector<uint32_t>& suspects() const noexcept { return suspects_; }
    uint64_t position_of(uint32_t suspect) const noexcept { return items_[suspect].position; }

    // Sifts by a filter in memory, or by none.
    void ask(const BloomView& filter, uint64_t run_stop) {
        begin();
        const size_t count = hashes_.size();
        if (!filter.blocks) {
            for (size_t i = 0; i < count; ++i) suspect(i, run_stop);
            return;
        }
        verdicts_.resize(count + sizeof(uint64_t));
        bloom_test_many(filter, hashes_.data(), count, verdicts_.data());
        std::memset(verdicts_.data() + count, 0, sizeof(uint64_t));
        for (size_t i = 0; i < count; i += sizeof(uint64_t)) {
            uint64_t eight;
            std::memcpy(&eight, verdicts_.data() + i, sizeof eight);
            if (!eight) continue;
            for (size_t k = i; k < std::min(i + sizeof(uint64_t), count); ++k)
                if (verdicts_[k]) suspect(k, run_stop);
        }
    }

    // The pages of a filter of so many blocks that `sift` will need, ascending.
    const std::vector<uint32_t>& wanted_pages(uint32_t block_count, uint64_t run_stop) {
        begin();
        pages_.clear();
        for (size_t i = 0; i < hashes_.size(); ++i) {
            if (!counts(i, run_stop)) continue;
            const uint32_t page = page_of(hashes_[i], block_count);
            if (pages_.empty() || pages_.back() != page) pages_.push_back(page);
        }
        return pages_;
    }

    // Sifts the rows whose page lies in `pages`: `count` of the wanted ones, in order, `bytes` in all.
    void sift(const uint32_t* pages, size_t count, const uint8_t* bytes, uint32_t block_count, uint64_t run_stop) {
        for (size_t p = 0; p < count; ++p, bytes += kFilterPageBytes) {
            while (cursor_ < hashes_.size() && page_of(hashes_[cursor_], block_count) < pages[p]) ++cursor_;
            for (; cursor_ < hashes_.size() && page_of(hashes_[cursor_], block_count) == pages[p]; ++cursor_) {
                const size_t offset = bloom_block_offset(hashes_[cursor_], block_count) % kFilterPageBytes;
                if (bloom_block_test(bytes + offset, hashes_[cursor_])) suspect(cursor_, run_stop);
            }
        }
    }

    // positions[i] is where the run saw suspect i last, or kNotInRun. Calls `found(row, position,
    // previous, counts)` for each it saw: a row's own position and the one before.
    template <class Found>
    void resolve(const uint64_t* positions, Found found) noexcept {
        for (size_t i = 0; i < suspects_.size(); ++i) {
            if (positions[i] == kNotInRun) continue;
            Item& item = items_[suspects_[i]];
            found(item.row, item.position, positions[i], positions[i] >= item.horizon);
            item.position = kSettled;
            ++settled_;
        }
        suspects_.clear();
        if (settled_ > order_.size() / 8) drop_settled();
    }

  private:
    struct Item {
        uint64_t position;  // or kSettled
        uint64_t horizon;
        uint32_t row;
    };
    static constexpr uint64_t kUpperHalf = ~0ull << 32;
    static constexpr int kRadixBits = 11;
    static constexpr uint64_t kSettled = ~0ull;

    void begin() {
        if (!sorted_) sort();
        suspects_.clear();
        cursor_ = 0;
    }

    static uint32_t page_of(uint64_t hash, uint32_t block_count) noexcept {
        return static_cast<uint32_t>(bloom_block_offset(hash, block_count) / kFilterPageBytes);
    }

    bool counts(size_t i, uint64_t run_stop) const noexcept {
        const Item& item = items_[order_[i]];
        return item.position != kSettled && item.horizon < run_stop;
    }

    void suspect(size_t i, uint64_t run_stop) {
        if (counts(i, run_stop)) suspects_.push_back(order_[i]);
    }

    // By the upper half of the hash, which is all that filters and indices go by: two counting passes over its upper 22
    // bits; what is out of order then is a neighbour or two away.
    void sort() {
        const size_t count = hashes_.size();
        places_.resize(count);
        spread_.resize(count);
        for (size_t i = 0; i < count; ++i) places_[i] = (hashes_[i] & kUpperHalf) | i;
        counting_pass(places_, spread_, 64 - 2 * kRadixBits);
        counting_pass(spread_, places_, 64 - kRadixBits);
        for (size_t i = 1; i < count; ++i) {
            const uint64_t place = places_[i];
            size_t k = i;
            for (; k > 0 && places_[k - 1] > place; --k) places_[k] = places_[k - 1];
            places_[k] = place;
        }
        order_.resize(count);
        for (size_t i = 0; i < count; ++i) order_[i] = static_cast<uint32_t>(places_[i]);
        for (size_t i = 0; i < count; ++i) places_[i] = hashes_[order_[i]];
        hashes_.swap(places_);
        sorted_ = true;
    }

    static void counting_pass(const std::vector<uint64_t>& from, std::vector<uint64_t>& to, int shift) noexcept {
        constexpr uint32_t kBuckets = 1u << kRadixBits;
        uint32_t starts[kBuckets] = {};
        for (const uint64_t place : from) ++starts[(place >> shift) & (kBuckets - 1)];
        uint32_t sum = 0;
        for (uint32_t& start : starts) sum += std::exchange(start, sum);
        for (const uint64_t place : from) to[starts[(place >> shift) & (kBuckets - 1)]++] = place;
    }

    void drop_settled() noexcept {
        size_t kept = 0;
        for (size_t i = 0; i < order_.size(); ++i) {
            if (items_[order_[i]].position == kSettled) continue;
            hashes_[kept] = hashes_[i];
            order_[kept++] = order_[i];
        }
        hashes_.resize(kept);
        order_.resize(kept);
        settled_ = 0;
    }

    std::vector<Item> items_;       // in order of arrival
    std::vector<uint64_t> hashes_;  // in order of arrival, ascending once sorted
    std::vector<uint32_t> order_;   // beside the sorted hashes: which item
    bool sorted_ = false;
    size_t settled_ = 0;
    size_t cursor_ = 0;
    std::vector<uint32_t> suspects_;
    // Kept for their memory.
    std::vector<uint64_t> places_;
    std::vector<uint64_t> spread_;
    std::vector<uint8_t> verdicts_;
    std::vector<uint32_t> pages_;
};

}  // namespace engine
