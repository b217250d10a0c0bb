// The reset-before gated recurrence of some rows of one stream. Included once per instruction set.
#pragma once

#include "kernels.hpp"
#include "multiply.hpp"
#include "simd.hpp"

namespace affectrt {
namespace {

// One row: the gates' sums become gates, and the state that the candidate sees is reset.
inline void reset(float* gate, const float* state, float* reset_state, std::size_t units, std::size_t gates) {
    for (std::size_t u = 0; u < units; u += kLanes) {
        const Lanes z = sigmoid(load(gate + u));
        store(gate + u, z);
        const Lanes r = gates == 1 ? z : sigmoid(load(gate + units + u));
        store(reset_state + u, r * load(state + u));
    }
}

inline void update(const float* z, const float* candidate, float* state, std::size_t units) {
    for (std::size_t u = 0; u < units; u += kLanes) {
        const Lanes old = load(state + u);
        store(state + u, old + load(z + u) * (tanh(load(candidate + u)) - old));
    }
}

void recur(const Recurrence& p, float* scratch) {
    const std::size_t units = padded(p.hidden, kLanes);
    const std::size_t gate_units = p.gates * units;
    const std::size_t all_units = gate_units + units;
    const std::size_t chunk = steps_together(p.count);
    const auto state_stride = static_cast<std::ptrdiff_t>(units);
    const auto sum_stride = static_cast<std::ptrdiff_t>(all_units);
    const auto row_stride = static_cast<std::ptrdiff_t>(chunk * all_units);
    const auto x_stride = static_cast<std::ptrdiff_t>(p.inputs);

    float* const state = scratch;                            // (count, units)
    float* const reset_state = state + p.count * units;      // (count, units)
    float* const sums = reset_state + p.count * units;       // (count, chunk, all_units)

    for (std::size_t i = 0; i < p.count; ++i) {
        for (std::size_t u = 0; u < units; ++u)
            state[i * units + u] = p.h0 != nullptr && u < p.hidden ? p.h0[p.rows[i] * p.hidden + u] : 0.0f;
        if (p.y != nullptr && p.lengths[i] < p.steps && p.hidden > 0)
            std::memset(p.y + (p.rows[i] * p.steps + p.lengths[i]) * p.hidden, 0,
                        (p.steps - p.lengths[i]) * p.hidden * sizeof(float));
    }

    const std::size_t longest = p.lengths[0];
    std::size_t active = p.count;  // rows are sorted: those still running come first
    for (std::size_t start = 0; start < longest; start += chunk) {
        const std::size_t stop = start + chunk < longest ? start + chunk : longest;
        for (std::size_t i = 0; i < p.count && p.lengths[i] > start; ++i) {
            const std::size_t length = p.lengths[i];
            const std::size_t count = (length < stop ? length : stop) - start;
            const auto first_step = static_cast<std::ptrdiff_t>(p.reverse ? length - 1 - start : start);
            const float* x = p.x + static_cast<std::ptrdiff_t>(p.rows[i]) * p.x_row + first_step * x_stride;
            multiply({x, p.reverse ? -x_stride : x_stride, false, count, p.w_x, p.bias, 0,
                      sums + i * chunk * all_units, sum_stride});
        }
        for (std::size_t step = start; step < stop; ++step) {
            while (p.lengths[active - 1] <= step) --active;
            float* const gate = sums + (step - start) * all_units;
            float* const candidate = gate + gate_units;
            multiply({state, state_stride, false, active, p.w_gates, gate, row_stride, gate, row_stride});
            for (std::size_t i = 0; i < active; ++i)
                reset(gate + i * chunk * all_units, state + i * units, reset_state + i * units, units, p.gates);
            multiply({reset_state, state_stride, false, active, p.w_candidate, candidate, row_stride, candidate,
                      row_stride});
            for (std::size_t i = 0; i < active; ++i) {
                update(gate + i * chunk * all_units, candidate + i * chunk * all_units, state + i * units, units);
                if (p.y == nullptr) continue;
                const std::size_t t = p.reverse ? p.lengths[i] - 1 - step : step;
                std::memcpy(p.y + (p.rows[i] * p.steps + t) * p.hidden, state + i * units,
                            p.hidden * sizeof(float));
            }
        }
    }
    if (p.hidden == 0) return;
    for (std::size_t i = 0; i < p.count; ++i)
        std::memcpy(p.h_n + p.rows[i] * p.hidden, state + i * units, p.hidden * sizeof(float));
}

}  // namespace
}  // namespace affectrt
