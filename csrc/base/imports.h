// What a library that is loaded calls of others, and how to have it call something else: its table of imported functions is written to, as
// profilers of memory do. For libraries that ask the system for memory and have no door for another place to ask.
#pragma once

#include <span>
#include <string_view>

namespace herd {

struct Import {
    std::string_view name;
    void* function;  // to be called in its place
};

// Every call of these functions from the first loaded library whose file name begins with `library` goes to the new ones from now on.
// Whether all of them were found; if not, nothing is changed. Only with glibc on 64-bit Linux: elsewhere nothing is found.
bool redirect(std::string_view library, std::span<const Import> imports);

// What that library calls by this name: the function, or what finds it at the first call. Null where `redirect` finds nothing.
void* imported(std::string_view library, std::string_view name);

}  // namespace herd
