// Which kernels to run, and the whole recurrence with them.
#pragma once

#include <cstddef>
#include <vector>

#include "gated_rnn.hpp"

namespace affectrt {

// The kernels this machine can run, widest first; never empty.
const std::vector<const GatedRnnKernels*>& runnable_kernels();

// Computes `y` and `h_n` whole. Throws std::bad_alloc only.
void gated_rnn(const GatedRnn& problem, const GatedRnnKernels& kernels, std::size_t threads);

}  // namespace affectrt
