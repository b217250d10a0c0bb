// The Python face of the C++ kernels: checks every array, then computes without the interpreter lock.
#include <pybind11/stl.h>

#include "arrays.hpp"

namespace {

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const affectrt::Kernels* kernels : affectrt::runnable_kernels()) names.emplace_back(kernels->name);
    return names;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "C++ kernels of AffectRT; use them through affectrt_kernels.native.";
    affectrt::bindings::define_gated_rnn(module);
    affectrt::bindings::define_attention(module);
    affectrt::bindings::define_ghrnn_cma(module);
    module.def("instruction_sets", &instruction_sets, "What the kernels can use on this machine, widest first.");
    module.def("poison_scratch", &affectrt::poison_scratch, pybind11::arg("enabled"),
               "For tests: fill scratch and results with NaN before they are written.");
}
