#include "doubles.hpp"

#include <algorithm>
#include <cmath>

namespace affectrt::tests {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double dot(const double* a, const double* b, std::size_t count) {
    double sum = 0.0;
    for (std::size_t i = 0; i < count; ++i) sum += a[i] * b[i];
    return sum;
}

const char* const kNames[kModalities] = {"text", "audio", "vision"};
const char* const kAnswerNames[kAnswers] = {"text_to_audio", "text_to_vision"};

}  // namespace

Doubles linear(const Doubles& x, std::size_t depth, const float* w, const float* bias, std::size_t outputs) {
    const std::size_t rows = depth == 0 ? 1 : x.size() / depth;
    Doubles y(rows * outputs);
    for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t o = 0; o < outputs; ++o) {
            double sum = bias == nullptr ? 0.0 : static_cast<double>(bias[o]);
            for (std::size_t k = 0; k < depth; ++k) sum += x[row * depth + k] * static_cast<double>(w[o * depth + k]);
            y[row * outputs + o] = sum;
        }
    return y;
}

Doubles layer_norm(const Doubles& x, std::size_t dim, const float* scale, const float* shift) {
    Doubles y(x.size());
    const auto count = static_cast<double>(dim);
    for (std::size_t at = 0; at < x.size(); at += dim) {
        double mean = 0.0, variance = 0.0;
        for (std::size_t i = 0; i < dim; ++i) mean += x[at + i] / count;
        for (std::size_t i = 0; i < dim; ++i) variance += (x[at + i] - mean) * (x[at + i] - mean) / count;
        for (std::size_t i = 0; i < dim; ++i)
            y[at + i] = (x[at + i] - mean) / std::sqrt(variance + 1e-5) * static_cast<double>(scale[i]) +
                        static_cast<double>(shift[i]);
    }
    return y;
}

Doubles convolution(const Doubles& x, std::size_t dim, const float* w, const float* bias, std::size_t width,
                    std::size_t taps, std::size_t before) {
    const std::size_t steps = x.size() / dim;
    Doubles y(steps * width);
    for (std::size_t t = 0; t < steps; ++t)
        for (std::size_t o = 0; o < width; ++o) {
            double sum = static_cast<double>(bias[o]);
            for (std::size_t tap = 0; tap < taps; ++tap) {
                if (t + tap < before || t + tap - before >= steps) continue;
                for (std::size_t i = 0; i < dim; ++i)
                    sum += x[(t + tap - before) * dim + i] * static_cast<double>(w[(o * dim + i) * taps + tap]);
            }
            y[t * width + o] = sum;
        }
    return y;
}

States gated_rnn(const GatedRnnWeights& weights, const GatedRnnCall& call, const Doubles& x) {
    const std::size_t hidden = weights.hidden, gates = weights.gates, inputs = weights.inputs;
    const std::size_t outputs = (gates + 1) * hidden;
    States states{Doubles(weights.streams * call.batch * call.steps * hidden), {}};
    for (std::size_t s = 0; s < weights.streams; ++s) {
        const Doubles w_x = widened(weights.w_x + s * outputs * inputs, outputs * inputs);
        const Doubles w_h = widened(weights.w_h + s * outputs * hidden, outputs * hidden);
        const Doubles bias = widened(weights.bias + s * outputs, outputs);
        for (std::size_t b = 0; b < call.batch; ++b) {
            const std::size_t row = s * call.batch + b;
            const std::size_t length = call.lengths == nullptr ? call.steps : static_cast<std::size_t>(call.lengths[b]);
            Doubles h = call.h0 == nullptr ? Doubles(hidden) : widened(call.h0 + row * hidden, hidden);
            for (std::size_t step = 0; step < length; ++step) {
                const std::size_t at = row * call.steps + (call.reverse ? length - 1 - step : step);
                // W_x x + W_h state + b, one row of it.
                const auto sum = [&](std::size_t output, const Doubles& state) {
                    return dot(w_x.data() + output * inputs, x.data() + at * inputs, inputs) +
                           dot(w_h.data() + output * hidden, state.data(), hidden) + bias[output];
                };
                Doubles gate(gates * hidden), reset(hidden);
                for (std::size_t u = 0; u < gates * hidden; ++u) gate[u] = sigmoid(sum(u, h));
                for (std::size_t u = 0; u < hidden; ++u) reset[u] = gate[(gates - 1) * hidden + u] * h[u];
                for (std::size_t u = 0; u < hidden; ++u)
                    h[u] = (1.0 - gate[u]) * h[u] + gate[u] * std::tanh(sum(gates * hidden + u, reset));
                std::copy(h.begin(), h.end(), states.y.begin() + static_cast<std::ptrdiff_t>(at * hidden));
            }
            states.h_n.insert(states.h_n.end(), h.begin(), h.end());
        }
    }
    return states;
}

Attended attention(const Doubles& q, const Doubles& k, const Doubles& v, std::size_t dim,
                   const std::function<bool(std::size_t, std::size_t)>& sees) {
    const std::size_t queries = q.size() / dim, keys = k.size() / dim;
    Attended result{Doubles(queries * dim), Doubles(queries)};
    for (std::size_t i = 0; i < queries; ++i) {
        Doubles scores(keys, -HUGE_VAL);
        for (std::size_t j = 0; j < keys; ++j) {
            if (!sees(i, j)) continue;
            double score = 0.0;
            for (std::size_t d = 0; d < dim; ++d) score += q[i * dim + d] * k[j * dim + d];
            scores[j] = score / std::sqrt(static_cast<double>(dim));
        }
        const double top = *std::max_element(scores.begin(), scores.end());
        double sum = 0.0;
        for (const double score : scores) sum += std::exp(score - top);
        for (std::size_t j = 0; j < keys; ++j) {
            if (!sees(i, j)) continue;
            for (std::size_t d = 0; d < dim; ++d)
                result.out[i * dim + d] += std::exp(scores[j] - top) / sum * v[j * dim + d];
        }
        result.log_sums[i] = top + std::log(sum);
    }
    return result;
}

Weights RandomWeights::source() {
    return [this](const std::string& name, const std::vector<std::size_t>& shape) -> const float* {
        std::size_t size = 1;
        for (const std::size_t part : shape) size *= part;
        const bool norm = name.find("norm") != std::string::npos && name.find(".weight") != std::string::npos;
        const bool convolution = name.find(".conv.weight") != std::string::npos;
        const float scale = shape.size() == 1 ? 0.3f : share_of(shape.back() * (convolution ? shape[1] : 1));
        const auto [entry, fresh] = found_.try_emplace(name, size);
        if (fresh)
            for (float& value : entry->second) value = (norm ? 1.0f : 0.0f) + scale * random_.normal();
        return entry->second.data();
    };
}

Doubles projection(const RandomWeights& weights, std::size_t modality, const Doubles& x, std::size_t before) {
    const GhrnnCmaSizes& sizes = weights.sizes();
    const std::string name = kNames[modality];
    const std::size_t dim = sizes.dims[modality];
    const Doubles normed = layer_norm(x, dim, weights[name + ".norm.weight"], weights[name + ".norm.bias"]);
    return convolution(normed, dim, weights[name + ".conv.weight"], weights[name + ".conv.bias"], sizes.model,
                       sizes.taps, before);
}

Doubles null_slot(const RandomWeights& weights, std::size_t modality) {
    return widened(weights[std::string(kNames[modality]) + ".null"], weights.sizes().model);
}

Doubles answered(const RandomWeights& weights, std::size_t which, const Doubles& text, const Doubles& rows,
                 const std::function<bool(std::size_t, std::size_t)>& sees) {
    const std::size_t d = weights.sizes().model, heads = weights.sizes().heads, dim = d / heads;
    const std::string name = kAnswerNames[which];
    const Doubles q = linear(text, d, weights[name + ".query.weight"], weights[name + ".query.bias"], d);
    const float* const w = weights[name + ".key_value.weight"];
    const float* const bias = weights[name + ".key_value.bias"];
    const Doubles k = linear(rows, d, w, bias, d), v = linear(rows, d, w + d * d, bias + d, d);
    Doubles joined(text.size());
    const auto part = [&](const Doubles& x, std::size_t head) {
        Doubles taken;
        for (std::size_t at = head * dim; at < x.size(); at += d)
            for (std::size_t i = 0; i < dim; ++i) taken.push_back(x[at + i]);
        return taken;
    };
    for (std::size_t head = 0; head < heads; ++head) {
        const Attended attended = attention(part(q, head), part(k, head), part(v, head), dim, sees);
        for (std::size_t i = 0; i < attended.out.size(); ++i)
            joined[i / dim * d + head * dim + i % dim] = attended.out[i];
    }
    const std::string norm = "norms." + std::to_string(1 + which);
    return layer_norm(linear(joined, d, weights[name + ".out.weight"], weights[name + ".out.bias"], d), d,
                      weights[norm + ".weight"], weights[norm + ".bias"]);
}

Doubles states(const RandomWeights& weights, const Doubles& text, const std::array<Doubles, kAnswers>& answers) {
    const GhrnnCmaSizes& sizes = weights.sizes();
    const std::size_t d = sizes.model, steps = text.size() / d;
    const Doubles normed = layer_norm(text, d, weights["norms.0.weight"], weights["norms.0.bias"]);
    const Doubles* const sides[kStreams][2] = {
        {&normed, &answers[0]}, {&normed, &answers[1]}, {&answers[0], &answers[1]}};  // eq. 9
    Doubles x;
    for (const auto& side : sides)
        for (std::size_t t = 0; t < steps; ++t)
            for (const Doubles* const rows : side)
                for (std::size_t i = 0; i < d; ++i) x.push_back((*rows)[t * d + i]);
    GatedRnnCall call{};
    call.batch = 1;
    call.steps = steps;
    return gated_rnn({kStreams, 2 * d, sizes.hidden, 1, weights["w_x"], weights["w_h"], weights["bias"]}, call, x).y;
}

Verdict verdict(const RandomWeights& weights, const Doubles& all, std::size_t t, std::size_t steps) {
    const GhrnnCmaSizes& sizes = weights.sizes();
    const std::size_t h = sizes.hidden;
    Doubles joined;
    for (std::size_t s = 0; s < kStreams; ++s)
        for (std::size_t u = 0; u < h; ++u) joined.push_back(all[(s * steps + t) * h + u]);
    Doubles fused = linear(joined, kStreams * h, weights["fused.weight"], weights["fused.bias"], sizes.fused);
    for (double& value : fused) value = std::max(value, 0.0);
    const double sentiment =
        linear(fused, sizes.fused, weights["sentiment.weight"], weights["sentiment.bias"], 1)[0];
    return {std::min(3.0, std::max(-3.0, sentiment)),
            linear(fused, sizes.fused, weights["emotion.weight"], weights["emotion.bias"], sizes.emotions)};
}

}  // namespace affectrt::tests
