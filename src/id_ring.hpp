// A ring of whole ids in order of arrival, addressed by position.
//
// Laws
// - Positions are 64-bit, consecutive and never reused, but by `truncate`; the ids of [head, tail) are there.
// - Nothing is ever copied to make room: ids live in chunks of fixed size, found through a circular directory of
//   pointers; a chunk is allocated when the tail enters it and freed when the head has left it (one is kept for the
//   next append).
// - One owner at a time. Only `reserve` can fail: std::bad_alloc, with the contents as they were.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "id_hash.hpp"

namespace engine {

class IdRing {
  public:
    IdRing(uint64_t start, uint32_t chunk_bits) : chunk_bits_(chunk_bits), head_(start), tail_(start) {
        directory_.resize(8);
    }

    uint64_t head() const noexcept { return head_; }
    uint64_t tail() const noexcept { return tail_; }
    size_t bytes() const noexcept { return chunks_ * chunk_ids() * sizeof(Id); }
    size_t chunk_ids() const noexcept { return size_t{1} << chunk_bits_; }

    const Id* at(uint64_t position) const noexcept { return chunk(position).get() + (position & (chunk_ids() - 1)); }

    // Makes room for `count` more ids; throws std::bad_alloc and leaves the contents as they were.
    void reserve(uint64_t count) {
        if (count == 0) return;
        const uint64_t first = head_ >> chunk_bits_, last = (tail_ + count - 1) >> chunk_bits_;
        if (last - first + 1 > directory_.size()) widen(last - first + 1);
        for (uint64_t number = tail_ >> chunk_bits_; number <= last; ++number) {
            auto& slot = directory_[number & (directory_.size() - 1)];
            if (slot) continue;
            if (spare_) {
                slot = std::move(spare_);
            } else {
                slot.reset(new Id[chunk_ids()]);
                ++chunks_;
            }
        }
    }

    // REQUIRES: reserved.
    void append(const Id& id) noexcept {
        *const_cast<Id*>(at(tail_)) = id;
        ++tail_;
    }

    // REQUIRES: head <= position <= tail.
    void truncate(uint64_t position) noexcept { tail_ = position; }

    // Gives back the chunks that lie wholly below `position`; one of them is kept for the next append.
    void release_below(uint64_t position) noexcept {
        if (position > tail_) position = tail_;
        for (uint64_t number = head_ >> chunk_bits_; number < (position >> chunk_bits_); ++number) {
            auto& slot = directory_[number & (directory_.size() - 1)];
            if (!slot) continue;
            if (!spare_) {
                spare_ = std::move(slot);
            } else {
                slot.reset();
                --chunks_;
            }
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
    const std::unique_ptr<Id[]>& chunk(uint64_t position) const noexcept {
        return directory_[(position >> chunk_bits_) & (directory_.size() - 1)];
    }

    void widen(uint64_t wanted) {
        size_t size = directory_.size();
        while (size < wanted) size *= 2;
        std::vector<std::unique_ptr<Id[]>> wider(size);
        const uint64_t first = head_ >> chunk_bits_;
        for (uint64_t number = first; number < first + directory_.size(); ++number)
            wider[number & (size - 1)] = std::move(directory_[number & (directory_.size() - 1)]);
        directory_ = std::move(wider);
    }

    uint32_t chunk_bits_;
    uint64_t head_;
    uint64_t tail_;
    size_t chunks_ = 0;  // allocated, the spare one too
    std::unique_ptr<Id[]> spare_;
    std::vector<std::unique_ptr<Id[]>> directory_;  // by chunk number modulo its size, a power of two
};

}  // namespace engine
