#include "gated_rnn.hpp"

#include "arrays.hpp"

namespace affectrt::bindings {
namespace {

class PreparedGatedRnn {
  public:
    PreparedGatedRnn(const py::object& w_x_object, const py::object& w_h_object, const py::object& bias_object,
                     py::ssize_t gates, const std::string& instruction_set)
        : arguments_("gated_rnn"), rnn_(weights(w_x_object, w_h_object, bias_object, gates),
                                        arguments_.kernels(instruction_set)) {}

    std::pair<py::array, py::array> call(const py::object& x_object, const py::object& lengths_object,
                                         const py::object& h0_object, bool reverse, py::ssize_t threads,
                                         const py::object& out) const {
        const std::size_t workers = arguments_.threads(threads);
        const py::array x = arguments_.array("x", x_object);
        arguments_.expect_rank("x", x, 4, "(S, B, T, I)");
        const py::ssize_t streams = signed_size(rnn_.streams()), hidden = signed_size(rnn_.hidden());
        const py::ssize_t batch = x.shape(1), steps = x.shape(2);
        arguments_.expect_shape("x", x, {streams, batch, steps, signed_size(rnn_.inputs())}, "(S, B, T, I)");

        GatedRnnCall call{};
        call.batch = size(batch);
        call.steps = size(steps);
        call.reverse = reverse;
        call.x = arguments_.floats("x", x);
        std::vector<std::int64_t> lengths;
        if (!lengths_object.is_none()) {
            const py::array given = arguments_.array("lengths", lengths_object);
            arguments_.expect_shape("lengths", given, {batch}, "(B,)");
            lengths = arguments_.lengths("lengths", given, steps);
            call.lengths = lengths.data();
        }
        if (!h0_object.is_none()) {
            const py::array h0 = arguments_.array("h0", h0_object);
            arguments_.expect_shape("h0", h0, {streams, batch, hidden}, "(S, B, H)");
            call.h0 = arguments_.floats("h0", h0);
        }

        py::array y, h_n;
        if (out.is_none()) {
            y = empty({streams, batch, steps, hidden});
            h_n = empty({streams, batch, hidden});
        } else {
            if (!py::isinstance<py::tuple>(out) || py::len(out) != 2)
                arguments_.refuse("out", "a tuple (y, h_n)", py::str(py::type::of(out)));
            const auto pair = py::reinterpret_borrow<py::tuple>(out);
            y = arguments_.array("out[0]", pair[0]);
            h_n = arguments_.array("out[1]", pair[1]);
            arguments_.expect_shape("out[0]", y, {streams, batch, steps, hidden}, "(S, B, T, H)");
            arguments_.expect_shape("out[1]", h_n, {streams, batch, hidden}, "(S, B, H)");
            arguments_.floats("out[0]", y);
            arguments_.floats("out[1]", h_n);
        }
        call.y = static_cast<float*>(y.mutable_data());
        call.h_n = static_cast<float*>(h_n.mutable_data());
        {
            const py::gil_scoped_release unlocked;
            rnn_(call, workers);
        }
        return {std::move(y), std::move(h_n)};
    }

  private:
    static py::ssize_t signed_size(std::size_t value) { return static_cast<py::ssize_t>(value); }

    GatedRnnWeights weights(const py::object& w_x_object, const py::object& w_h_object, const py::object& bias_object,
                            py::ssize_t gates) const {
        if (gates != 1 && gates != 2) arguments_.refuse("gates", "1 or 2", std::to_string(gates));
        const py::array w_x = arguments_.array("w_x", w_x_object), w_h = arguments_.array("w_h", w_h_object);
        const py::array bias = arguments_.array("bias", bias_object);
        arguments_.expect_rank("w_h", w_h, 3, "(S, (gates+1)·H, H)");
        const py::ssize_t streams = w_h.shape(0), hidden = w_h.shape(2), blocks = (gates + 1) * hidden;
        arguments_.expect_shape("w_h", w_h, {streams, blocks, hidden}, "(S, (gates+1)·H, H)");
        arguments_.expect_rank("w_x", w_x, 3, "(S, (gates+1)·H, I)");
        arguments_.expect_shape("w_x", w_x, {streams, blocks, w_x.shape(2)}, "(S, (gates+1)·H, I)");
        arguments_.expect_shape("bias", bias, {streams, blocks}, "(S, (gates+1)·H)");
        return {size(streams),
                size(w_x.shape(2)),
                size(hidden),
                size(gates),
                arguments_.floats("w_x", w_x),
                arguments_.floats("w_h", w_h),
                arguments_.floats("bias", bias)};
    }

    Arguments arguments_;
    GatedRnn rnn_;
};

}  // namespace

void define_gated_rnn(py::module_& module) {
    py::class_<PreparedGatedRnn>(module, "GatedRnn", "The reset-before gated recurrence, its weights packed.")
        .def(py::init<const py::object&, const py::object&, const py::object&, py::ssize_t, const std::string&>(),
             py::arg("w_x"), py::arg("w_h"), py::arg("bias"), py::kw_only(), py::arg("gates") = 1,
             py::arg("instruction_set") = "")
        .def("__call__", &PreparedGatedRnn::call, py::arg("x"), py::arg("lengths") = py::none(),
             py::arg("h0") = py::none(), py::kw_only(), py::arg("reverse") = false, py::arg("threads") = 1,
             py::arg("out") = py::none());
}

}  // namespace affectrt::bindings
