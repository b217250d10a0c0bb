// Compiled once per instruction set, with AFFECTRT_KERNELS naming the table it defines. Uses no inline code of the
// standard library: the linker would keep one copy of it, perhaps one this machine cannot run.
#include "kernels.hpp"

#include "attend_ring.hpp"
#include "convolve.hpp"
#include "multiply.hpp"
#include "normalize.hpp"
#include "pack.hpp"
#include "recurrence.hpp"

namespace affectrt {

void AFFECTRT_ATTEND(const Attention& p, float* scratch);  // attend.cpp

extern const Kernels AFFECTRT_KERNELS;
const Kernels AFFECTRT_KERNELS{
    AFFECTRT_KERNELS_NAME, kLanes, kPanel * kAttendLanes, pack, multiply, convolve, normalize, recur, AFFECTRT_ATTEND,
    attend_ring,
};

}  // namespace affectrt
