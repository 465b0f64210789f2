// CHECK(condition, "what was %d", found): says where and what, and the program fails in the end.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace herd::test {

inline int failures = 0;

inline int report(const char* name) {
    std::printf("%s: %s\n", name, failures == 0 ? "passed" : "FAILED");
    return failures == 0 ? 0 : 1;
}

}  // namespace herd::test

#define CHECK(condition, ...)                                        \
    do {                                                             \
        if (!(condition)) {                                          \
            std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            std::printf(__VA_ARGS__);                                \
            std::printf("\n");                                       \
            if (++herd::test::failures > 20) std::exit(1);           \
        }                                                            \
    } while (0)
