// The Python face of the C++ kernels: checks every array, then computes without the interpreter lock.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "dispatch.hpp"

namespace py = pybind11;

namespace {

std::string text(const std::vector<py::ssize_t>& shape) {
    std::string joined = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) joined += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    return joined + (shape.size() == 1 ? ",)" : ")");
}

std::vector<py::ssize_t> shape_of(const py::array& array) {
    return {array.shape(), array.shape() + array.ndim()};
}

[[noreturn]] void refuse(const std::string& name, const std::string& expected, const std::string& got) {
    throw py::value_error("gated_rnn: " + name + ": expected " + expected + ", got " + got);
}

py::array array_of(const char* name, const py::object& object) {
    if (!py::isinstance<py::array>(object)) refuse(name, "a numpy array", py::str(py::type::of(object)));
    return py::reinterpret_borrow<py::array>(object);
}

void expect_rank(const char* name, const py::array& array, py::ssize_t rank, const std::string& symbols) {
    if (array.ndim() != rank) refuse(name, symbols, "shape " + text(shape_of(array)));
}

void expect_shape(const char* name, const py::array& array, const std::vector<py::ssize_t>& shape,
                  const std::string& symbols) {
    if (shape_of(array) != shape)
        refuse(name, symbols + " = " + text(shape), "shape " + text(shape_of(array)));
}

template <typename T>
const T* data(const char* name, const py::array& array, const char* type) {
    if (!py::dtype::of<T>().equal(array.dtype())) refuse(name, type, py::str(array.dtype()));
    if ((array.flags() & py::array::c_style) == 0) refuse(name, "a C-contiguous array", "a strided one");
    return static_cast<const T*>(array.data());
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const auto* kernels : affectrt::runnable_kernels()) names.emplace_back(kernels->name);
    return names;
}

const affectrt::GatedRnnKernels& kernels_named(const std::string& name) {
    std::string known;
    for (const auto* kernels : affectrt::runnable_kernels()) {
        if (name.empty() || name == kernels->name) return *kernels;
        known += (known.empty() ? "" : ", ") + std::string(kernels->name);
    }
    refuse("instruction_set", "one of " + known, name);
}

// Arrays come as plain objects: pybind11's own refusal would print every number of every argument.
std::pair<py::array_t<float>, py::array_t<float>> gated_rnn(
    const py::object& x_object, const py::object& w_x_object, const py::object& w_h_object,
    const py::object& bias_object, const py::object& lengths_object, const py::object& h0_object, py::ssize_t gates,
    bool reverse, py::ssize_t threads, const std::string& instruction_set) {
    if (gates != 1 && gates != 2) refuse("gates", "1 or 2", std::to_string(gates));
    if (threads < 1) refuse("threads", "at least 1", std::to_string(threads));
    const affectrt::GatedRnnKernels& kernels = kernels_named(instruction_set);
    const py::array x = array_of("x", x_object), w_x = array_of("w_x", w_x_object);
    const py::array w_h = array_of("w_h", w_h_object), bias = array_of("bias", bias_object);
    expect_rank("x", x, 4, "(S, B, T, I)");
    expect_rank("w_h", w_h, 3, "(S, (gates+1)·H, H)");
    const py::ssize_t streams = x.shape(0), batch = x.shape(1), steps = x.shape(2), inputs = x.shape(3);
    const py::ssize_t hidden = w_h.shape(2), blocks = (gates + 1) * hidden;
    expect_shape("w_x", w_x, {streams, blocks, inputs}, "(S, (gates+1)·H, I)");
    expect_shape("w_h", w_h, {streams, blocks, hidden}, "(S, (gates+1)·H, H)");
    expect_shape("bias", bias, {streams, blocks}, "(S, (gates+1)·H)");

    affectrt::GatedRnn problem{};
    problem.streams = static_cast<std::size_t>(streams);
    problem.batch = static_cast<std::size_t>(batch);
    problem.steps = static_cast<std::size_t>(steps);
    problem.inputs = static_cast<std::size_t>(inputs);
    problem.hidden = static_cast<std::size_t>(hidden);
    problem.gates = static_cast<std::size_t>(gates);
    problem.reverse = reverse;
    problem.x = data<float>("x", x, "float32");
    problem.w_x = data<float>("w_x", w_x, "float32");
    problem.w_h = data<float>("w_h", w_h, "float32");
    problem.bias = data<float>("bias", bias, "float32");
    std::vector<std::int64_t> checked_lengths;  // a copy: another thread may write to the caller's array
    if (!lengths_object.is_none()) {
        const py::array lengths = array_of("lengths", lengths_object);
        expect_shape("lengths", lengths, {batch}, "(B,)");
        const std::int64_t* values = data<std::int64_t>("lengths", lengths, "int64");
        checked_lengths.assign(values, values + batch);
        for (std::size_t row = 0; row < checked_lengths.size(); ++row)
            if (checked_lengths[row] < 0 || checked_lengths[row] > steps)
                refuse("lengths[" + std::to_string(row) + "]", "0.." + std::to_string(steps),
                       std::to_string(checked_lengths[row]));
        problem.lengths = checked_lengths.data();
    }
    if (!h0_object.is_none()) {
        const py::array h0 = array_of("h0", h0_object);
        expect_shape("h0", h0, {streams, batch, hidden}, "(S, B, H)");
        problem.h0 = data<float>("h0", h0, "float32");
    }

    py::array_t<float> y({streams, batch, steps, hidden});
    py::array_t<float> h_n({streams, batch, hidden});
    problem.y = y.mutable_data();
    problem.h_n = h_n.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        affectrt::gated_rnn(problem, kernels, static_cast<std::size_t>(threads));
    }
    return {std::move(y), std::move(h_n)};
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "C++ kernels of AffectRT; use them through affectrt_kernels.native.";
    module.def("gated_rnn", &gated_rnn, py::arg("x"), py::arg("w_x"), py::arg("w_h"), py::arg("bias"),
               py::arg("lengths") = py::none(), py::arg("h0") = py::none(), py::kw_only(), py::arg("gates") = 1,
               py::arg("reverse") = false, py::arg("threads") = 1, py::arg("instruction_set") = "",
               "The reset-before gated recurrence; see affectrt_kernels.native.gated_rnn.");
    module.def("instruction_sets", &instruction_sets, "What the kernels can use on this machine, widest first.");
}
