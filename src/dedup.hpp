// The dedup window: which rows were seen before, exactly, with undo, in front of sealed runs that live elsewhere.
//
// Laws
// - A keyed row takes the next position and is a duplicate iff the last sighting of its id is not below its horizon
//   (horizon.hpp). Every sighting counts, a duplicate's too; the first row wins, inside a batch as well. Rows without
//   a key take no position.
// - Sightings in [oldest, tail) are answered by the recent keys; older ones by sealed runs: the rows that those must be
//   asked for are the candidates (candidates.hpp); the caller looks them up and says what was found with `resolve`.
// - Tokens are numbered from 1 and commit in order; aborting one aborts every later one and leaves the window as if
//   they had never been. Nothing that an abort could need is forgotten: forgetting and sealing stop at what is
//   committed.
// - One owner at a time. `probe` either happens or throws with the window as it was.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "candidates.hpp"
#include "horizon.hpp"
#include "lru.hpp"
#include "sighting.hpp"

namespace engine {

// A batch as the kernel sees it: foreign, read-only, except `mask`, which the caller lends for the answer (1 = wanted).
struct IdBatch {
    const uint8_t* ids = nullptr;        // 16 bytes a row
    const uint8_t* keyed = nullptr;      // 0 = a key component is null; nullptr = none is
    const uint8_t* selection = nullptr;  // 0 = not wanted before; nullptr = all are
    const int64_t* clock = nullptr;      // nullptr with the rows rule
    size_t rows = 0;
    uint8_t* mask = nullptr;
};

struct Tally {
    uint64_t rows = 0;
    uint64_t duplicates = 0;
    uint64_t null_keys = 0;
    uint64_t recent_hits = 0;
    uint64_t run_hits = 0;
    uint64_t run_lookups = 0;
};

// A sealed run as the window knows it: positions [first, stop), and its filter, if that is in memory.
struct SealedRun {
    uint64_t first;
    uint64_t stop;
    BloomView filter;
};

class DedupWindow {
  public:
    DedupWindow(IdSeed seed, bool timed, uint64_t within, uint64_t start, uint32_t chunk_bits, uint32_t hint_bits)
        : recent_(seed, start, chunk_bits, hint_bits), horizon_(timed, within), oldest_(start), committed_(start) {}

    const RecentKeys& recent() const noexcept { return recent_; }
    void limit_table_bytes(size_t limit_bytes) noexcept { recent_.limit_table_bytes(limit_bytes); }
    const Horizon& horizon() const noexcept { return horizon_; }
    const Horizon::State& committed_horizon() const noexcept { return committed_state_; }
    const Tally& committed_tally() const noexcept { return committed_tally_; }
    uint64_t oldest() const noexcept { return oldest_; }
    uint64_t committed() const noexcept { return committed_; }
    uint64_t tail() const noexcept { return recent_.tail(); }
    // 0 when no token is open.
    uint64_t oldest_token() const noexcept { return tokens_.empty() ? 0 : tokens_.front().number; }
    uint64_t oldest_token_stop() const noexcept { return tokens_.size() > 1 ? tokens_[1].start : recent_.tail(); }
    bool is_open(uint64_t number) const noexcept {
        for (const Token& token : tokens_)
            if (token.number == number) return true;
        return false;
    }

    // Probes and marks; returns the token. The rows that sealed runs must be asked for are in the candidates.
    uint64_t probe(const IdBatch& batch, bool has_runs) {
        candidates_.clear();
        run_hits_.clear();
        batch_ = batch;
        Token token;
        token.number = next_number_;
        token.start = recent_.tail();
        token.before = horizon_.state();
        const size_t count = choose_rows(token.tally);
        recent_.reserve(count, oldest_);
        token.ages = take_ages(count);
        tokens_.push_back(std::move(token));
        try {
            recent_.sight(batch_.ids, all_rows_ ? nullptr : rows_.data(), count, oldest_, tokens_.back().ages.data());
            horizon_.timed() ? judge_by_clock(has_runs) : judge_by_rows(has_runs);
        } catch (...) {
            abort_last();
            throw;
        }
        return next_number_++;
    }

    // The rows of the last probe that sealed runs must be asked for.
    Candidates& candidates() noexcept { return candidates_; }

    Id suspect_id(uint32_t suspect) const noexcept { return *recent_.ring().at(candidates_.position_of(suspect)); }

    // positions[i] is where the run saw suspect i last, or kNotInRun.
    void resolve(const uint64_t* positions) {
        run_hits_.reserve(run_hits_.size() + candidates_.suspects().size());
        Tally& tally = tokens_.back().tally;
        tally.run_lookups += candidates_.suspects().size();
        candidates_.resolve(positions, [&](uint32_t row, uint64_t position, uint64_t previous, bool counts) {
            if (!counts) return;
            batch_.mask[row] = 0;
            run_hits_.push_back({position, previous});
            ++tally.duplicates;
            ++tally.run_hits;
        });
    }

    const Tally& last_tally() const noexcept { return tokens_.back().tally; }

    // Where the duplicates of the last probe are, and where their ids were sighted before. REQUIRES: its token is open.
    std::vector<Sighting> duplicates() const {
        const Token& token = tokens_.back();
        std::vector<Sighting> found = run_hits_;
        found.reserve(token.tally.duplicates);
        for (size_t i = 0; i < token.ages.size(); ++i) {
            const uint64_t position = token.start + i;
            if (token.ages[i] != 0 && !batch_.mask[row_of(i)]) found.push_back({position, position - token.ages[i]});
        }
        return found;
    }

    // Commits the oldest token. REQUIRES: one is open.
    void commit() noexcept {
        Token& token = tokens_.front();
        committed_ = oldest_token_stop();
        committed_state_ = tokens_.size() > 1 ? tokens_[1].before : horizon_.state();
        committed_tally_.rows += token.tally.rows;
        committed_tally_.duplicates += token.tally.duplicates;
        committed_tally_.null_keys += token.tally.null_keys;
        committed_tally_.recent_hits += token.tally.recent_hits;
        committed_tally_.run_hits += token.tally.run_hits;
        committed_tally_.run_lookups += token.tally.run_lookups;
        if (token.ages.capacity() > spare_ages_.capacity()) spare_ages_.swap(token.ages);
        tokens_.pop_front();
        horizon_.settle(committed_state_);
        forget_below(std::min(committed_state_.position, committed_));
    }

    // REQUIRES: the token is open.
    void abort(uint64_t number) noexcept {
        while (!tokens_.empty() && tokens_.back().number >= number) abort_last();
    }

    // Positions below `position` are answered by a sealed run from now on. REQUIRES: position <= committed.
    void seal_below(uint64_t position) noexcept {
        forget_below(position);
        recent_.shrink_table();
    }

    // Marks again what was seen before, without asking: for a window that is being restored. Positions go on from the
    // tail.
    void replay(const uint8_t* ids, size_t count) {
        recent_.reserve(count, oldest_);
        std::vector<uint32_t> ages = take_ages(count);
        recent_.sight(ids, nullptr, count, oldest_, ages.data());
        committed_ = recent_.tail();
    }

    void restore_horizon(const Horizon::State& state, std::deque<Mark> marks, const Tally& tally) noexcept {
        horizon_.restore(state, std::move(marks));
        committed_state_ = horizon_.state();
        committed_tally_ = tally;
    }

  private:
    struct Token {
        uint64_t number = 0;
        uint64_t start = 0;
        Horizon::State before;
        Tally tally;
        std::vector<uint32_t> ages;  // of its sightings: how far back the one before was, 0 = not among the recent keys
    };

    // Fills rows_ with the rows to probe (unless that is all of them) and the mask of the others; returns how many.
    size_t choose_rows(Tally& tally) {
        rows_.clear();
        if (!batch_.keyed && !batch_.selection) {
            all_rows_ = true;
            tally.rows = batch_.rows;
            return batch_.rows;
        }
        all_rows_ = false;
        rows_.reserve(batch_.rows);
        for (size_t row = 0; row < batch_.rows; ++row) {
            const bool wanted = !batch_.selection || batch_.selection[row];
            const bool keyed = !batch_.keyed || batch_.keyed[row];
            batch_.mask[row] = wanted;
            tally.rows += wanted;
            tally.null_keys += wanted && !keyed;
            if (wanted && keyed) rows_.push_back(static_cast<uint32_t>(row));
        }
        return rows_.size();
    }

    size_t row_of(size_t i) const noexcept { return all_rows_ ? i : rows_[i]; }

    // Room for `count` ages, from the last token that was committed if it had as much.
    std::vector<uint32_t> take_ages(size_t count) {
        std::vector<uint32_t> ages = std::move(spare_ages_);
        spare_ages_.clear();
        ages.resize(count);
        return ages;
    }

    void judge_by_rows(bool has_runs) {
        Token& token = tokens_.back();
        const uint32_t* ages = token.ages.data();
        const size_t count = token.ages.size();
        const uint32_t within = horizon_.within_positions();
        uint64_t hits = 0;
        for (size_t i = 0; i < count; ++i) {
            const bool duplicate = ages[i] - 1 < within;  // an age of 0 is above every window
            batch_.mask[row_of(i)] = !duplicate;
            hits += duplicate;
        }
        token.tally.duplicates = token.tally.recent_hits = hits;
        if (count) horizon_.advance(token.start + count - 1);
        if (!has_runs) return;
        candidates_.reserve(count - hits);
        for (size_t i = 0; i < count; ++i)
            if (ages[i] == 0) ask_runs(i, horizon_.of_rows(token.start + i));
    }

    void judge_by_clock(bool has_runs) {
        Token& token = tokens_.back();
        uint64_t hits = 0;
        for (size_t i = 0; i < token.ages.size(); ++i) {
            const size_t row = row_of(i);
            const uint64_t position = token.start + i;
            const uint64_t horizon = horizon_.advance(position, batch_.clock[row]);
            const bool duplicate = token.ages[i] != 0 && position - token.ages[i] >= horizon;
            batch_.mask[row] = !duplicate;
            hits += duplicate;
            if (has_runs && token.ages[i] == 0) ask_runs(i, horizon);
        }
        token.tally.duplicates = token.tally.recent_hits = hits;
    }

    // Keyed row `i` is unknown to the recent keys: sealed runs may know it, if its horizon reaches that far back.
    void ask_runs(size_t i, uint64_t horizon) {
        if (horizon >= oldest_) return;
        const uint64_t position = tokens_.back().start + i;
        const uint64_t hash = hash_id(*recent_.ring().at(position), recent_.seed());
        candidates_.add(position, horizon, static_cast<uint32_t>(row_of(i)), hash);
    }

    void abort_last() noexcept {
        Token& token = tokens_.back();
        while (recent_.tail() > token.start) recent_.unsight(token.ages[recent_.tail() - 1 - token.start], oldest_);
        horizon_.rewind(token.before);
        candidates_.clear();
        tokens_.pop_back();
    }

    void forget_below(uint64_t position) noexcept {
        if (position > oldest_) oldest_ = position;
        recent_.forget_below(oldest_);
    }

    RecentKeys recent_;
    Horizon horizon_;
    uint64_t oldest_;     // sightings below are not in the recent keys
    uint64_t committed_;  // the tail as of the last commit
    Horizon::State committed_state_;
    Tally committed_tally_;
    std::deque<Token> tokens_;  // open ones, oldest first
    uint64_t next_number_ = 1;

    // Of the batch at hand; kept for their memory.
    IdBatch batch_;
    bool all_rows_ = true;
    std::vector<uint32_t> rows_;
    std::vector<uint32_t> spare_ages_;
    Candidates candidates_;
    std::vector<Sighting> run_hits_;
};

}  // namespace engine
