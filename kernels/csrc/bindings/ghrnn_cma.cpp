#include "ghrnn_cma.hpp"

#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <mutex>

#include "arrays.hpp"
#include "ghrnn_cma_stream.hpp"

namespace affectrt::bindings {
namespace {

const char* const kModalityNames[kModalities] = {"text", "audio", "vision"};
constexpr float kTooLarge = 1e15f;
const char* const kNoWord = "no_word";  // of the causal model: what stream() is given

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
        taken_[name] = found;
        return found;
    }

    // One that nobody asked for belongs to another model, whose results these would not be.
    void expect_no_other() const {
        for (const auto& item : dict_) {
            const std::string name = py::str(item.first);
            if (name != kNoWord && taken_.count(name) == 0)
                arguments_.refuse("weights", "the weights of GHRNN-CMA only", "also '" + name + "'");
        }
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
    mutable std::map<std::string, py::array> taken_;  // a subclass of dict may make them as it is asked
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
        // As bytes: a flag that NumPy was handed may be any, and what is not 0 is true.
        const auto* const flags =
            reinterpret_cast<const unsigned char*>(arguments_.data<bool>("subsets", subsets, "bool"));
        std::vector<unsigned> bits(size(count), 0u);
        for (std::size_t r = 0; r < bits.size(); ++r)
            for (std::size_t m = 0; m < kModalities; ++m)
                if (flags[r * kModalities + m] != 0) bits[r] |= 1u << m;

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

    const GhrnnCma& model() const { return model_; }

    std::vector<std::size_t> dims() const { return {model_.sizes().dims.begin(), model_.sizes().dims.end()}; }

  private:
    Model(Arguments arguments, const py::object& weights, py::ssize_t heads, const std::string& instruction_set)
        : arguments_(std::move(arguments)), model_(made(StateDict(arguments_, weights), heads, instruction_set)) {}

    GhrnnCma made(const StateDict& weights, py::ssize_t heads, const std::string& instruction_set) const {
        GhrnnCma model(
            sizes_of(arguments_, weights, heads),
            [&](const std::string& name, const std::vector<std::size_t>& shape) { return weights.floats(name, shape); },
            arguments_.kernels(instruction_set));
        weights.expect_no_other();
        return model;
    }

    Arguments arguments_;
    GhrnnCma model_;
};

// One person's state, guarded: a tick of one thread waits for that of another.
class Stream {
  public:
    Stream(const Model& model, const py::object& no_word, double window_s)
        : arguments_("ghrnn_cma stream"),
          sizes_(model.model().sizes()),
          stream_(model.model(), row("no_word", no_word), checked_window(window_s)) {}

    std::pair<float, py::array> step(double time_s, const py::object& text, const py::object& audio,
                                     const py::object& audio_times_s, const py::object& vision,
                                     const py::object& vision_times_s) {
        py::gil_scoped_release unlocked;
        const std::lock_guard<std::mutex> turn(mutex_);
        py::gil_scoped_acquire relocked;
        if (!std::isfinite(time_s) || time_s <= stream_.last_tick_s())
            arguments_.refuse("time_s", "a time after the last tick, " + std::to_string(stream_.last_tick_s()),
                              std::to_string(time_s));
        const float* const text_row = text.is_none() ? nullptr : row("text", text);
        const std::array<TimedRows, kAnswers> rows{timed(0, audio, audio_times_s, time_s),
                                                   timed(1, vision, vision_times_s, time_s)};
        float sentiment = 0.0f;
        auto logits = empty({static_cast<py::ssize_t>(sizes_.emotions)});
        float* const to = logits.mutable_data();
        {
            py::gil_scoped_release computing;
            stream_.step(time_s, text_row, rows, &sentiment, to);
        }
        return {sentiment, std::move(logits)};
    }

  private:
    double checked_window(double window_s) const {
        if (!(window_s > 0.0) || !std::isfinite(window_s))
            arguments_.refuse("window_s", "a number of seconds above 0", std::to_string(window_s));
        return window_s;
    }

    const float* finite(const std::string& name, const py::array& array) const {
        const float* const values = arguments_.floats(name, array);
        // What is refused here would stay in the state for good, as would the NaN that comes of normalising numbers
        // whose squares overflow.
        if (!std::all_of(values, values + array.size(), [](float value) { return std::abs(value) < kTooLarge; }))
            arguments_.refuse(name, "finite numbers below 1e15", "NaN, infinity or larger ones");
        return values;
    }

    const float* row(const std::string& name, const py::object& object) const {
        const py::array array = arguments_.array(name, object);
        arguments_.expect_shape(name, array, {static_cast<py::ssize_t>(sizes_.dims[0])}, "(D,)");
        return finite(name, array);
    }

    TimedRows timed(std::size_t which, const py::object& values_object, const py::object& times_object,
                    double time_s) const {
        if (values_object.is_none() && times_object.is_none()) return {nullptr, nullptr, 0};
        const std::string name = kModalityNames[1 + which], times_name = name + "_times_s";
        const py::array values = arguments_.array(name, values_object);
        const py::array times = arguments_.array(times_name, times_object);
        arguments_.expect_rank(name, values, 2, "(T, D)");
        const py::ssize_t count = values.shape(0);
        arguments_.expect_shape(name, values, {count, static_cast<py::ssize_t>(sizes_.dims[1 + which])}, "(T, D)");
        arguments_.expect_shape(times_name, times, {count}, "(T,)");
        const double* const at = arguments_.data<double>(times_name, times, "float64");
        double before = stream_.newest_s(which);
        for (py::ssize_t i = 0; i < count; ++i) {
            if (!(at[i] >= before && at[i] <= time_s))
                arguments_.refuse(times_name + "[" + std::to_string(i) + "]",
                                  "a time from " + std::to_string(before) + " to that of the tick, " +
                                      std::to_string(time_s),
                                  std::to_string(at[i]));
            before = at[i];
        }
        return {finite(name, values), at, size(count)};
    }

    Arguments arguments_;
    GhrnnCmaSizes sizes_;
    GhrnnCmaStream stream_;
    std::mutex mutex_;
};

}  // namespace

void define_ghrnn_cma(py::module_& module) {
    py::class_<Model>(module, "GhrnnCma", "The whole GHRNN-CMA fusion from its state dict.")
        .def(py::init<const py::object&, py::ssize_t, const std::string&>(), py::arg("weights"), py::kw_only(),
             py::arg("heads"), py::arg("instruction_set") = "")
        .def("__call__", &Model::call, py::arg("text"), py::arg("audio"), py::arg("vision"), py::arg("subsets"))
        .def("stream", [](const Model& model, const py::object& no_word, double window_s) {
                 return std::make_unique<Stream>(model, no_word, window_s);
             }, py::arg("no_word"), py::arg("window_s"), py::keep_alive<0, 1>(),
             "The state of one person, for the causal model.")
        .def_property_readonly("dims", &Model::dims, "Features per row of text, audio and vision.");
    py::class_<Stream>(module, "GhrnnCmaStream", "The causal GHRNN-CMA one tick at a time.")
        .def("step", &Stream::step, py::arg("time_s"), py::arg("text") = py::none(), py::arg("audio") = py::none(),
             py::arg("audio_times_s") = py::none(), py::arg("vision") = py::none(),
             py::arg("vision_times_s") = py::none());
}

}  // namespace affectrt::bindings
