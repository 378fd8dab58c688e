// Several positioned reads in one go, without the GIL.
//
// Laws
// - Whole pieces or an error: short reads go on, an interrupted one is repeated.
// - The system is told of all pieces before the first is read, so that a device reads them side by side; what is in the
//   page cache costs a copy.
// - pread, never a mapping: an I/O error is a result, not a signal.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include <fcntl.h>
#include <unistd.h>

namespace engine {

struct ReadOutcome {
    int error = 0;        // errno, or 0
    int64_t ended = -1;   // the offset at which the file ended too early, or -1
};

inline ReadOutcome pread_many(int descriptor, const int64_t* offsets, const int64_t* sizes, size_t count,
                              uint8_t* target) noexcept {
    ReadOutcome outcome;
#ifdef POSIX_FADV_WILLNEED
    if (count > 1)
        for (size_t i = 0; i < count; ++i)
            (void)posix_fadvise(descriptor, static_cast<off_t>(offsets[i]), static_cast<off_t>(sizes[i]),
                                POSIX_FADV_WILLNEED);
#endif
    for (size_t i = 0; i < count; ++i) {
        int64_t done = 0;
        while (done < sizes[i]) {
            const ssize_t read = pread(descriptor, target, static_cast<size_t>(sizes[i] - done),
                                       static_cast<off_t>(offsets[i] + done));
            if (read < 0 && errno == EINTR) continue;
            if (read < 0) {
                outcome.error = errno;
                return outcome;
            }
            if (read == 0) {
                outcome.ended = offsets[i] + done;
                return outcome;
            }
            done += read;
            target += read;
        }
    }
    return outcome;
}

}  // namespace engine
