// A ring of whole ids in order of arrival, addressed by position.
//
// Laws
// - Positions are 64-bit, consecutive and never reused, but by `truncate`; the ids of [head, tail) are there.
// - Nothing is ever copied to make room: ids live in chunks of fixed size, found through a circular directory of
//   pointers; a chunk is allocated when the tail enters it and freed when the head has left it (one is kept for the
//   next append).
// - An `IdView` reads and fills the reserved places; it holds until the next `reserve` or `release_below`.
// - One owner at a time. Only `reserve` can fail: std::bad_alloc, with the contents as they were.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "pages.hpp"
#include "id_hash.hpp"

namespace engine {

// The places of ids, by position, for loops.
class IdView {
  public:
    IdView(Id* const* chunks, uint64_t directory_mask, uint32_t chunk_bits) noexcept
        : chunks_(chunks), directory_mask_(directory_mask), chunk_bits_(chunk_bits) {}

    Id* at(uint64_t position) const noexcept {
        const uint64_t place = position & ((uint64_t{1} << chunk_bits_) - 1);
        return chunks_[(position >> chunk_bits_) & directory_mask_] + place;
    }

    // Fills `count` places in a row.
    void write(uint64_t position, const Id* ids, size_t count) const noexcept {
        while (count) {
            const uint64_t left = (uint64_t{1} << chunk_bits_) - (position & ((uint64_t{1} << chunk_bits_) - 1));
            const size_t step = count < left ? count : static_cast<size_t>(left);
            std::memcpy(at(position), ids, step * sizeof(Id));
            position += step;
            ids += step;
            count -= step;
        }
    }

  private:
    Id* const* chunks_;
    uint64_t directory_mask_;
    uint32_t chunk_bits_;
};

class IdRing {
  public:
    IdRing(uint64_t start, uint32_t chunk_bits) : chunk_bits_(chunk_bits), head_(start), tail_(start) {
        directory_.resize(8);
    }
    ~IdRing() {
        for (Id* chunk : directory_) discard(chunk);
        discard(spare_);
    }
    IdRing(const IdRing&) = delete;
    IdRing& operator=(const IdRing&) = delete;

    uint64_t head() const noexcept { return head_; }
    uint64_t tail() const noexcept { return tail_; }
    size_t bytes() const noexcept { return chunks_ * chunk_ids() * sizeof(Id); }
    size_t chunk_ids() const noexcept { return size_t{1} << chunk_bits_; }

    const Id* at(uint64_t position) const noexcept { return view().at(position); }
    IdView view() const noexcept { return {directory_.data(), directory_.size() - 1, chunk_bits_}; }

    // Makes room for `count` more ids; throws std::bad_alloc and leaves the contents as they were.
    void reserve(uint64_t count) {
        if (count == 0) return;
        const uint64_t first = head_ >> chunk_bits_, last = (tail_ + count - 1) >> chunk_bits_;
        if (last - first + 1 > directory_.size()) widen(last - first + 1);
        for (uint64_t number = tail_ >> chunk_bits_; number <= last; ++number) {
            Id*& slot = directory_[number & (directory_.size() - 1)];
            if (slot) continue;
            slot = spare_ ? std::exchange(spare_, nullptr) : new_chunk();
        }
    }

    // The ids of the next `count` places are filled. REQUIRES: reserved.
    void advance(uint64_t count) noexcept { tail_ += count; }

    // REQUIRES: head <= position <= tail.
    void truncate(uint64_t position) noexcept { tail_ = position; }

    // Gives back the chunks that lie wholly below `position`, but the last, which is kept for the next append.
    void release_below(uint64_t position) noexcept {
        if (position > tail_) position = tail_;
        for (uint64_t number = head_ >> chunk_bits_; number < (position >> chunk_bits_); ++number) {
            Id*& slot = directory_[number & (directory_.size() - 1)];
            if (!slot) continue;
            discard(std::exchange(spare_, std::exchange(slot, nullptr)));
        }
        if (position > head_) head_ = position;
    }

    void copy_out(uint64_t start, uint64_t stop, uint8_t* target) const noexcept {
        while (start < stop) {
            const uint64_t border = ((start >> chunk_bits_) + 1) << chunk_bits_;
            const size_t size = static_cast<size_t>((border < stop ? border : stop) - start) * sizeof(Id);
            std::memcpy(target, at(start), size);
            target += size;
            start = border;
        }
    }

  private:
    Id* new_chunk() {
        // A small ring stays small: its only chunk is filled by ordinary pages as they are touched.
        const Fill fill = chunks_ > 0 ? Fill::at_once : Fill::touched;
        Id* chunk = static_cast<Id*>(acquire_pages(chunk_ids() * sizeof(Id), fill));
        ++chunks_;
        return chunk;
    }

    void discard(Id* chunk) noexcept {
        if (!chunk) return;
        release_pages(chunk, chunk_ids() * sizeof(Id));
        --chunks_;
    }

    void widen(uint64_t wanted) {
        size_t size = directory_.size();
        while (size < wanted) size *= 2;
        std::vector<Id*> wider(size);
        const uint64_t first = head_ >> chunk_bits_;
        for (uint64_t number = first; number < first + directory_.size(); ++number)
            wider[number & (size - 1)] = directory_[number & (directory_.size() - 1)];
        directory_ = std::move(wider);
    }

    uint32_t chunk_bits_;
    uint64_t head_;
    uint64_t tail_;
    size_t chunks_ = 0;  // allocated, the spare one too
    Id* spare_ = nullptr;
    std::vector<Id*> directory_;  // by chunk number modulo its size, a power of two
};

}  // namespace engine
