#include "attention.hpp"

#include <pybind11/stl.h>

#include "arrays.hpp"

namespace affectrt::bindings {
namespace {

const char* const kRowsSymbols = "(B, 1+T, N, D)";

// Views of a joint projection come as they are: only heads and their width must lie together.
Rows rows(const Arguments& arguments, const std::string& name, const py::array& array) {
    arguments.expect_type<float>(name, array, "float32");
    constexpr py::ssize_t kFloat = sizeof(float);
    const py::ssize_t dim = array.shape(3), heads = array.shape(2);
    const bool together = (dim < 2 || array.strides(3) == kFloat) && (heads < 2 || array.strides(2) == dim * kFloat);
    if (array.size() == 0) return {};  // torch gives such arrays strides of 0
    if (!together || array.strides(0) % kFloat != 0 || array.strides(1) % kFloat != 0)
        arguments.refuse(name, "heads and their width to lie contiguously",
                         "strides " + text({array.strides(), array.strides() + array.ndim()}));
    return {static_cast<const float*>(array.data()), array.strides(0) / kFloat, array.strides(1) / kFloat};
}

py::sequence sequence(const Arguments& arguments, const std::string& name, const py::object& object,
                      std::size_t count) {
    if (!py::isinstance<py::sequence>(object)) arguments.refuse(name, "a list of arrays", py::str(py::type::of(object)));
    auto list = py::reinterpret_borrow<py::sequence>(object);
    if (py::len(list) != count)
        arguments.refuse(name, "one array for each of " + std::to_string(count) + " pairs",
                         std::to_string(py::len(list)));
    return list;
}

std::pair<py::list, py::list> attention(const py::object& q_object, const py::object& k_object,
                                        const py::object& v_object,
                                        const std::vector<std::pair<py::ssize_t, py::ssize_t>>& directions,
                                        const py::object& lengths_object, const py::object& windows_object,
                                        py::ssize_t threads, const std::string& instruction_set) {
    const Arguments arguments("pairwise_attention");
    const Kernels& kernels = arguments.kernels(instruction_set);
    const std::size_t workers = arguments.threads(threads);
    const std::size_t count = directions.size();
    if (count == 0) arguments.refuse("pairs", "at least one", "none");
    const py::sequence q = sequence(arguments, "q", q_object, count);
    const py::sequence k = sequence(arguments, "k", k_object, count);
    const py::sequence v = sequence(arguments, "v", v_object, count);

    const py::array first = arguments.array("q[0]", q[0]);
    arguments.expect_rank("q[0]", first, 4, kRowsSymbols);
    const py::ssize_t batch = first.shape(0), heads = first.shape(2), dim = first.shape(3);
    if (dim < 1) arguments.refuse("q[0]", "a width D of at least 1", std::to_string(dim));

    py::ssize_t modalities = std::numeric_limits<py::ssize_t>::max();
    py::array lengths;
    if (!lengths_object.is_none()) {
        lengths = arguments.array("lengths", lengths_object);
        arguments.expect_rank("lengths", lengths, 2, "(M, B)");
        modalities = lengths.shape(0);
        arguments.expect_shape("lengths", lengths, {modalities, batch}, "(M, B)");
        arguments.expect_type<std::int64_t>("lengths", lengths, "int64");
    }
    std::vector<std::vector<std::int64_t>> checked_lengths;  // of each pair's queries and keys
    std::vector<std::vector<std::int64_t>> checked_windows;
    checked_lengths.reserve(2 * count);
    checked_windows.reserve(count);
    const auto lengths_of = [&](py::ssize_t modality, py::ssize_t steps) -> const std::int64_t* {
        if (lengths_object.is_none()) return nullptr;
        const auto row = py::array(lengths[py::int_(modality)]);
        checked_lengths.push_back(arguments.lengths("lengths[" + std::to_string(modality) + "]", row, steps));
        return checked_lengths.back().data();
    };

    // A list may lose its arrays while the lock is released, and any sequence may make them as it is asked.
    std::vector<py::array> kept;
    std::vector<Pair> pairs;
    std::vector<std::pair<py::ssize_t, py::ssize_t>> rows_of;  // modality, rows
    py::list outputs, log_sums;
    for (std::size_t p = 0; p < count; ++p) {
        const std::string index = "[" + std::to_string(p) + "]";
        const auto [asking, answering] = directions[p];
        if (asking < 0 || answering < 0 || asking >= modalities || answering >= modalities)
            arguments.refuse("pairs" + index, "modalities that are rows of lengths", text({asking, answering}));
        const auto checked = [&](const std::string& name, const py::handle& object, py::ssize_t modality) {
            const py::array array = arguments.array(name, object);
            arguments.expect_rank(name, array, 4, kRowsSymbols);
            auto known = std::find_if(rows_of.begin(), rows_of.end(),
                                      [&](const auto& entry) { return entry.first == modality; });
            if (known == rows_of.end()) known = rows_of.insert(known, {modality, array.shape(1)});
            if (known->second < 1) arguments.refuse(name, "a null slot, so 1+T of at least 1", "0 rows");
            arguments.expect_shape(name, array, {batch, known->second, heads, dim}, kRowsSymbols);
            kept.push_back(array);
            return array;
        };
        const py::array asked = checked("q" + index, q[p], asking);
        const py::array key = checked("k" + index, k[p], answering), value = checked("v" + index, v[p], answering);
        Pair pair{};
        pair.q = rows(arguments, "q" + index, asked);
        pair.k = rows(arguments, "k" + index, key);
        pair.v = rows(arguments, "v" + index, value);
        pair.queries = size(asked.shape(1));
        pair.keys = size(key.shape(1));
        pair.query_lengths = lengths_of(asking, asked.shape(1) - 1);
        pair.key_lengths = lengths_of(answering, key.shape(1) - 1);
        if (!windows_object.is_none()) {
            const py::array window =
                arguments.array("windows" + index, sequence(arguments, "windows", windows_object, count)[p]);
            arguments.expect_shape("windows" + index, window, {batch, asked.shape(1), 2}, "(B, 1+T, 2)");
            const auto* values = arguments.data<std::int64_t>("windows" + index, window, "int64");
            checked_windows.emplace_back(values, values + window.size());
            pair.windows = checked_windows.back().data();
        }
        auto out = empty({batch, asked.shape(1), heads, dim});
        auto log_sum = empty({batch, heads, asked.shape(1)});
        pair.out = out.mutable_data();
        pair.log_sums = log_sum.mutable_data();
        outputs.append(std::move(out));
        log_sums.append(std::move(log_sum));
        pairs.push_back(pair);
    }
    {
        const py::gil_scoped_release unlocked;
        pairwise_attention(pairs.data(), count, size(batch), size(heads), size(dim), kernels, workers);
    }
    return {std::move(outputs), std::move(log_sums)};
}

}  // namespace

void define_attention(py::module_& module) {
    module.def("pairwise_attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("pairs"),
               py::arg("lengths") = py::none(), py::arg("windows") = py::none(), py::kw_only(),
               py::arg("threads") = 1, py::arg("instruction_set") = "",
               "Directed pairwise cross-modal attention; see affectrt_kernels.native.pairwise_attention.");
}

}  // namespace affectrt::bindings
