// A column as kernels see it: a plain view of one child of an Arrow struct (a record batch), parsed once per batch.
//
// Laws
// - A `Column` owns nothing but the view of its dictionary; it lives as long as the array it was parsed from.
// - Row i of a column is slot `offset + i` of its buffers. A RecordBatch slice carries its offset on the children and a
//   StructArray slice on the parent: `offset` is their sum. A null of the parent struct is a null of every child.
// - Parsing checks the structure (counts, lengths, presence of buffers) and throws std::invalid_argument, naming column
//   and type. The contents (offsets, indices, view references) are the producer's promise.
// - The C interface tells no buffer sizes: a kernel may read up to `text_end` and up to slot `offset + length`, no
//   further.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrow_c.hpp"

namespace engine {

enum class Kind : uint8_t {
    null,
    boolean,
    signed_integer,    // dates, times, timestamps, durations and month intervals too
    unsigned_integer,
    floating,
    decimal,
    fixed_binary,      // day-time and month-day-nano intervals too
    text32,            // utf8 and binary
    text64,            // large_utf8 and large_binary
    view,              // utf8_view and binary_view
    other,             // nested and run-end encoded: they travel, but are no keys
};

struct Type {
    Kind kind = Kind::other;
    int32_t width_bytes = 0;
};

struct Column {
    Type type;                              // of the slots: for a dictionary column, of its indices
    int64_t length = 0;
    int64_t offset = 0;
    const uint8_t* validity = nullptr;      // nullptr: no nulls
    const uint8_t* parent_validity = nullptr;
    int64_t parent_offset = 0;
    const uint8_t* values = nullptr;        // slots, bits, text offsets or views
    const uint8_t* bytes = nullptr;         // text
    const uint8_t* const* variadic = nullptr;
    const int64_t* variadic_sizes = nullptr;
    int64_t variadic_count = 0;
    std::unique_ptr<Column> dictionary;
    const ArrowSchema* schema = nullptr;
    ArrowArray* array = nullptr;

    bool may_have_nulls() const { return validity != nullptr || parent_validity != nullptr; }

    bool is_null(int64_t row) const {
        if (validity != nullptr) {
            const int64_t slot = offset + row;
            if (!(validity[slot >> 3] >> (slot & 7) & 1)) return true;
        }
        if (parent_validity != nullptr) {
            const int64_t slot = parent_offset + row;
            if (!(parent_validity[slot >> 3] >> (slot & 7) & 1)) return true;
        }
        return false;
    }

    template <class T>
    const T* slots() const {
        return reinterpret_cast<const T*>(values) + offset;
    }
};

// The type of the values: a dictionary column's values, not its indices.
inline Type value_type(const Column& column) {
    return column.dictionary ? column.dictionary->type : column.type;
}

inline bool is_nested(const Column& column) { return column.type.kind == Kind::other; }

inline bool is_boolean(const Column& column) { return column.type.kind == Kind::boolean; }

inline std::string column_name(const ArrowSchema& schema) {
    if (schema.name == nullptr || *schema.name == '\0') return "without a name";
    return std::string("'") + schema.name + "'";
}

[[noreturn]] inline void reject(const ArrowSchema& schema, const std::string& reason) {
    throw std::invalid_argument("column " + column_name(schema) + " of Arrow format '" +
                                (schema.format != nullptr ? schema.format : "") + "': " + reason);
}

// What `parse_type` gives for a format that is not in the interface, or whose width is none.
constexpr Type kMalformedType = {Kind::other, -1};

inline Type temporal_type(const char* f) {
    const char unit = f[1] != '\0' ? f[2] : '\0';
    if (unit == '\0' || (f[1] == 's' ? f[3] != ':' : f[3] != '\0')) return kMalformedType;
    const bool is_unit = std::strchr("smun", unit) != nullptr;
    switch (f[1]) {
        case 'd':
            if (unit != 'D' && unit != 'm') return kMalformedType;
            return {Kind::signed_integer, unit == 'D' ? 4 : 8};
        case 't':
            if (!is_unit) return kMalformedType;
            return {Kind::signed_integer, unit == 's' || unit == 'm' ? 4 : 8};
        case 's':
        case 'D':
            return is_unit ? Type{Kind::signed_integer, 8} : kMalformedType;
        case 'i':
            if (unit == 'M') return {Kind::signed_integer, 4};
            if (unit == 'D') return {Kind::fixed_binary, 8};
            return unit == 'n' ? Type{Kind::fixed_binary, 16} : kMalformedType;
        default:
            return kMalformedType;
    }
}

// The number at `text`, which `last` must follow; -1 for anything else, and for what does not fit.
inline int32_t format_number(const char* text, char last) {
    int64_t number = 0;
    const char* at = text;
    for (; *at >= '0' && *at <= '9' && number <= INT32_MAX; ++at) number = number * 10 + (*at - '0');
    return at == text || *at != last || number > INT32_MAX ? -1 : static_cast<int32_t>(number);
}

// `d:precision,scale[,bits]`, 128 bits where none are given; the scale may be negative.
inline Type decimal_type(const char* f) {
    const char* scale = std::strchr(f, ',');
    if (f[1] != ':' || scale == nullptr || format_number(f + 2, ',') < 0) return kMalformedType;
    scale += scale[1] == '-' ? 2 : 1;
    const char* comma = std::strchr(scale, ',');
    if (format_number(scale, comma != nullptr ? ',' : '\0') < 0) return kMalformedType;
    const int32_t bits = comma != nullptr ? format_number(comma + 1, '\0') : 128;
    if (bits != 32 && bits != 64 && bits != 128 && bits != 256) return kMalformedType;
    return {Kind::decimal, bits / 8};
}

// Formats of one letter.
inline Type plain_type(char letter) {
    switch (letter) {
        case 'n':
            return {Kind::null, 0};
        case 'b':
            return {Kind::boolean, 0};
        case 'c':
            return {Kind::signed_integer, 1};
        case 'C':
            return {Kind::unsigned_integer, 1};
        case 's':
            return {Kind::signed_integer, 2};
        case 'S':
            return {Kind::unsigned_integer, 2};
        case 'i':
            return {Kind::signed_integer, 4};
        case 'I':
            return {Kind::unsigned_integer, 4};
        case 'l':
            return {Kind::signed_integer, 8};
        case 'L':
            return {Kind::unsigned_integer, 8};
        case 'e':
            return {Kind::floating, 2};
        case 'f':
            return {Kind::floating, 4};
        case 'g':
            return {Kind::floating, 8};
        case 'u':
        case 'z':
            return {Kind::text32, 4};
        case 'U':
        case 'Z':
            return {Kind::text64, 8};
        default:
            return kMalformedType;
    }
}

inline Type parse_type(const char* f) {
    if (f[0] != '\0' && f[1] == '\0') return plain_type(f[0]);
    switch (f[0]) {
        case '+':
            return {};
        case 'd':
            return decimal_type(f);
        case 'w':
            return {Kind::fixed_binary, f[1] == ':' ? format_number(f + 2, '\0') : -1};
        case 't':
            return temporal_type(f);
        case 'v':
            return (f[1] == 'u' || f[1] == 'z') && f[2] == '\0' ? Type{Kind::view, 16} : kMalformedType;
        default:
            return kMalformedType;
    }
}

// A name for messages and for `describe`.
inline const char* kind_name(const Type& type) {
    switch (type.kind) {
        case Kind::null:
            return "null";
        case Kind::boolean:
            return "boolean";
        case Kind::signed_integer:
            return "signed integer";
        case Kind::unsigned_integer:
            return "unsigned integer";
        case Kind::floating:
            return "floating point";
        case Kind::decimal:
            return "decimal";
        case Kind::fixed_binary:
            return "fixed-size binary";
        case Kind::text32:
        case Kind::text64:
        case Kind::view:
            return "bytes";
        case Kind::other:
            break;
    }
    return "nested";
}

inline void check_buffers(const Column& column, const ArrowSchema& schema, const ArrowArray& array) {
    const int64_t n = array.n_buffers;
    const Kind kind = column.type.kind;
    const bool text = kind == Kind::text32 || kind == Kind::text64;
    const int64_t expected = kind == Kind::null ? n : text ? 3 : kind == Kind::view ? (n < 3 ? 3 : n) : 2;
    if (n != expected) {
        reject(schema, "has " + std::to_string(n) + " buffers instead of " + std::to_string(expected));
    }
    if (n > 0 && array.buffers == nullptr) reject(schema, "its buffers are missing");
    const bool empty = array.length == 0 || (kind == Kind::fixed_binary && column.type.width_bytes == 0);
    if (!empty && kind != Kind::null && array.buffers[1] == nullptr) reject(schema, "its values are missing");
}

// Text and the data of views may be missing only where no row has any.
inline void check_text(const Column& column, const ArrowSchema& schema) {
    const Kind kind = column.type.kind;
    bool missing = false;
    if (kind == Kind::view) {
        missing = column.variadic_count > 0 && column.variadic_sizes == nullptr;
        for (int64_t at = 0; !missing && at < column.variadic_count; ++at) {
            missing = column.variadic[at] == nullptr && column.variadic_sizes[at] > 0;
        }
    } else if (column.bytes == nullptr && column.length > 0) {
        missing = kind == Kind::text32 ? column.slots<int32_t>()[column.length] > column.slots<int32_t>()[0]
                                       : column.slots<int64_t>()[column.length] > column.slots<int64_t>()[0];
    }
    if (missing) reject(schema, "its text is missing");
}

inline Column parse_column(const ArrowSchema& schema, ArrowArray& array, int64_t offset, int64_t length) {
    const bool released = schema.format == nullptr || schema.release == nullptr || array.release == nullptr;
    if (released) reject(schema, "is already released");
    if (array.offset < 0 || offset < 0 || length < 0 || array.length < offset || array.length - offset < length) {
        reject(schema, "is shorter than its batch");
    }
    Column column;
    column.type = parse_type(schema.format);
    if (column.type.width_bytes < 0) reject(schema, "this format is not known, or its width is malformed");
    // Sizes in bytes are computed from slots: none may overflow, the text offsets' one more and 16 for an id included.
    const int64_t most = (int64_t{1} << 62) / (column.type.width_bytes > 16 ? column.type.width_bytes : 16);
    if (array.length > most || array.offset > most - array.length) reject(schema, "reaches beyond all memory");
    column.length = length;
    column.offset = array.offset + offset;
    column.schema = &schema;
    column.array = &array;
    if (column.type.kind == Kind::other) return column;
    check_buffers(column, schema, array);
    if (column.type.kind == Kind::null) return column;
    if (array.null_count != 0) column.validity = static_cast<const uint8_t*>(array.buffers[0]);
    column.values = static_cast<const uint8_t*>(array.buffers[1]);
    if (column.type.kind == Kind::text32 || column.type.kind == Kind::text64) {
        column.bytes = static_cast<const uint8_t*>(array.buffers[2]);
        check_text(column, schema);
    } else if (column.type.kind == Kind::view) {
        column.variadic = reinterpret_cast<const uint8_t* const*>(array.buffers + 2);
        column.variadic_count = array.n_buffers - 3;
        column.variadic_sizes = static_cast<const int64_t*>(array.buffers[array.n_buffers - 1]);
        check_text(column, schema);
    }
    if ((schema.dictionary != nullptr) != (array.dictionary != nullptr)) reject(schema, "its dictionary is missing");
    if (schema.dictionary != nullptr) {
        if (column.type.kind != Kind::signed_integer && column.type.kind != Kind::unsigned_integer) {
            reject(schema, "its dictionary indices are no integers");
        }
        column.dictionary =
            std::make_unique<Column>(parse_column(*schema.dictionary, *array.dictionary, 0, array.dictionary->length));
    }
    return column;
}

// One record batch: the wanted columns, or all of them in order.
struct Batch {
    int64_t length = 0;
    std::vector<Column> columns;
};

inline void check_struct(const ArrowSchema& schema, const ArrowArray& array) {
    if (schema.format == nullptr || schema.release == nullptr || array.release == nullptr) {
        throw std::invalid_argument("the Arrow batch is already released");
    }
    if (std::strcmp(schema.format, "+s") != 0) {
        const std::string format = schema.format;
        throw std::invalid_argument("a batch must be an Arrow struct, not of format '" + format + "'");
    }
    const int64_t children = schema.n_children;
    if (children != array.n_children || children < 0 || array.length < 0 || array.offset < 0) {
        throw std::invalid_argument("the Arrow batch is malformed: its schema and its array disagree");
    }
    bool missing = children > 0 && (schema.children == nullptr || array.children == nullptr);
    for (int64_t index = 0; !missing && index < children; ++index) {
        missing = schema.children[index] == nullptr || array.children[index] == nullptr;
    }
    if (missing || (array.n_buffers > 0 && array.buffers == nullptr)) {
        throw std::invalid_argument("the Arrow batch is malformed: columns or buffers are missing");
    }
}

inline void parse_child(const ArrowSchema& schema, const ArrowArray& array, int64_t index, Batch& batch) {
    if (index < 0 || index >= schema.n_children) {
        const std::string count = std::to_string(schema.n_children);
        throw std::out_of_range("no column " + std::to_string(index) + ": the batch has " + count);
    }
    Column column = parse_column(*schema.children[index], *array.children[index], array.offset, array.length);
    if (array.null_count != 0 && array.n_buffers > 0 && array.buffers[0] != nullptr) {
        column.parent_validity = static_cast<const uint8_t*>(array.buffers[0]);
        column.parent_offset = array.offset;
    }
    batch.columns.push_back(std::move(column));
}

inline Batch parse_batch(const ArrowSchema& schema, const ArrowArray& array) {
    check_struct(schema, array);
    Batch batch;
    batch.length = array.length;
    for (int64_t index = 0; index < schema.n_children; ++index) parse_child(schema, array, index, batch);
    return batch;
}

inline Batch parse_batch(const ArrowSchema& schema, const ArrowArray& array, const std::vector<int64_t>& indices) {
    check_struct(schema, array);
    Batch batch;
    batch.length = array.length;
    for (int64_t index : indices) parse_child(schema, array, index, batch);
    return batch;
}

// The end of the text that a column's own offsets prove readable.
template <class Offset>
const uint8_t* text_end(const Column& column) {
    return column.length == 0 ? column.bytes : column.bytes + column.slots<Offset>()[column.length];
}

// Calls `visit(row)` for every null row, skipping eight valid rows at a time.
template <class Visit>
void for_each_null(const Column& column, Visit&& visit) {
    if (column.type.kind == Kind::null) {
        for (int64_t row = 0; row < column.length; ++row) visit(row);
        return;
    }
    if (!column.may_have_nulls()) return;
    for (int64_t row = 0; row < column.length; ++row) {
        const int64_t slot = column.offset + row;
        if (column.parent_validity == nullptr && (slot & 7) == 0 && row + 8 <= column.length &&
            column.validity[slot >> 3] == 0xFF) {
            row += 7;
            continue;
        }
        if (column.is_null(row)) visit(row);
    }
}

}  // namespace engine
