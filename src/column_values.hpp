// Readers: the value of a row, in its canonical form, whatever Arrow form holds it.
//
// Laws
// - Equal values read equally in every form: integers are sign- or zero-extended to 64 bits, floats widen to double
//   with one zero and one NaN, decimals of up to 128 bits are sign-extended to 128, text and binary are (bytes,
//   length).
// - `visit_values` picks the reader once per column, so that the loops inside have no branch on the type.
// - A dictionary is resolved to row -> index of its value (-1: null), and its values are read by the same readers.
// - Loads of up to 16 bytes stay below the reader's `end`; where fewer are left, the bytes are copied one by one.
#pragma once

#include <cstdint>
#include <cstring>

#include "column.hpp"
#include "pool.hpp"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the formats of this engine are little-endian, and so are the hosts that it runs on"
#endif

namespace engine {

inline uint64_t load64(const void* p) {
    uint64_t value;
    std::memcpy(&value, p, 8);
    return value;
}

struct Words {
    uint64_t low;
    uint64_t high;
};

struct Bytes {
    const uint8_t* data;
    int64_t size;
    const uint8_t* end;  // one past the last byte that may be read
};

struct WordMasks {
    uint64_t low[17];
    uint64_t high[17];
};

constexpr WordMasks make_masks() {
    WordMasks masks{};
    for (int size = 0; size <= 16; ++size) {
        masks.low[size] = size >= 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * size)) - 1;
        masks.high[size] = size == 16 ? ~uint64_t{0} : size <= 8 ? 0 : (uint64_t{1} << (8 * (size - 8))) - 1;
    }
    return masks;
}

inline constexpr WordMasks kMasks = make_masks();

// The first `size` (0 to 16) bytes, padded with zeros, without a branch on `size`.
inline Words load_padded(const uint8_t* data, int64_t size, const uint8_t* end) {
    if (end - data >= 16) return {load64(data) & kMasks.low[size], load64(data + 8) & kMasks.high[size]};
    uint8_t padded[16] = {};
    for (int64_t i = 0; i < size; ++i) padded[i] = data[i];
    return {load64(padded), load64(padded + 8)};
}

// Calls `absorb(words)` for every zero-padded block of 16 bytes; an empty value has none.
template <class Absorb>
inline void for_each_block(const Bytes& value, Absorb&& absorb) {
    const uint8_t* data = value.data;
    int64_t left = value.size;
    for (; left > 16; left -= 16, data += 16) absorb(Words{load64(data), load64(data + 8)});
    if (left > 0) absorb(load_padded(data, left, value.end));
}

inline uint64_t canonical_bits(double value) {
    if (value != value) return 0x7FF8000000000000u;
    const double one_zero = value + 0.0;  // -0.0 + 0.0 is 0.0
    return load64(&one_zero);
}

inline double half_to_double(uint16_t bits) {
    const uint64_t sign = uint64_t{bits & 0x8000u} << 48;
    const uint64_t exponent = bits >> 10 & 0x1F;
    const uint64_t fraction = bits & 0x3FF;
    uint64_t wide;
    if (exponent == 0) {
        const double subnormal = static_cast<double>(fraction) * 0x1p-24;
        wide = load64(&subnormal);
    } else if (exponent == 31) {
        wide = uint64_t{0x7FF} << 52 | fraction << 42;
    } else {
        wide = (exponent + 1023 - 15) << 52 | fraction << 42;
    }
    wide |= sign;
    double value;
    std::memcpy(&value, &wide, 8);
    return value;
}

enum class Shape { number, words, bytes };

template <class T>
struct IntegerReader {
    static constexpr Shape shape = Shape::number;
    static constexpr bool null_slots_readable = true;
    const T* slots;
    explicit IntegerReader(const Column& column) : slots(column.slots<T>()) {}
    uint64_t read(int64_t row) const { return static_cast<uint64_t>(static_cast<int64_t>(slots[row])); }
};

template <class T>
struct FloatReader {
    static constexpr Shape shape = Shape::number;
    static constexpr bool null_slots_readable = true;
    const T* slots;
    explicit FloatReader(const Column& column) : slots(column.slots<T>()) {}
    uint64_t read(int64_t row) const { return canonical_bits(static_cast<double>(slots[row])); }
};

struct HalfReader {
    static constexpr Shape shape = Shape::number;
    static constexpr bool null_slots_readable = true;
    const uint16_t* slots;
    explicit HalfReader(const Column& column) : slots(column.slots<uint16_t>()) {}
    uint64_t read(int64_t row) const { return canonical_bits(half_to_double(slots[row])); }
};

struct BooleanReader {
    static constexpr Shape shape = Shape::number;
    static constexpr bool null_slots_readable = true;
    const uint8_t* bits;
    int64_t offset;
    explicit BooleanReader(const Column& column) : bits(column.values), offset(column.offset) {}
    uint64_t read(int64_t row) const { return bits[(offset + row) >> 3] >> ((offset + row) & 7) & 1; }
};

template <class T>
struct NarrowDecimalReader {
    static constexpr Shape shape = Shape::words;
    static constexpr bool null_slots_readable = true;
    const T* slots;
    explicit NarrowDecimalReader(const Column& column) : slots(column.slots<T>()) {}
    Words read(int64_t row) const {
        const int64_t value = slots[row];
        return {static_cast<uint64_t>(value), value < 0 ? ~uint64_t{0} : 0};
    }
};

struct Decimal128Reader {
    static constexpr Shape shape = Shape::words;
    static constexpr bool null_slots_readable = true;
    const uint8_t* slots;
    explicit Decimal128Reader(const Column& column) : slots(column.values + column.offset * 16) {}
    Words read(int64_t row) const { return {load64(slots + row * 16), load64(slots + row * 16 + 8)}; }
};

struct FixedBytesReader {
    static constexpr Shape shape = Shape::bytes;
    static constexpr bool null_slots_readable = true;
    const uint8_t* slots;
    const uint8_t* end;
    int64_t width;
    explicit FixedBytesReader(const Column& column) : width(column.type.width_bytes) {
        slots = column.values + column.offset * width;
        end = slots + column.length * width;
    }
    Bytes read(int64_t row) const { return {slots + row * width, width, end}; }
};

template <class Offset>
struct TextReader {
    static constexpr Shape shape = Shape::bytes;
    static constexpr bool null_slots_readable = true;
    const Offset* offsets;
    const uint8_t* bytes;
    const uint8_t* end;
    explicit TextReader(const Column& column)
        : offsets(column.slots<Offset>()), bytes(column.bytes), end(text_end<Offset>(column)) {}
    Bytes read(int64_t row) const { return {bytes + offsets[row], int64_t{offsets[row + 1] - offsets[row]}, end}; }
};

// A view of up to 12 bytes holds them itself; a longer one holds (size, prefix, buffer, offset).
struct ViewReader {
    static constexpr Shape shape = Shape::bytes;
    static constexpr bool null_slots_readable = false;
    const uint8_t* views;
    const uint8_t* end;
    const Column* column;
    explicit ViewReader(const Column& source) : column(&source) {
        views = source.values + source.offset * 16;
        end = views + source.length * 16;
    }
    Bytes read(int64_t row) const {
        const uint8_t* view = views + row * 16;
        int32_t parts[4];
        std::memcpy(parts, view, 16);
        if (parts[0] <= 12) return {view + 4, parts[0], end};
        const uint8_t* buffer = column->variadic[parts[2]];
        return {buffer + parts[3], parts[0], buffer + column->variadic_sizes[parts[2]]};
    }
};

template <class Visit>
void visit_integers(const Column& column, Visit&& visit) {
    const bool is_signed = column.type.kind == Kind::signed_integer;
    switch (column.type.width_bytes) {
        case 1:
            return is_signed ? visit(IntegerReader<int8_t>(column)) : visit(IntegerReader<uint8_t>(column));
        case 2:
            return is_signed ? visit(IntegerReader<int16_t>(column)) : visit(IntegerReader<uint16_t>(column));
        case 4:
            return is_signed ? visit(IntegerReader<int32_t>(column)) : visit(IntegerReader<uint32_t>(column));
        default:
            return visit(IntegerReader<int64_t>(column));
    }
}

template <class Visit>
void visit_floats(const Column& column, Visit&& visit) {
    if (column.type.width_bytes == 2) return visit(HalfReader(column));
    if (column.type.width_bytes == 4) return visit(FloatReader<float>(column));
    visit(FloatReader<double>(column));
}

template <class Visit>
void visit_decimals(const Column& column, Visit&& visit) {
    if (column.type.width_bytes == 4) return visit(NarrowDecimalReader<int32_t>(column));
    if (column.type.width_bytes == 8) return visit(NarrowDecimalReader<int64_t>(column));
    if (column.type.width_bytes == 16) return visit(Decimal128Reader(column));
    visit(FixedBytesReader(column));
}

// Calls `visit` with the reader of a column that is no dictionary; throws for a type that cannot be a key.
template <class Visit>
void visit_values(const Column& column, Visit&& visit) {
    switch (column.type.kind) {
        case Kind::boolean:
            return visit(BooleanReader(column));
        case Kind::signed_integer:
        case Kind::unsigned_integer:
            return visit_integers(column, visit);
        case Kind::floating:
            return visit_floats(column, visit);
        case Kind::decimal:
            return visit_decimals(column, visit);
        case Kind::fixed_binary:
            return visit(FixedBytesReader(column));
        case Kind::text32:
            return visit(TextReader<int32_t>(column));
        case Kind::text64:
            return visit(TextReader<int64_t>(column));
        case Kind::view:
            return visit(ViewReader(column));
        default:
            reject(*column.schema, "this type cannot be a key");
    }
}

inline void check_key(const Column& column) {
    const Column& values = column.dictionary ? *column.dictionary : column;
    if (values.type.kind == Kind::other) reject(*column.schema, "a nested type cannot be a key");
    if (values.dictionary) reject(*column.schema, "a dictionary of dictionaries cannot be a key");
}

// Row -> index of its value in the dictionary; -1 where the index or the value is null.
inline Block resolve_dictionary(const Column& column) {
    const Column& values = *column.dictionary;
    Block block(static_cast<size_t>(column.length) * sizeof(int64_t));
    int64_t* resolved = block.as<int64_t>();
    visit_integers(column, [&](auto reader) {
        for (int64_t row = 0; row < column.length; ++row) resolved[row] = static_cast<int64_t>(reader.read(row));
    });
    for_each_null(column, [&](int64_t row) { resolved[row] = -1; });
    if (values.type.kind == Kind::null || values.may_have_nulls()) {
        const bool all = values.type.kind == Kind::null;
        for (int64_t row = 0; row < column.length; ++row) {
            if (resolved[row] >= 0 && (all || values.is_null(resolved[row]))) resolved[row] = -1;
        }
    }
    return block;
}

// Row -> slot to read, for plain columns and for dictionaries; -1: null.
struct PlainRows {
    const Column* column;
    int64_t operator()(int64_t row) const { return column->is_null(row) ? -1 : row; }
};

struct DenseRows {
    int64_t operator()(int64_t row) const { return row; }
};

struct IndexedRows {
    const int64_t* resolved;
    int64_t operator()(int64_t row) const { return resolved[row]; }
};

// Calls `visit(reader, rows)` for a key column that is not of type null, dictionaries included.
template <class Visit>
void visit_rows(const Column& column, Visit&& visit) {
    if (column.dictionary) {
        const Block resolved = resolve_dictionary(column);
        const IndexedRows rows{resolved.as<int64_t>()};
        // Of a dictionary of nulls no slot is ever read: every row is resolved to -1.
        if (column.dictionary->type.kind == Kind::null) return visit(BooleanReader(*column.dictionary), rows);
        return visit_values(*column.dictionary, [&](auto reader) { visit(reader, rows); });
    }
    if (!column.may_have_nulls()) return visit_values(column, [&](auto reader) { visit(reader, DenseRows{}); });
    const PlainRows rows{&column};
    visit_values(column, [&](auto reader) { visit(reader, rows); });
}

}  // namespace engine
