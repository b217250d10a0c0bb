// The whole fusion against its equations, for every subset of modalities.
#include <algorithm>

#include "dispatch.hpp"
#include "doubles.hpp"

namespace affectrt::tests {
namespace {

constexpr unsigned kSubsets[] = {7, 0, 1, 2, 3, 4, 5, 6, 7, 1};

struct Clip {
    Clip(const GhrnnCmaSizes& sizes, const std::array<std::size_t, kModalities>& of, Random& random)
        : rows(of), text(normals(rows[0] * sizes.dims[0], random)), audio(normals(rows[1] * sizes.dims[1], random)),
          vision(normals(rows[2] * sizes.dims[2], random)) {}

    std::array<FeatureRows, kModalities> features() const {
        return {FeatureRows{text.data(), rows[0]}, {audio.data(), rows[1]}, {vision.data(), rows[2]}};
    }
    const Floats& operator[](std::size_t m) const { return m == 0 ? text : m == 1 ? audio : vision; }

    std::array<std::size_t, kModalities> rows;
    Floats text, audio, vision;
};

struct Results {
    Results(std::size_t count, std::size_t emotions) : sentiment(count), logits(count * emotions) {}
    Floats sentiment, logits;
};

Verdict expected_verdict(const RandomWeights& weights, const Clip& clip, unsigned subset) {
    std::array<Doubles, kModalities> rows;
    for (std::size_t m = 0; m < kModalities; ++m) {
        rows[m] = null_slot(weights, m);
        if ((subset >> m & 1u) == 0 || clip.rows[m] == 0) continue;
        const Doubles projected = projection(weights, m, widened(clip[m]), weights.sizes().taps / 2);
        rows[m].insert(rows[m].end(), projected.begin(), projected.end());
    }
    const auto all = [](std::size_t, std::size_t) { return true; };
    const std::size_t steps = rows[0].size() / weights.sizes().model;
    const Doubles walked = states(weights, rows[0],
                                  {answered(weights, 0, rows[0], rows[1], all), answered(weights, 1, rows[0], rows[2], all)});
    return verdict(weights, walked, steps - 1, steps);
}

void test_subsets() {
    const GhrnnCmaSizes shapes[] = {{{7, 5, 4}, 8, 2, 8, 16, 3, 7},
                                    {{33, 1, 20}, 30, 3, 9, 5, 5, 1},
                                    {{12, 24, 40}, 132, 4, 100, 20, 3, 7},  // wider than a panel
                                    {{6, 3, 9}, 5, 5, 3, 2, 1, 2},
                                    {{384, 128, 128}, 64, 4, 64, 96, 3, 7}};
    const std::array<std::size_t, kModalities> clips[] = {{5, 70, 30}, {0, 9, 1}, {12, 0, 130}};
    std::size_t seed = 40;
    for (const GhrnnCmaSizes& sizes : shapes)
        for (const auto& rows : clips) {
            Random random(++seed);
            RandomWeights weights(sizes, seed);
            const Clip clip(sizes, rows, random);
            (void)GhrnnCma(sizes, weights.source(), *runnable_kernels().front());  // asks for all of them
            std::vector<Verdict> expected;
            for (const unsigned subset : kSubsets) expected.push_back(expected_verdict(weights, clip, subset));
            for (const Kernels* kernels : runnable_kernels()) {
                const Case here("ghrnn_cma", kernels->name, "model", sizes.model, "taps", sizes.taps, "rows",
                                clip.rows[0], clip.rows[1], clip.rows[2]);
                const GhrnnCma model(sizes, weights.source(), *kernels);
                const std::size_t count = std::size(kSubsets);
                Results results(count, sizes.emotions);
                model(clip.features(), kSubsets, count, results.sentiment.data(), results.logits.data());
                for (std::size_t r = 0; r < count; ++r) {
                    const Case subset("subset", kSubsets[r]);
                    expect_close(&results.sentiment[r], &expected[r].sentiment, 1, kFusionTolerance, "sentiment");
                    expect_close(results.logits.data() + r * sizes.emotions, expected[r].logits.data(), sizes.emotions,
                                 kFusionTolerance, "logits");
                    Results alone(1, sizes.emotions);
                    model(clip.features(), kSubsets + r, 1, alone.sentiment.data(), alone.logits.data());
                    expect_close(&alone.sentiment[0], &expected[r].sentiment, 1, kFusionTolerance, "sentiment alone");
                }
            }
        }
}

// A modality that doesn't count is not read; one that does, with what is no number, gives NaN or a number.
void test_no_numbers() {
    const GhrnnCmaSizes sizes{{7, 5, 4}, 8, 2, 8, 16, 3, 7};
    RandomWeights weights(sizes, 50);
    Random random(51);
    for (const Kernels* kernels : runnable_kernels()) {
        const GhrnnCma model(sizes, weights.source(), *kernels);
        Clip clip(sizes, {6, 20, 10}, random);
        for (const float value : {kNan, kInfinite, 3e38f, -1e30f}) {
            const Case here("ghrnn_cma", kernels->name, "with audio of", value);
            const std::size_t count = std::size(kSubsets);
            Results before(count, sizes.emotions), after(count, sizes.emotions);
            model(clip.features(), kSubsets, count, before.sentiment.data(), before.logits.data());
            const float kept = clip.audio[13];
            clip.audio[13] = value;
            model(clip.features(), kSubsets, count, after.sentiment.data(), after.logits.data());
            clip.audio[13] = kept;
            expect_defined(after.sentiment.data(), count, 3.0f, "sentiment");
            expect_defined(after.logits.data(), after.logits.size(), 1e3f, "logits");
            for (std::size_t r = 0; r < count; ++r)
                if ((kSubsets[r] & 2u) == 0)
                    expect_same(&after.sentiment[r], &before.sentiment[r], 1, "sentiment without audio");
            auto features = clip.features();
            features[1] = {nullptr, 20};  // no subset wants it
            const unsigned without[] = {5, 1, 0};
            model(features, without, 3, after.sentiment.data(), after.logits.data());
            const auto expected = static_cast<double>(before.sentiment[6]);
            expect_close(&after.sentiment[0], &expected, 1, kFusionTolerance, "sentiment of text and vision");
        }
    }
}

void test_no_size() {
    const GhrnnCmaSizes shapes[] = {{{3, 4, 5}, 8, 2, 0, 4, 3, 2}, {{3, 4, 5}, 8, 2, 4, 0, 3, 2},
                                    {{3, 4, 5}, 8, 2, 4, 4, 3, 0}, {{0, 0, 0}, 8, 1, 4, 4, 3, 2},
                                    {{3, 4, 5}, 0, 1, 4, 4, 3, 2}, {{0, 0, 0}, 0, 1, 0, 0, 1, 0}};
    Random random(52);
    for (const GhrnnCmaSizes& sizes : shapes)
        for (const Kernels* kernels : runnable_kernels()) {
            const Case here("ghrnn_cma", kernels->name, "dims", sizes.dims[0], "model", sizes.model, "hidden",
                            sizes.hidden, "fused", sizes.fused, "emotions", sizes.emotions);
            RandomWeights weights(sizes, 53);
            const GhrnnCma model(sizes, weights.source(), *kernels);
            for (const std::array<std::size_t, kModalities> rows :
                 {std::array<std::size_t, kModalities>{3, 12, 20}, {0, 0, 0}}) {
                const Clip clip(sizes, rows, random);
                const std::size_t count = std::size(kSubsets);
                Results results(count, sizes.emotions);
                model(clip.features(), kSubsets, count, results.sentiment.data(), results.logits.data());
                expect_defined(results.sentiment.data(), count, 3.0f, "sentiment");
                model(clip.features(), kSubsets, 0, nullptr, nullptr);
            }
        }
}

}  // namespace

void test_ghrnn_cma() {
    test_subsets();
    test_no_numbers();
    test_no_size();
}

}  // namespace affectrt::tests
