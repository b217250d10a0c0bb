#include "ghrnn_cma.hpp"

#include <pybind11/stl.h>

#include "arrays.hpp"

namespace affectrt::bindings {
namespace {

const char* const kModalityNames[kModalities] = {"text", "audio", "vision"};

// The state dict: weights by name.
class StateDict {
  public:
    StateDict(const Arguments& arguments, const py::object& object) : arguments_(arguments) {
        if (!py::isinstance<py::dict>(object))
            arguments.refuse("weights", "a dict of arrays by name", py::str(py::type::of(object)));
        dict_ = py::reinterpret_borrow<py::dict>(object);
    }

    py::array array(const std::string& name, py::ssize_t rank, const std::string& symbols) const {
        if (!dict_.contains(name)) arguments_.refuse("weights", "'" + name + "' among the names", "no such weight");
        const py::array found = arguments_.array("weights['" + name + "']", dict_[py::str(name)]);
        arguments_.expect_rank("weights['" + name + "']", found, rank, symbols);
        return found;
    }

    const float* floats(const std::string& name, const std::vector<std::size_t>& shape) const {
        Shape expected(shape.begin(), shape.end());
        const py::array found = array(name, static_cast<py::ssize_t>(shape.size()), text(expected));
        arguments_.expect_shape("weights['" + name + "']", found, expected, "shape");
        const float* const values = arguments_.floats("weights['" + name + "']", found);
        if (!std::all_of(values, values + found.size(), [](float value) { return std::isfinite(value); }))
            arguments_.refuse("weights['" + name + "']", "finite numbers", "NaN or infinity");
        return values;
    }

  private:
    const Arguments& arguments_;
    py::dict dict_;
};

GhrnnCmaSizes sizes_of(const Arguments& arguments, const StateDict& weights, py::ssize_t heads) {
    GhrnnCmaSizes sizes{};
    for (std::size_t m = 0; m < kModalities; ++m) {
        const std::string name = std::string(kModalityNames[m]) + ".conv.weight";
        const py::array conv = weights.array(name, 3, "(d, D, taps)");
        sizes.dims[m] = size(conv.shape(1));
        sizes.model = size(conv.shape(0));
        sizes.taps = size(conv.shape(2));
    }
    const py::array w_h = weights.array("w_h", 3, "(3, 2·H, H)");
    const py::array fused = weights.array("fused.weight", 2, "(F, 3·H)");
    const py::array emotion = weights.array("emotion.weight", 2, "(emotions, F)");
    sizes.hidden = size(w_h.shape(2));
    sizes.fused = size(fused.shape(0));
    sizes.emotions = size(emotion.shape(0));
    if (sizes.taps % 2 == 0) arguments.refuse("weights['text.conv.weight']", "an odd number of taps",
                                              std::to_string(sizes.taps));
    if (heads < 1 || sizes.model % size(heads) != 0)
        arguments.refuse("heads", "a divisor of the model's width " + std::to_string(sizes.model),
                         std::to_string(heads));
    sizes.heads = size(heads);
    return sizes;
}

class Model {
  public:
    Model(const py::object& weights, py::ssize_t heads, const std::string& instruction_set)
        : Model(Arguments("ghrnn_cma"), weights, heads, instruction_set) {}

    // text, audio, vision: (T, D) each; subsets: (R, 3), which modalities count.
    std::pair<py::array, py::array> call(const py::object& text_object, const py::object& audio_object,
                                         const py::object& vision_object, const py::object& subsets_object) const {
        const py::object* const objects[kModalities] = {&text_object, &audio_object, &vision_object};
        std::array<FeatureRows, kModalities> features{};
        std::array<py::array, kModalities> kept;
        for (std::size_t m = 0; m < kModalities; ++m) {
            const std::string name = kModalityNames[m];
            kept[m] = arguments_.array(name, *objects[m]);
            arguments_.expect_rank(name, kept[m], 2, "(T, D)");
            arguments_.expect_shape(name, kept[m],
                                    {kept[m].shape(0), static_cast<py::ssize_t>(model_.sizes().dims[m])}, "(T, D)");
            features[m] = {arguments_.floats(name, kept[m]), size(kept[m].shape(0))};
        }
        const py::array subsets = arguments_.array("subsets", subsets_object);
        arguments_.expect_rank("subsets", subsets, 2, "(R, 3)");
        const py::ssize_t count = subsets.shape(0);
        arguments_.expect_shape("subsets", subsets, {count, static_cast<py::ssize_t>(kModalities)}, "(R, 3)");
        const bool* const flags = arguments_.data<bool>("subsets", subsets, "bool");
        std::vector<unsigned> bits(size(count), 0u);
        for (std::size_t r = 0; r < bits.size(); ++r)
            for (std::size_t m = 0; m < kModalities; ++m)
                bits[r] |= static_cast<unsigned>(flags[r * kModalities + m]) << m;

        auto sentiment = empty({count});
        auto logits = empty({count, static_cast<py::ssize_t>(model_.sizes().emotions)});
        float* const to = sentiment.mutable_data();
        float* const logits_to = logits.mutable_data();
        {
            const py::gil_scoped_release unlocked;
            model_(features, bits.data(), bits.size(), to, logits_to);
        }
        return {std::move(sentiment), std::move(logits)};
    }

    std::vector<std::size_t> dims() const { return {model_.sizes().dims.begin(), model_.sizes().dims.end()}; }

  private:
    Model(Arguments arguments, const py::object& weights, py::ssize_t heads, const std::string& instruction_set)
        : arguments_(std::move(arguments)), model_(made(StateDict(arguments_, weights), heads, instruction_set)) {}

    GhrnnCma made(const StateDict& weights, py::ssize_t heads, const std::string& instruction_set) const {
        return GhrnnCma(
            sizes_of(arguments_, weights, heads),
            [&](const std::string& name, const std::vector<std::size_t>& shape) { return weights.floats(name, shape); },
            arguments_.kernels(instruction_set));
    }

    Arguments arguments_;
    GhrnnCma model_;
};

}  // namespace

void define_ghrnn_cma(py::module_& module) {
    py::class_<Model>(module, "GhrnnCma", "The whole GHRNN-CMA fusion from its state dict.")
        .def(py::init<const py::object&, py::ssize_t, const std::string&>(), py::arg("weights"), py::kw_only(),
             py::arg("heads"), py::arg("instruction_set") = "")
        .def("__call__", &Model::call, py::arg("text"), py::arg("audio"), py::arg("vision"), py::arg("subsets"))
        .def_property_readonly("dims", &Model::dims, "Features per row of text, audio and vision.");
}

}  // namespace affectrt::bindings
