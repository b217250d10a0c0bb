// Attention, compiled once per instruction set beside kernels.cpp, because its vectors may be narrower; the same rules.
#define AFFECTRT_ATTEND_ONLY
#include "attend.hpp"

namespace affectrt {

void AFFECTRT_ATTEND(const Attention& p, float* scratch);
void AFFECTRT_ATTEND(const Attention& p, float* scratch) { attend(p, scratch); }

}  // namespace affectrt
