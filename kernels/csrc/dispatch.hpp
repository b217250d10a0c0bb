// Which of the compiled kernels this machine can run.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace affectrt {

// Widest first; never empty.
const std::vector<const Kernels*>& runnable_kernels();

}  // namespace affectrt
