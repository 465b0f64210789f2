#include "base/team.h"

#include "base/imports.h"

namespace herd {

ParallelFunction team_of_torch() {
    static const auto found = reinterpret_cast<ParallelFunction>(imported("libtorch_cpu", "GOMP_parallel"));
    return found;
}

}  // namespace herd
