// The full keys of recent positions, in pages of bytes in order of arrival.
//
// Laws
// - Positions are 64-bit and consecutive; the keys of [first, tail) are here. Nothing is copied to make room: a page is
//   allocated when the tail enters it and freed when `first` has left it.
// - Keys are found by position: the page by binary search, the key by its end in the page.
// - A key lies in one page; one that is larger than a page gets a page of its own. Behind the keys of a page 16 bytes of
//   room are left, so that copies may go in steps.
// - One owner at a time. Appending either happens or throws (std::bad_alloc, std::length_error) with the keys as they
//   were.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <vector>

#include "key_bytes.hpp"
#include "prefetch.hpp"
#include "sighting.hpp"

namespace engine {

struct KeyView {
    const uint8_t* data;
    size_t size;
    friend bool operator==(const KeyView& a, const KeyView& b) noexcept {
        return a.size == b.size && (a.size == 0 || std::memcmp(a.data, b.data, a.size) == 0);
    }
    friend bool operator!=(const KeyView& a, const KeyView& b) noexcept { return !(a == b); }
};

// Keys side by side: the first begins at `bytes + begin`, each ends at its `bytes + ends[i]`, where the next begins.
struct KeySpan {
    const uint8_t* bytes;
    uint32_t begin;
    const uint32_t* ends;
    size_t count;
};

constexpr uint64_t kNoDifference = ~0ull;

class KeyPages {
  public:
    KeyPages(uint64_t start, size_t page_bytes) : page_bytes_(page_bytes), first_(start), tail_(start) {}

    uint64_t first() const noexcept { return first_; }
    uint64_t tail() const noexcept { return tail_; }
    size_t bytes() const noexcept { return bytes_; }

    // REQUIRES: first <= position < tail.
    KeyView at(uint64_t position) const noexcept { return page_of(position).at(position); }

    // The keys from `position` on that lie side by side. REQUIRES: first <= position < tail.
    KeySpan span_from(uint64_t position) const noexcept {
        const Page& page = page_of(position);
        const size_t key = static_cast<size_t>(position - page.first);
        return {page.bytes.get(), page.begin_of(key), page.ends.data() + key, page.ends.size() - key};
    }

    // Bytes of the keys of [start, stop). REQUIRES: first <= start <= stop <= tail.
    uint64_t bytes_between(uint64_t start, uint64_t stop) const noexcept { return offset_of(stop) - offset_of(start); }

    void append(const Batch& batch, const KeyedRows& wanted) {
        undoing([&] { write_key_bytes(batch, wanted, [this](uint64_t size) { return place(size); }); });
    }

    // `count` keys; `key(i)` views each.
    template <class Key>
    void append_each(size_t count, Key&& key) {
        undoing([&] {
            for (size_t i = 0; i < count; ++i) put(key(i).data, key(i).size);
        });
    }

    // Keys of one size; `wanted` says which rows have one.
    void append_fixed(const uint8_t* keys, size_t size, int64_t rows, const KeyedRows& wanted) {
        undoing([&] {
            for (int64_t row = 0; row < rows; ++row)
                if (wanted(row)) put(keys + static_cast<size_t>(row) * size, size);
        });
    }

    // Takes back the keys from `position` on.
    void truncate(uint64_t position) noexcept {
        if (position >= tail_) return;
        while (!pages_.empty() && pages_.back().first >= position) drop(true);
        if (!pages_.empty()) pages_.back().ends.resize(static_cast<size_t>(position - pages_.back().first));
        tail_ = position;
        first_ = std::min(first_, tail_);
    }

    void release_below(uint64_t position) noexcept {
        position = std::min(position, tail_);
        while (!pages_.empty() && pages_.front().stop() <= position) drop(false);
        first_ = std::max(first_, position);
    }

    // Where `first` must go for the pages to take at most so many bytes.
    uint64_t first_within(size_t limit_bytes) const noexcept {
        size_t left = bytes_ + (spare_ ? 0 : page_bytes_ + kRoom);  // the first one that goes is kept
        for (const Page& page : pages_) {
            if (left <= limit_bytes) return std::max(first_, page.first);
            left -= page.memory();
        }
        return tail_;
    }

    // The lowest position whose key differs from the one at its previous sighting, or kNoDifference. Sightings before
    // `first` are not compared: their numbers are appended to `elsewhere`. REQUIRES: positions are in [first, tail).
    uint64_t compare(const Sighting* sightings, size_t count, std::vector<uint32_t>& elsewhere) const {
        constexpr size_t kGroup = 32;
        const Page* pages[kGroup];
        KeyView previous[kGroup];
        uint64_t lowest = kNoDifference;
        const Finder finder(pages_);
        const Page* here = nullptr;  // of the position at hand: positions mostly ascend
        for (size_t start = 0; start < count; start += kGroup) {
            const size_t size = std::min(kGroup, count - start);
            const Sighting* group = sightings + start;
            for (size_t i = 0; i < size; ++i) {
                pages[i] = group[i].previous < first_ ? nullptr : finder.page_of(group[i].previous);
                if (pages[i]) pages[i]->prefetch_end(group[i].previous);
            }
            for (size_t i = 0; i < size; ++i) {
                if (!pages[i]) continue;
                previous[i] = pages[i]->at(group[i].previous);
                for (size_t at = 0; at < previous[i].size + 63 && at < 256; at += 64) prefetch_read(previous[i].data + at);
            }
            for (size_t i = 0; i < size; ++i) {
                if (!pages[i]) {
                    elsewhere.push_back(static_cast<uint32_t>(start + i));
                    continue;
                }
                const uint64_t position = group[i].position;
                if (!here || position < here->first || position >= here->stop()) here = finder.page_of(position);
                if (here->at(position) != previous[i]) lowest = std::min(lowest, position);
            }
        }
        return lowest;
    }

  private:
    static constexpr size_t kRoom = 16;
    static constexpr size_t kFewestKeys = 64, kMostKeys = 1 << 16;

    struct Page {
        uint64_t first;
        uint64_t offset;  // bytes of all keys ever in earlier pages
        size_t capacity;
        std::vector<uint32_t> ends;  // of its keys; it never grows
        std::unique_ptr<uint8_t[]> bytes;

        uint64_t stop() const noexcept { return first + ends.size(); }
        size_t used() const noexcept { return ends.empty() ? 0 : ends.back(); }
        size_t memory() const noexcept { return capacity + kRoom + ends.capacity() * sizeof(uint32_t) + sizeof(Page); }
        uint32_t begin_of(size_t key) const noexcept { return key == 0 ? 0 : ends[key - 1]; }
        KeyView at(uint64_t position) const noexcept {
            const size_t key = static_cast<size_t>(position - first);
            return {bytes.get() + begin_of(key), ends[key] - begin_of(key)};
        }
        void prefetch_end(uint64_t position) const noexcept {
            prefetch_read(ends.data() + static_cast<size_t>(position - first));
        }
    };

    // The pages by the position that they begin with, side by side: a search in a deque waits for memory at every step.
    class Finder {
      public:
        explicit Finder(const std::deque<Page>& pages) {
            firsts_.reserve(pages.size());
            pages_.reserve(pages.size());
            for (const Page& page : pages) {
                firsts_.push_back(page.first);
                pages_.push_back(&page);
            }
        }
        // REQUIRES: the position is in one of them.
        const Page* page_of(uint64_t position) const noexcept {
            const uint64_t* base = firsts_.data();
            for (size_t left = firsts_.size(); left > 1;) {
                const size_t half = left / 2;
                base = base[half] <= position ? base + half : base;
                left -= half;
            }
            return pages_[static_cast<size_t>(base - firsts_.data())];
        }

      private:
        std::vector<uint64_t> firsts_;
        std::vector<const Page*> pages_;
    };

    const Page& page_of(uint64_t position) const noexcept {
        if (position >= pages_.back().first) return pages_.back();
        return *std::prev(std::upper_bound(pages_.begin(), pages_.end(), position,
                                           [](uint64_t wanted, const Page& page) { return wanted < page.first; }));
    }

    uint64_t offset_of(uint64_t position) const noexcept {
        if (pages_.empty()) return 0;
        if (position >= tail_) return pages_.back().offset + pages_.back().used();
        const Page& page = page_of(position);
        return page.offset + page.begin_of(static_cast<size_t>(position - page.first));
    }

    template <class Append>
    void undoing(Append&& append) {
        const uint64_t tail = tail_;
        try {
            append();
        } catch (...) {
            truncate(tail);
            throw;
        }
    }

    void put(const uint8_t* key, size_t size) {
        uint8_t* target = place(size);
        if (size > 0) std::memcpy(target, key, size);
    }

    // Gives the next position to a key of so many bytes, and the address for them.
    uint8_t* place(uint64_t size) {
        if (size > UINT32_MAX) throw std::length_error("a key has more than 4 GiB");
        if (pages_.empty() || pages_.back().ends.size() == pages_.back().ends.capacity() ||
            pages_.back().capacity - pages_.back().used() < size) {
            open(static_cast<size_t>(size));
        }
        Page& page = pages_.back();
        uint8_t* target = page.bytes.get() + page.used();
        page.ends.push_back(static_cast<uint32_t>(page.used() + size));
        ++tail_;
        return target;
    }

    // A new page, for so many keys as the last one showed to fit.
    void open(size_t size) {
        Page page;
        page.first = tail_;
        page.offset = offset_of(tail_);
        page.capacity = std::max(size, page_bytes_);
        const size_t before = pages_.empty() ? page_bytes_ / 64 : pages_.back().ends.size();
        page.ends.reserve(std::clamp(before + before / 4, kFewestKeys, kMostKeys));
        if (spare_ && page.capacity == page_bytes_) {
            page.bytes = std::move(spare_);
            bytes_ -= page_bytes_ + kRoom;
        } else {
            page.bytes.reset(new uint8_t[page.capacity + kRoom]);
        }
        pages_.push_back(std::move(page));
        bytes_ += pages_.back().memory();
    }

    // Drops the last page or the first one; the bytes of one are kept for the next page.
    void drop(bool last) noexcept {
        Page& page = last ? pages_.back() : pages_.front();
        bytes_ -= page.memory();
        if (!spare_ && page.capacity == page_bytes_) {
            spare_ = std::move(page.bytes);
            bytes_ += page_bytes_ + kRoom;
        }
        last ? pages_.pop_back() : pages_.pop_front();
    }

    size_t page_bytes_;
    uint64_t first_;
    uint64_t tail_;
    size_t bytes_ = 0;
    std::deque<Page> pages_;
    std::unique_ptr<uint8_t[]> spare_;
};

}  // namespace engine
