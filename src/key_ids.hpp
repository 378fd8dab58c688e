// The 16-byte identity of a row's key, for dedup: the key itself where it fits, else a seeded fingerprint of 128 bits.
//
// Which of the two depends on the key's logical types alone (and on the length of a single bytes value), never on the
// Arrow form, so that equal keys meet:
//   one column of bytes or text     a value of exactly 16 bytes is stored whole, any other as its fingerprint
//   numbers and decimals only       stored whole, zero-padded, if their canonical widths sum to at most 16 bytes:
//                                   bool 1, every other number 8, decimals of up to 128 bits 16
//   everything else                 the fingerprint of all columns
//
// The fingerprint is defined in fingerprint.hpp. A null component makes the identity all zeros.
#pragma once

#include <cstdint>
#include <cstring>

#include "fingerprint_loops.hpp"
#include "hash.hpp"

namespace engine {

enum class IdForm { bytes, packed, fingerprint };

// The canonical width of a packed value; 0 for what is never packed.
inline int packed_bytes(const Type& type) {
    switch (type.kind) {
        case Kind::boolean:
            return 1;
        case Kind::signed_integer:
        case Kind::unsigned_integer:
        case Kind::floating:
            return 8;
        case Kind::decimal:
            return type.width_bytes <= 16 ? 16 : 0;
        default:
            return 0;
    }
}

inline bool is_bytes(const Type& type) {
    const bool variable = type.kind == Kind::text32 || type.kind == Kind::text64 || type.kind == Kind::view;
    return variable || type.kind == Kind::fixed_binary;
}

inline IdForm id_form(const Batch& batch) {
    if (batch.columns.size() == 1 && is_bytes(value_type(batch.columns[0]))) return IdForm::bytes;
    int total_bytes = 0;
    for (const Column& column : batch.columns) {
        const Type type = value_type(column);
        const int width = packed_bytes(type);
        if (width == 0 && type.kind != Kind::null) return IdForm::fingerprint;
        total_bytes += width;
    }
    return total_bytes <= kIdBytes ? IdForm::packed : IdForm::fingerprint;
}

// Whether the ids of such a batch are the keys themselves, whatever its rows hold.
inline bool ids_are_keys(const Batch& batch) {
    const IdForm form = id_form(batch);
    if (form != IdForm::bytes) return form == IdForm::packed;
    const Type type = value_type(batch.columns[0]);
    return type.kind == Kind::fixed_binary && type.width_bytes == kIdBytes;
}

// The bytes of the one column whose slots already are the identities, or nullptr.
inline const uint8_t* stored_ids(const Batch& batch) {
    if (batch.columns.size() != 1) return nullptr;
    const Column& column = batch.columns[0];
    const bool whole = column.type.kind == Kind::fixed_binary && column.type.width_bytes == kIdBytes;
    if (!whole || batch.length == 0) return nullptr;
    bool any_null = false;
    for_each_null(column, [&](int64_t) { any_null = true; });
    return any_null ? nullptr : column.values + column.offset * kIdBytes;
}

inline bool any_may_be_null(const Batch& batch) {
    for (const Column& column : batch.columns) {
        const Column* values = column.dictionary.get();
        if (column.type.kind == Kind::null || column.may_have_nulls()) return true;
        if (values != nullptr && (values->type.kind == Kind::null || values->may_have_nulls())) return true;
    }
    return false;
}

// Stores canonical bytes at the column's place in the identity; the compiler drops the branches of other shapes.
inline void store_packed(uint8_t* target, int width, uint64_t number) {
    if (width == 1) {
        *target = static_cast<uint8_t>(number);
    } else {
        std::memcpy(target, &number, 8);
    }
}
inline void store_packed(uint8_t* target, int, const Words& words) { store_words(target, words); }
inline void store_packed(uint8_t*, int, const Bytes&) {}

// Runs `use(row, value)` for every row of a column that has a value and clears `keyed[row]` for every other.
template <class Use>
void for_each_value(const Column& column, uint8_t* keyed, Use&& use) {
    if (column.length == 0) return;
    if (column.type.kind == Kind::null) {
        std::memset(keyed, 0, static_cast<size_t>(column.length));
        return;
    }
    visit_rows(column, [&](auto reader, auto rows) {
        for (int64_t row = 0; row < column.length; ++row) {
            const int64_t slot = rows(row);
            if (slot >= 0) {
                use(row, reader.read(slot));
            } else {
                keyed[row] = 0;
            }
        }
    });
}

template <class Value>
Words id_of_bytes(const FingerprintKeys&, const Value&) {
    return {0, 0};  // a single key of this shape is packed
}

// All texts but the last few, whose last block of 16 bytes reaches behind the buffer, go by the loop of the level.
template <class Offset>
void identify_texts(const Column& column, const FingerprintKeys& keys, uint8_t* ids) {
    const TextReader<Offset> reader(column);
    const int64_t open = open_texts(reader, column.length);
    identify_open_texts(reader.offsets, reader.bytes, open, keys, ids);
    for (int64_t row = open; row < column.length; ++row) {
        store_words(ids + row * kIdBytes, id_of_bytes(keys, reader.read(row)));
    }
}

inline void identify_bytes(const Column& column, const FingerprintKeys& keys, uint8_t* ids, uint8_t* keyed) {
    const Kind kind = column.type.kind;
    const bool text = !column.dictionary && column.length > 0 && (kind == Kind::text32 || kind == Kind::text64);
    if (text) {
        kind == Kind::text32 ? identify_texts<int32_t>(column, keys, ids) : identify_texts<int64_t>(column, keys, ids);
        for_each_null(column, [&](int64_t row) { keyed[row] = 0; });
        return;
    }
    for_each_value(column, keyed, [&](int64_t row, const auto& value) {
        store_words(ids + row * kIdBytes, id_of_bytes(keys, value));
    });
}

inline void pack_columns(const Batch& batch, uint8_t* ids, uint8_t* keyed) {
    int place = 0;
    for (const Column& column : batch.columns) {
        const int width = packed_bytes(value_type(column));
        for_each_value(column, keyed, [&](int64_t row, const auto& value) {
            store_packed(ids + row * kIdBytes + place, width, value);
        });
        place += width;
    }
}

inline void fingerprint_columns(const Batch& batch, const FingerprintKeys& keys, uint8_t* ids, uint8_t* keyed) {
    for (size_t ordinal = 0; ordinal < batch.columns.size(); ++ordinal) {
        for_each_value(batch.columns[ordinal], keyed, [&](int64_t row, const auto& value) {
            uint8_t* id = ids + row * kIdBytes;
            Fingerprint state;
            state.s = load64(id);
            state.t = load64(id + 8);
            state.absorb(keys, ordinal, value);
            store_words(id, {state.s, state.t});
        });
    }
    for (int64_t row = 0; row < batch.length; ++row) {
        Fingerprint state;
        state.s = load64(ids + row * kIdBytes);
        state.t = load64(ids + row * kIdBytes + 8);
        store_words(ids + row * kIdBytes, state.finish(keys));
    }
}

// Fills `ids` (16 bytes a row) and `keyed` (1 a row, 0 where a component is null); returns the number of such rows.
// `keyed` may be nullptr when `any_may_be_null` is false.
inline int64_t make_key_ids(const Batch& batch, const uint8_t* seed, uint8_t* ids, uint8_t* keyed) {
    for (const Column& column : batch.columns) check_key(column);
    const size_t rows = static_cast<size_t>(batch.length);
    const FingerprintKeys keys(seed);
    if (keyed != nullptr) std::memset(keyed, 1, rows);
    const IdForm form = id_form(batch);
    if (form == IdForm::bytes) {
        identify_bytes(batch.columns[0], keys, ids, keyed);
    } else {
        std::memset(ids, 0, rows * kIdBytes);
        form == IdForm::packed ? pack_columns(batch, ids, keyed) : fingerprint_columns(batch, keys, ids, keyed);
    }
    int64_t null_count = 0;
    for (size_t row = 0; keyed != nullptr && row < rows; ++row) {
        if (keyed[row]) continue;
        store_words(ids + row * kIdBytes, {0, 0});
        ++null_count;
    }
    return null_count;
}

}  // namespace engine
