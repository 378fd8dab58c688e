// Moves the wanted rows of every column to their partitions: sequential reads, scattered writes, into pooled memory.
//
// Laws
// - Several batches of one schema may be scattered into one output: then small inputs make large pieces uncopied.
// - Each input column is read once, in order, and written to one output column whose rows are ordered by partition; the
//   partitions are zero-copy slices of it. A scattered write costs less than the gathered read of `take`, because a few
//   write streams stay in the cache while the input does not.
// - Text is copied in steps of 16 to 64 bytes. A step may write past its row, but only into rows of the same partition
//   that are still to come or into the padding of our own block; it never reads past the text that the input's offsets
//   prove.
// - Views keep pointing into the input's text, which the output keeps alive; a dictionary is moved along uncopied.
// - The output has the layout of the input's schema, so that importing it with that schema is exact.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "arrow_c.hpp"
#include "partition.hpp"
#include "prefetch.hpp"

namespace engine {

// The j-th wanted row of a part: from `source(j)`, to `position(j)` in partition `partition(j)`. One type per shape of plan, so
// that the inner loops know it.
struct GatherRows {
    static constexpr bool scattered = false;
    const uint32_t* sources;
    int64_t first;
    uint32_t source(int64_t j) const { return sources[j]; }
    int64_t position(int64_t j) const { return first + j; }
    int partition(int64_t) const { return 0; }
};

struct AllRows {
    static constexpr bool scattered = false;
    int64_t first;
    int64_t source(int64_t j) const { return j; }
    int64_t position(int64_t j) const { return first + j; }
    int partition(int64_t) const { return 0; }
};

struct ScatterAllRows {
    static constexpr bool scattered = true;
    const uint32_t* positions;
    const uint16_t* destinations;
    int64_t source(int64_t j) const { return j; }
    uint32_t position(int64_t j) const { return positions[j]; }
    int partition(int64_t j) const { return destinations[j]; }
};

struct ScatterWantedRows {
    static constexpr bool scattered = true;
    const uint32_t* sources;
    const uint32_t* positions;
    const uint16_t* destinations;
    uint32_t source(int64_t j) const { return sources[j]; }
    uint32_t position(int64_t j) const { return positions[j]; }
    int partition(int64_t j) const { return destinations[j]; }
};

template <class Visit>
void visit_part(const Plan& plan, const Part& part, Visit&& visit) {
    const uint32_t* sources = plan.all_wanted ? nullptr : plan.sources.as<uint32_t>() + part.first;
    if (plan.one_partition()) return plan.all_wanted ? visit(AllRows{part.first}) : visit(GatherRows{sources, part.first});
    const uint32_t* positions = plan.positions.as<uint32_t>() + part.first;
    const uint16_t* destinations = plan.destinations.as<uint16_t>() + part.first;
    if (plan.all_wanted) return visit(ScatterAllRows{positions, destinations});
    visit(ScatterWantedRows{sources, positions, destinations});
}

// One column in each of the inputs.
using Columns = std::vector<const Column*>;

// Calls `visit(column, count, rows)` for each input that has wanted rows.
template <class Visit>
void visit_parts(const Columns& columns, const Plan& plan, Visit&& visit) {
    for (size_t b = 0; b < columns.size(); ++b) {
        const Part& part = plan.parts[b];
        if (part.count > 0) visit_part(plan, part, [&](auto rows) { visit(*columns[b], part.count, rows); });
    }
}

// With many partitions the hardware follows too few write streams: the line that a stream reaches soon is fetched in
// time. The address may lie behind the block: a prefetch never faults.
constexpr uintptr_t kPrefetchBytes = 192;

template <class Rows>
inline void prefetch_stream(const void* written) {
    const uintptr_t soon = reinterpret_cast<uintptr_t>(written) + kPrefetchBytes;
    if (Rows::scattered) prefetch_write(reinterpret_cast<const void*>(soon));
}

template <int Width, class Rows>
void scatter_slots(const uint8_t* from, uint8_t* to, int64_t count, const Rows& rows) {
    for (int64_t j = 0; j < count; ++j) {
        const uint8_t* slot = from + int64_t{rows.source(j)} * Width;
        uint8_t* target = to + int64_t{rows.position(j)} * Width;
        read_ahead(slot);
        prefetch_stream<Rows>(target);
        std::memcpy(target, slot, Width);
    }
}

template <class Rows>
void scatter_wide_slots(const uint8_t* from, uint8_t* to, int64_t count, int64_t width, const Rows& rows) {
    for (int64_t j = 0; j < count; ++j) {
        uint8_t* target = to + int64_t{rows.position(j)} * width;
        std::memcpy(target, from + int64_t{rows.source(j)} * width, static_cast<size_t>(width));
    }
}

template <class Rows>
void scatter_slots_of(int64_t width, const uint8_t* from, uint8_t* to, int64_t count, const Rows& rows) {
    switch (width) {
        case 1:
            return scatter_slots<1>(from, to, count, rows);
        case 2:
            return scatter_slots<2>(from, to, count, rows);
        case 4:
            return scatter_slots<4>(from, to, count, rows);
        case 8:
            return scatter_slots<8>(from, to, count, rows);
        case 16:
            return scatter_slots<16>(from, to, count, rows);
        case 32:
            return scatter_slots<32>(from, to, count, rows);
        default:
            return scatter_wide_slots(from, to, count, width, rows);
    }
}

// All rows of an input, one behind the other.
inline void scatter_slots_of(int64_t width, const uint8_t* from, uint8_t* to, int64_t count, const AllRows& rows) {
    std::memcpy(to + rows.first * width, from, static_cast<size_t>(count * width));
}

inline Block scatter_fixed(const Columns& columns, const Plan& plan) {
    const int64_t width = columns[0]->type.width_bytes;
    Block block(static_cast<size_t>(plan.count * width));
    uint8_t* to = block.as<uint8_t>();
    if (width == 0) return block;
    visit_parts(columns, plan, [&](const Column& column, int64_t count, auto rows) {
        scatter_slots_of(width, column.values + column.offset * width, to, count, rows);
    });
    return block;
}

// One byte (0 or 1) a row to one bit a row; returns how many bytes were 1. `flags` is read in whole words of its
// padding.
inline int64_t pack_bits(uint8_t* flags, int64_t count, uint8_t* bits) {
    std::memset(flags + count, 0, 8);
    int64_t ones = 0;
    for (int64_t i = 0; i < count; i += 8) {
        // Byte i of the word lands on bit 56 + i of the product; no two partial products meet.
        const uint8_t packed = static_cast<uint8_t>(load64(flags + i) * 0x0102040810204080u >> 56);
        bits[i >> 3] = packed;
        for (uint8_t rest = packed; rest != 0; rest &= static_cast<uint8_t>(rest - 1)) ++ones;
    }
    return ones;
}

inline size_t bits_bytes(int64_t count) { return static_cast<size_t>((count + 7) / 8); }

struct Bits {
    Block block;
    int64_t ones = 0;
};

// `read(column, row)` gives 0 or 1 for an input row.
template <class Read>
Bits scatter_flags(const Columns& columns, const Plan& plan, Read&& read) {
    Bits bits;
    const Block flags_block(static_cast<size_t>(plan.count));
    uint8_t* flags = flags_block.as<uint8_t>();
    visit_parts(columns, plan, [&](const Column& column, int64_t count, auto rows) {
        for (int64_t j = 0; j < count; ++j) flags[rows.position(j)] = read(column, rows.source(j));
    });
    bits.block = Block(bits_bytes(plan.count));
    bits.ones = pack_bits(flags, plan.count, bits.block.as<uint8_t>());
    return bits;
}

template <int Step>
inline void copy_text(uint8_t* to, const uint8_t* from, int64_t size, int64_t room, int64_t readable) {
    const int64_t stepped = (size + Step - 1) / Step * Step;
    if (stepped <= room && stepped <= readable) {
        for (int64_t at = 0; at < stepped; at += Step) std::memcpy(to + at, from + at, Step);
    } else if (size > 0) {
        std::memcpy(to, from, static_cast<size_t>(size));
    }
}

// Writes the sizes of an input's texts to their rows, one slot late. They are summed when all are there: so no text has
// to wait for the one before it in its partition, as it would with a cursor a partition; where nearly all rows go to one
// partition, that wait costs more than the copy.
template <class Offset, class Rows>
void place_sizes(const Offset* offsets, int64_t count, const Rows& rows, Offset* out_offsets) {
    for (int64_t j = 0; j < count; ++j) {
        const int64_t row = rows.source(j);
        read_ahead(offsets + row);
        out_offsets[rows.position(j) + 1] = offsets[row + 1] - offsets[row];
    }
}

// Sizes to offsets; returns the total.
template <class Offset>
int64_t sum_sizes(int64_t count, Offset* out_offsets) {
    int64_t total = 0;
    out_offsets[0] = 0;
    for (int64_t j = 1; j <= count; ++j) {
        total += out_offsets[j];
        out_offsets[j] = static_cast<Offset>(total);
    }
    if (static_cast<Offset>(total) != total) throw std::overflow_error("a text column outgrew its offsets");
    return total;
}

// Where the text of each partition ends; the last may spill into the padding of the block.
template <class Offset>
std::vector<int64_t> text_ends(const Plan& plan, const Offset* out_offsets) {
    std::vector<int64_t> ends;
    ends.reserve(plan.starts.size());
    for (size_t p = 1; p < plan.starts.size(); ++p) ends.push_back(out_offsets[plan.starts[p]]);
    ends.back() += kPaddingBytes;
    return ends;
}

template <int Step, class Offset, class Rows>
void copy_texts(const Column& column, int64_t count, const Rows& rows, const int64_t* ends, const Offset* out_offsets,
                uint8_t* out_bytes) {
    const Offset* offsets = column.slots<Offset>();
    const int64_t readable_end = offsets[column.length];
    for (int64_t j = 0; j < count; ++j) {
        const int64_t row = rows.source(j);
        const int64_t start = offsets[row];
        const int64_t target = out_offsets[rows.position(j)];
        read_ahead(column.bytes + start);
        prefetch_stream<Rows>(out_bytes + target);
        copy_text<Step>(out_bytes + target, column.bytes + start, offsets[row + 1] - start,
                        ends[rows.partition(j)] - target, readable_end - start);
    }
}

template <int Step, class Offset>
void copy_all_texts(const Columns& columns, const Plan& plan, const Offset* out_offsets, uint8_t* out_bytes) {
    const std::vector<int64_t> ends = text_ends(plan, out_offsets);
    visit_parts(columns, plan, [&](const Column& column, int64_t count, auto rows) {
        copy_texts<Step>(column, count, rows, ends.data(), out_offsets, out_bytes);
    });
}

// All rows of all inputs, one behind the other: the text of each lies together, and does so in the output.
template <class Offset>
void join_texts(const Columns& columns, const Plan& plan, OutputNode& node) {
    int64_t total = 0;
    for (const Column* column : columns) {
        if (column->length > 0) total += column->slots<Offset>()[column->length] - column->slots<Offset>()[0];
    }
    if (static_cast<Offset>(total) != total) throw std::overflow_error("a text column outgrew its offsets");
    Block offsets_block(static_cast<size_t>(plan.count + 1) * sizeof(Offset));
    Block bytes_block(static_cast<size_t>(total));
    Offset* out_offsets = offsets_block.as<Offset>();
    uint8_t* out_bytes = bytes_block.as<uint8_t>();
    *out_offsets = 0;
    for (const Column* column : columns) {
        if (column->length == 0) continue;
        const Offset* offsets = column->slots<Offset>();
        const Offset shift = static_cast<Offset>(*out_offsets - offsets[0]);
        const size_t size = static_cast<size_t>(offsets[column->length] - offsets[0]);
        if (size > 0) std::memcpy(out_bytes + *out_offsets, column->bytes + offsets[0], size);
        for (int64_t row = 1; row <= column->length; ++row) out_offsets[row] = static_cast<Offset>(offsets[row] + shift);
        out_offsets += column->length;
    }
    node.add_buffer(std::move(offsets_block));
    node.add_buffer(std::move(bytes_block));
}

template <class Offset>
void scatter_text(const Columns& columns, const Plan& plan, OutputNode& node) {
    if (plan.one_partition() && plan.all_wanted) return join_texts<Offset>(columns, plan, node);
    Block offsets_block(static_cast<size_t>(plan.count + 1) * sizeof(Offset));
    Offset* out_offsets = offsets_block.as<Offset>();
    visit_parts(columns, plan, [&](const Column& column, int64_t count, auto rows) {
        place_sizes(column.slots<Offset>(), count, rows, out_offsets);
    });
    const int64_t total = sum_sizes(plan.count, out_offsets);
    Block bytes_block(static_cast<size_t>(total));
    uint8_t* out_bytes = bytes_block.as<uint8_t>();
    const int64_t mean = plan.count == 0 ? 0 : total / plan.count;
    if (mean <= 14) {
        copy_all_texts<16>(columns, plan, out_offsets, out_bytes);
    } else if (mean <= 28) {
        copy_all_texts<32>(columns, plan, out_offsets, out_bytes);
    } else {
        copy_all_texts<64>(columns, plan, out_offsets, out_bytes);
    }
    node.add_buffer(std::move(offsets_block));
    node.add_buffer(std::move(bytes_block));
}

inline void scatter_validity(const Columns& columns, const Plan& plan, OutputNode& node) {
    bool any_null = false;
    for (const Column* column : columns) for_each_null(*column, [&](int64_t) { any_null = true; });
    if (!any_null) {
        node.buffers.push_back(nullptr);
        return;
    }
    Bits valid = scatter_flags(columns, plan, [](const Column& column, int64_t row) {
        return static_cast<uint8_t>(!column.is_null(row));
    });
    node.null_count = plan.count - valid.ones;
    node.add_buffer(std::move(valid.block));
}

// The views move, the text they point to stays: the input's array is moved into the node to keep that text alive.
// REQUIRES: one input.
inline void scatter_views(const Columns& columns, const Plan& plan, OutputNode& node) {
    node.add_buffer(scatter_fixed(columns, plan));
    const Column& column = *columns[0];
    for (int64_t i = 2; i < column.variadic_count + 3; ++i) node.buffers.push_back(column.array->buffers[i]);
    move_array(column.array, &node.borrowed);
}

inline void scatter_booleans(const Columns& columns, const Plan& plan, OutputNode& node) {
    Bits values = scatter_flags(columns, plan, [](const Column& column, int64_t row) {
        const int64_t slot = column.offset + row;
        return static_cast<uint8_t>(column.values[slot >> 3] >> (slot & 7) & 1);
    });
    node.add_buffer(std::move(values.block));
}

inline void scatter_values(const Columns& columns, const Plan& plan, OutputNode& node) {
    const Column& first = *columns[0];
    switch (first.type.kind) {
        case Kind::boolean:
            scatter_booleans(columns, plan, node);
            break;
        case Kind::text32:
            scatter_text<int32_t>(columns, plan, node);
            break;
        case Kind::text64:
            scatter_text<int64_t>(columns, plan, node);
            break;
        case Kind::view:
            scatter_views(columns, plan, node);
            break;
        default:
            node.add_buffer(scatter_fixed(columns, plan));
    }
    if (first.dictionary) {
        node.dictionary = std::make_unique<ArrowArray>();
        move_array(first.array->dictionary, node.dictionary.get());
    }
}

inline void scatter_column(const Columns& columns, const Plan& plan, ArrowArray* out) {
    auto node = std::make_unique<OutputNode>();
    node->length = plan.count;
    if (columns[0]->type.kind == Kind::null) {
        node->null_count = plan.count;
    } else {
        scatter_validity(columns, plan, *node);
        scatter_values(columns, plan, *node);
    }
    export_node(std::move(node), out);
}

// Whether rows of several batches with this column can go to one output. Not where they point into something of their
// own batch (a dictionary, the text behind views), or are taken by somebody else.
inline bool joins(const ArrowSchema& schema) {
    const Kind kind = parse_type(schema.format).kind;
    return schema.dictionary == nullptr && kind != Kind::view && kind != Kind::other;
}

inline void check_same_layout(const Batch& first, const Batch& other) {
    bool same = first.columns.size() == other.columns.size();
    for (size_t c = 0; same && c < first.columns.size(); ++c) {
        const Type& one = first.columns[c].type;
        const Type& two = other.columns[c].type;
        same = one.kind == two.kind && one.width_bytes == two.width_bytes && joins(*other.columns[c].schema);
    }
    if (!same) throw std::invalid_argument("batches that are scattered together must have the same plain columns");
}

// Batches of one layout, parsed: what a plan is made for and applied to.
struct Inputs {
    std::vector<Batch> batches;
    std::vector<Batch> keys;
    std::vector<Input> selected;

    void add(const ArrowSchema& schema, const ArrowArray& array, const uint8_t* selection) {
        batches.push_back(parse_batch(schema, array));
        if (batches.size() > 1) check_same_layout(batches.front(), batches.back());
        selected.push_back({batches.back().length, selection});
    }
    void add_keys(const ArrowSchema& schema, const ArrowArray& array, const std::vector<int64_t>& indices) {
        keys.push_back(parse_batch(schema, array, indices));
    }
};

// Scatters all columns of the inputs by `plan` into `out`. `taken` holds, for each nested column in order, the array
// that a foreign `take` made of it; it is moved. The inputs are used up: parts may have been moved into the output.
inline void scatter_inputs(const Inputs& inputs, const Plan& plan, const std::vector<ArrowArray*>& taken,
                           ArrowArray* out) {
    auto root = std::make_unique<OutputNode>();
    root->length = plan.count;
    root->buffers.push_back(nullptr);
    size_t next_taken = 0;
    for (size_t c = 0; c < inputs.batches[0].columns.size(); ++c) {
        ArrowArray* child = root->add_child();
        if (inputs.batches[0].columns[c].type.kind == Kind::other) {
            move_array(taken.at(next_taken++), child);
            continue;
        }
        Columns columns;
        for (const Batch& batch : inputs.batches) columns.push_back(&batch.columns[c]);
        scatter_column(columns, plan, child);
    }
    export_node(std::move(root), out);
}

}  // namespace engine
