#include "dispatch.hpp"

namespace affectrt {

extern const Kernels kBaselineKernels;
#if defined(AFFECTRT_X86)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

const std::vector<const Kernels*>& runnable_kernels() {
    static const std::vector<const Kernels*> runnable = [] {
        std::vector<const Kernels*> found;
#if defined(AFFECTRT_X86)
        const bool fma = __builtin_cpu_supports("fma");
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
        if (fma && avx512) found.push_back(&kAvx512Kernels);
        if (fma && __builtin_cpu_supports("avx2")) found.push_back(&kAvx2Kernels);
#endif
        found.push_back(&kBaselineKernels);
        return found;
    }();
    return runnable;
}

}  // namespace affectrt
