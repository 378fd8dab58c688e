// A row's position, and that of the sighting of its id before.
#pragma once

#include <cstdint>

namespace engine {

struct Sighting {
    uint64_t position;
    uint64_t previous;
};

}  // namespace engine
