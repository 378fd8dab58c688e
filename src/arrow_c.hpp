// The Arrow C Data Interface: its structs, and how kernels export what they made.
//
// Definitions: https://arrow.apache.org/docs/format/CDataInterface.html (no libarrow is included or linked).
//
// Laws
// - An array that came from outside is read-only and stays alive as long as the capsule that brought it.
// - `OutputNode` is one exported array. It owns its pooled blocks, its children and its dictionary, and gives them back
//   in its release callback, which needs no GIL and may run on any thread. Children are released on their own, as a
//   consumer may move them out of their parent.
// - A part of a foreign array that travels along uncopied (a dictionary, the data of a string view, a nested column) is
//   *moved* into the output, as the interface allows: the source's struct is marked released, and our release calls its
//   release. Only arrays that pyarrow exported to us are moved; their release callbacks need no GIL either.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "pool.hpp"

extern "C" {
#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

#define ARROW_FLAG_DICTIONARY_ORDERED 1
#define ARROW_FLAG_NULLABLE 2
#define ARROW_FLAG_MAP_KEYS_SORTED 4

struct ArrowSchema {
    const char* format;
    const char* name;
    const char* metadata;
    int64_t flags;
    int64_t n_children;
    struct ArrowSchema** children;
    struct ArrowSchema* dictionary;
    void (*release)(struct ArrowSchema*);
    void* private_data;
};

struct ArrowArray {
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void** buffers;
    struct ArrowArray** children;
    struct ArrowArray* dictionary;
    void (*release)(struct ArrowArray*);
    void* private_data;
};

#endif
}

namespace engine {

// Moves an array, as the interface defines moving: the source is marked released and must not be used again.
inline void move_array(ArrowArray* from, ArrowArray* to) {
    *to = *from;
    from->release = nullptr;
}

inline void release_array(ArrowArray* array) {
    if (array != nullptr && array->release != nullptr) array->release(array);
}

// The private data of one exported array. Fill it, then hand it over with `export_node`.
struct OutputNode {
    int64_t length = 0;
    int64_t null_count = 0;
    std::vector<Block> blocks;                           // ours
    std::vector<const void*> buffers;                    // in the order of the format; into `blocks` or `borrowed`
    std::vector<std::unique_ptr<ArrowArray>> children;
    std::vector<ArrowArray*> child_pointers;
    std::unique_ptr<ArrowArray> dictionary;
    ArrowArray borrowed = {};                            // keeps foreign buffers alive that `buffers` points to

    OutputNode() = default;
    OutputNode(const OutputNode&) = delete;
    OutputNode& operator=(const OutputNode&) = delete;
    ~OutputNode() {
        for (auto& child : children) release_array(child.get());
        release_array(dictionary.get());
        release_array(&borrowed);
    }

    void add_buffer(Block block) {
        buffers.push_back(block.as<void>());
        blocks.push_back(std::move(block));
    }

    ArrowArray* add_child() {
        children.push_back(std::make_unique<ArrowArray>());
        child_pointers.push_back(children.back().get());
        return children.back().get();
    }
};

inline void release_output_node(ArrowArray* array) {
    delete static_cast<OutputNode*>(array->private_data);
    array->release = nullptr;
    array->private_data = nullptr;
}

// Gives `node` to the consumer of `out`.
inline void export_node(std::unique_ptr<OutputNode> node, ArrowArray* out) {
    *out = ArrowArray{};
    out->length = node->length;
    out->null_count = node->null_count;
    out->n_buffers = static_cast<int64_t>(node->buffers.size());
    out->buffers = node->buffers.data();
    out->n_children = static_cast<int64_t>(node->child_pointers.size());
    out->children = node->child_pointers.empty() ? nullptr : node->child_pointers.data();
    out->dictionary = node->dictionary.get();
    out->private_data = node.release();
    out->release = release_output_node;
}

}  // namespace engine
