// Compiled once per instruction set, with AFFECTRT_KERNELS naming the table it defines. Uses no inline code of the
// standard library: the linker would keep one copy of it, perhaps one this machine cannot run.
#include "gated_rnn.hpp"
#include "simd.hpp"

namespace affectrt {
namespace {

// c[m] += a[m] · w for `Rows` rows and `Vectors` vectors of outputs, all held in registers.
template <std::size_t Rows, std::size_t Vectors>
inline void tile(const float* a, std::ptrdiff_t a_stride, const float* w, std::size_t depth, float* c,
                 std::ptrdiff_t c_stride) {
    const float* a_row[Rows];
    float* c_row[Rows];
    Lanes sum[Rows][Vectors];
    for (std::size_t m = 0; m < Rows; ++m) {
        a_row[m] = a + static_cast<std::ptrdiff_t>(m) * a_stride;
        c_row[m] = c + static_cast<std::ptrdiff_t>(m) * c_stride;
        for (std::size_t v = 0; v < Vectors; ++v) sum[m][v] = load(c_row[m] + v * kLanes);
    }
    for (std::size_t k = 0; k < depth; ++k) {
        for (std::size_t v = 0; v < Vectors; ++v) {
            const Lanes column = load(w + (v * depth + k) * kLanes);
            for (std::size_t m = 0; m < Rows; ++m) sum[m][v] += a_row[m][k] * column;
        }
    }
    for (std::size_t m = 0; m < Rows; ++m)
        for (std::size_t v = 0; v < Vectors; ++v) store(c_row[m] + v * kLanes, sum[m][v]);
}

template <std::size_t Rows, std::size_t Vectors>
inline std::size_t tiles(std::size_t from, std::size_t vectors, const float* a, std::ptrdiff_t a_stride,
                         const float* w, std::size_t depth, float* c, std::ptrdiff_t c_stride) {
    for (; from + Vectors <= vectors; from += Vectors)
        tile<Rows, Vectors>(a, a_stride, w + from * depth * kLanes, depth, c + from * kLanes, c_stride);
    return from;
}

// c (rows, vectors·kLanes) += a (rows, depth) · w; eight sums in flight whatever the shape, to hide latency.
void multiply_add(const float* a, std::ptrdiff_t a_stride, std::size_t rows, const float* w, std::size_t depth,
                  std::size_t vectors, float* c, std::ptrdiff_t c_stride) {
    for (; rows >= 4; rows -= 4, a += 4 * a_stride, c += 4 * c_stride) {
        std::size_t done = tiles<4, 2>(0, vectors, a, a_stride, w, depth, c, c_stride);
        tiles<4, 1>(done, vectors, a, a_stride, w, depth, c, c_stride);
    }
    for (; rows > 0; --rows, a += a_stride, c += c_stride) {
        std::size_t done = tiles<1, 8>(0, vectors, a, a_stride, w, depth, c, c_stride);
        done = tiles<1, 4>(done, vectors, a, a_stride, w, depth, c, c_stride);
        tiles<1, 1>(done, vectors, a, a_stride, w, depth, c, c_stride);
    }
}

// (blocks·hidden, depth) row-major → for each vector of outputs, for each input, kLanes weights; padding is 0.
void pack_matrix(const float* w, std::size_t blocks, std::size_t hidden, std::size_t depth, float* packed) {
    for (std::size_t block = 0; block < blocks; ++block) {
        for (std::size_t first = 0; first < hidden; first += kLanes) {
            for (std::size_t k = 0; k < depth; ++k) {
                for (std::size_t lane = 0; lane < kLanes; ++lane) {
                    const std::size_t unit = first + lane;
                    *packed++ = unit < hidden ? w[(block * hidden + unit) * depth + k] : 0.0f;
                }
            }
        }
    }
}

void pack(const GatedRnn& p, std::size_t stream, float* w_x, float* w_h, float* bias) {
    const std::size_t blocks = p.gates + 1;
    pack_matrix(p.w_x + stream * blocks * p.hidden * p.inputs, blocks, p.hidden, p.inputs, w_x);
    pack_matrix(p.w_h + stream * blocks * p.hidden * p.hidden, blocks, p.hidden, p.hidden, w_h);
    pack_matrix(p.bias + stream * blocks * p.hidden, blocks, p.hidden, 1, bias);
}

// One row's new state from its pre-activations: `gate` and `candidate` are overwritten by the caller's GEMMs.
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

void run(const GatedRnn& p, const PackedStream& packed, const RowBlock& block, float* scratch) {
    const std::size_t units = padded(p.hidden, kLanes);
    const std::size_t gate_units = p.gates * units;
    const std::size_t all_units = gate_units + units;
    const std::size_t chunk = steps_together(block.count);
    const auto state_stride = static_cast<std::ptrdiff_t>(units);
    const auto row_stride = static_cast<std::ptrdiff_t>(chunk * all_units);

    float* const state = scratch;                          // (rows, units)
    float* const reset_state = state + block.count * units;  // (rows, units)
    float* const sums = reset_state + block.count * units;   // (rows, chunk, all_units)

    for (std::size_t i = 0; i < block.count; ++i) {
        const std::size_t row = block.stream * p.batch + block.rows[i];
        for (std::size_t u = 0; u < units; ++u)
            state[i * units + u] = p.h0 != nullptr && u < p.hidden ? p.h0[row * p.hidden + u] : 0.0f;
        const std::size_t length = p.length(block.rows[i]);
        if (length < p.steps && p.hidden > 0)
            std::memset(p.y + (row * p.steps + length) * p.hidden, 0,
                        (p.steps - length) * p.hidden * sizeof(float));
    }

    const std::size_t longest = p.length(block.rows[0]);
    std::size_t active = block.count;  // rows are sorted: those still running come first
    for (std::size_t start = 0; start < longest; start += chunk) {
        const std::size_t stop = start + chunk < longest ? start + chunk : longest;
        for (std::size_t i = 0; i < block.count; ++i) {
            const std::size_t length = p.length(block.rows[i]);
            if (length <= start) break;
            const std::size_t count = (length < stop ? length : stop) - start;
            const std::size_t first_step = p.reverse ? length - 1 - start : start;
            const float* x =
                p.x + ((block.stream * p.batch + block.rows[i]) * p.steps + first_step) * p.inputs;
            const auto x_stride = static_cast<std::ptrdiff_t>(p.inputs);
            float* const sum = sums + i * chunk * all_units;
            for (std::size_t k = 0; k < count; ++k)
                std::memcpy(sum + k * all_units, packed.bias, all_units * sizeof(float));
            multiply_add(x, p.reverse ? -x_stride : x_stride, count, packed.w_x, p.inputs, all_units / kLanes, sum,
                         static_cast<std::ptrdiff_t>(all_units));
        }
        for (std::size_t step = start; step < stop; ++step) {
            while (p.length(block.rows[active - 1]) <= step) --active;
            float* const sum = sums + (step - start) * all_units;
            multiply_add(state, state_stride, active, packed.w_h, p.hidden, gate_units / kLanes, sum, row_stride);
            for (std::size_t i = 0; i < active; ++i)
                reset(sum + i * chunk * all_units, state + i * units, reset_state + i * units, units, p.gates);
            multiply_add(reset_state, state_stride, active, packed.w_h + gate_units * p.hidden, p.hidden,
                         units / kLanes, sum + gate_units, row_stride);
            for (std::size_t i = 0; i < active; ++i) {
                const float* z = sum + i * chunk * all_units;
                update(z, z + gate_units, state + i * units, units);
                const std::size_t row = block.rows[i];
                const std::size_t t = p.reverse ? p.length(row) - 1 - step : step;
                std::memcpy(p.y + ((block.stream * p.batch + row) * p.steps + t) * p.hidden, state + i * units,
                            p.hidden * sizeof(float));
            }
        }
    }
    for (std::size_t i = 0; i < block.count; ++i)
        if (p.hidden > 0)
            std::memcpy(p.h_n + (block.stream * p.batch + block.rows[i]) * p.hidden, state + i * units,
                        p.hidden * sizeof(float));
}

}  // namespace

extern const GatedRnnKernels AFFECTRT_KERNELS;
const GatedRnnKernels AFFECTRT_KERNELS{AFFECTRT_KERNELS_NAME, kLanes, pack, run};

}  // namespace affectrt
