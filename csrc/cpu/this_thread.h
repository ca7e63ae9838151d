// What the thread that calls, and its process, can be told, and tell, where the systems differ.
#pragma once
#include <cstdint>

namespace glmlite {

enum class Priority { kNormal, kBackground };

// Others come first from here on, for good: on Linux only a privileged process gets a priority back. A system that
// refuses leaves the thread as it is.
void lower_priority();

// The number of this process, by which a fork of it is told; 0 where there are none.
int64_t this_process();

// A clock, and the time on a core that the thread has had, in one unit; its length differs between the systems.
// Always 0 where the system does not tell that time finely enough.
int64_t clock_ticks();
int64_t core_ticks();

}  // namespace glmlite
