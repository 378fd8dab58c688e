// The horizon of a dedup window: the position below which sightings no longer count.
//
// Laws
// - Rows rule: horizon(p) = p - within. Exact.
// - Time rule: the clock is the running maximum of the rows' clock values. A mark (position, clock) says: every
//   position below it was sighted at this clock or earlier. The horizon is the position of the last mark whose clock
//   < now - within (strictly). So a sighting within `within` is never below the horizon, and one is below it as soon
//   as the clock is more than within + step past it, where step = max(1, within / 64): a mark is set by the row that
//   brings the clock `step` past the clock at the previous mark, with the clock as it was before that row. A row with
//   the clock value kNoClock does not move the clock.
// - Everything is decided row by row: where batches begin and end changes nothing.
// - The horizon never goes back but by `rewind`.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <utility>

namespace engine {

constexpr uint64_t kForever = ~0ull;
constexpr int64_t kNoClock = std::numeric_limits<int64_t>::min();

struct Mark {
    uint64_t position;
    int64_t clock;
};

class Horizon {
  public:
    // What `rewind` needs; marks are counted from the beginning of time.
    struct State {
        bool running = false;
        int64_t now = 0;
        int64_t mark_base = 0;
        uint64_t marks_made = 0;
        uint64_t marks_passed = 0;
        uint64_t position = 0;
    };

    Horizon(bool timed, uint64_t within) noexcept : timed_(timed), within_(within) {
        step_ = within_ / 64 > 1 ? within_ / 64 : 1;
    }

    bool timed() const noexcept { return timed_; }
    const State& state() const noexcept { return state_; }

    // The rows rule: how many positions back a sighting counts, and the horizon of a row at `position`.
    uint32_t within_positions() const noexcept { return static_cast<uint32_t>(std::min<uint64_t>(within_, ~0u)); }
    uint64_t of_rows(uint64_t position) const noexcept { return position > within_ ? position - within_ : 0; }

    // The rows rule, for all rows up to the one at `position`.
    void advance(uint64_t position) noexcept { state_.position = std::max(state_.position, of_rows(position)); }

    // The time rule, for the row at `position` whose clock value is `value`; gives its horizon.
    uint64_t advance(uint64_t position, int64_t value) {
        move_clock(position, value);
        return state_.position;
    }

    // Back to an earlier state that is not older than the last `settle`.
    void rewind(const State& earlier) noexcept {
        while (dropped_ + marks_.size() > earlier.marks_made) marks_.pop_back();
        state_ = earlier;
    }

    // No rewind will go behind `state`: its passed marks may go.
    void settle(const State& state) noexcept {
        while (dropped_ < state.marks_passed) {
            marks_.pop_front();
            ++dropped_;
        }
    }

    // The marks that `state` had not passed, for a snapshot of it.
    std::deque<Mark> pending(const State& state) const {
        return {marks_.begin() + static_cast<std::ptrdiff_t>(state.marks_passed - dropped_),
                marks_.begin() + static_cast<std::ptrdiff_t>(state.marks_made - dropped_)};
    }

    void restore(const State& state, std::deque<Mark> marks) noexcept {
        marks_ = std::move(marks);
        dropped_ = 0;
        state_ = state;
        state_.marks_passed = 0;
        state_.marks_made = marks_.size();
    }

  private:
    void move_clock(uint64_t position, int64_t value) {
        if (value == kNoClock) return;
        if (!state_.running) {
            state_.running = true;
            state_.now = state_.mark_base = value;
            return;
        }
        if (value <= state_.now) return;
        if (static_cast<uint64_t>(value) - static_cast<uint64_t>(state_.mark_base) >= step_) {
            marks_.push_back({position, state_.now});
            ++state_.marks_made;
            state_.mark_base = value;
        }
        state_.now = value;
        while (state_.marks_passed < state_.marks_made) {
            const Mark& mark = marks_[static_cast<size_t>(state_.marks_passed - dropped_)];
            if (static_cast<uint64_t>(value) - static_cast<uint64_t>(mark.clock) <= within_) break;
            state_.position = mark.position;
            ++state_.marks_passed;
        }
    }

    bool timed_;
    uint64_t within_;
    uint64_t step_;
    State state_;
    std::deque<Mark> marks_;
    uint64_t dropped_ = 0;
};

}  // namespace engine
