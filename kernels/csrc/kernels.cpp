// Compiled once per instruction set, with AFFECTRT_KERNELS naming the table it defines. Uses no inline code of the
// standard library: the linker would keep one copy of it, perhaps one this machine cannot run.
#include "kernels.hpp"

#include "attend.hpp"
#include "convolve.hpp"
#include "multiply.hpp"
#include "normalize.hpp"
#include "recurrence.hpp"

namespace affectrt {

extern const Kernels AFFECTRT_KERNELS;
const Kernels AFFECTRT_KERNELS{
    AFFECTRT_KERNELS_NAME, kLanes, kPanel * kLanes, pack, multiply, convolve, normalize, recur, attend, attend_ring,
};

}  // namespace affectrt
