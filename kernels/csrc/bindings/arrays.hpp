// Checks of the arrays that come from Python. Arrays come as plain objects: pybind11's own refusal would print every
// number of every argument.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "dispatch.hpp"
#include "memory.hpp"

namespace affectrt::bindings {

namespace py = pybind11;
using Shape = std::vector<py::ssize_t>;

inline std::string text(const Shape& shape) {
    std::string joined = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) joined += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    return joined + (shape.size() == 1 ? ",)" : ")");
}

inline Shape shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

inline std::size_t size(py::ssize_t value) { return static_cast<std::size_t>(value); }

// The arguments of one operator: says in every refusal whose they are.
class Arguments {
  public:
    explicit Arguments(std::string function) : function_(std::move(function)) {}

    [[noreturn]] void refuse(const std::string& name, const std::string& expected, const std::string& got) const {
        throw py::value_error(function_ + ": " + name + ": expected " + expected + ", got " + got);
    }

    py::array array(const std::string& name, const py::handle& object) const {
        if (!py::isinstance<py::array>(object)) refuse(name, "a numpy array", py::str(py::type::of(object)));
        return py::reinterpret_borrow<py::array>(object);
    }

    void expect_rank(const std::string& name, const py::array& array, py::ssize_t rank,
                     const std::string& symbols) const {
        if (array.ndim() != rank) refuse(name, symbols, "shape " + text(shape_of(array)));
    }

    void expect_shape(const std::string& name, const py::array& array, const Shape& shape,
                      const std::string& symbols) const {
        if (shape_of(array) != shape)
            refuse(name, symbols + " = " + text(shape), "shape " + text(shape_of(array)));
    }

    template <typename T>
    const T* data(const std::string& name, const py::array& array, const char* type) const {
        expect_type<T>(name, array, type);
        if ((array.flags() & py::array::c_style) == 0) refuse(name, "a C-contiguous array", "a strided one");
        return static_cast<const T*>(array.data());
    }
    const float* floats(const std::string& name, const py::array& array) const {
        return data<float>(name, array, "float32");
    }

    template <typename T>
    void expect_type(const std::string& name, const py::array& array, const char* type) const {
        if (!py::dtype::of<T>().equal(array.dtype())) refuse(name, type, py::str(array.dtype()));
        // NumPy reads numbers at any address, C++ must not.
        if (array.size() > 0 && reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) != 0)
            refuse(name, "an array aligned to its type", "one at an odd address");
    }

    // A copy, because another thread may write to the caller's array after it was checked.
    std::vector<std::int64_t> lengths(const std::string& name, const py::array& array, py::ssize_t steps) const {
        const std::int64_t* values = data<std::int64_t>(name, array, "int64");
        std::vector<std::int64_t> checked(values, values + array.size());
        for (std::size_t row = 0; row < checked.size(); ++row)
            if (checked[row] < 0 || checked[row] > steps)
                refuse(name + "[" + std::to_string(row) + "]", "0.." + std::to_string(steps),
                       std::to_string(checked[row]));
        return checked;
    }

    std::size_t threads(py::ssize_t count) const {
        if (count < 1 || count > 1024) refuse("threads", "1..1024", std::to_string(count));
        return size(count);
    }

    const Kernels& kernels(const std::string& name) const {
        std::string known;
        for (const Kernels* kernels : runnable_kernels()) {
            if (name.empty() || name == kernels->name) return *kernels;
            known += (known.empty() ? "" : ", ") + std::string(kernels->name);
        }
        refuse("instruction_set", "one of " + known, name);
    }

  private:
    std::string function_;
};

// An array for results.
inline py::array_t<float> empty(const Shape& shape) {
    py::array_t<float> array(shape);
    if (scratch_is_poisoned())
        std::fill_n(array.mutable_data(), array.size(), std::numeric_limits<float>::quiet_NaN());
    return array;
}

void define_gated_rnn(py::module_& module);
void define_attention(py::module_& module);
void define_ghrnn_cma(py::module_& module);

}  // namespace affectrt::bindings
