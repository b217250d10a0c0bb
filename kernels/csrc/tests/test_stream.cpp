// The stream, tick by tick, against the causal model computed over the whole clip at once.
#include <algorithm>

#include "dispatch.hpp"
#include "doubles.hpp"
#include "ghrnn_cma_stream.hpp"

namespace affectrt::tests {
namespace {

// Everything that happened to one person.
struct Session {
    std::vector<double> ticks_s;
    std::vector<std::vector<float>> text;  // of each tick; empty: no word ended
    std::array<std::vector<float>, kAnswers> values;
    std::array<std::vector<double>, kAnswers> times_s;
    std::array<std::vector<std::size_t>, kAnswers> rows;  // new ones at each tick
};

// Ticks at 8 Hz with a pause longer than the window, voice and face at rates of their own with a gap each. Times are
// exact in binary: rows lie on the very edge of a window.
Session random_session(const GhrnnCmaSizes& sizes, std::size_t ticks, Random& random) {
    Session session;
    double now = 0.25;
    std::array<double, kAnswers> next{1.0 / 64, 0.25};
    const double hop[kAnswers] = {1.0 / 64, 1.0 / 32};
    for (std::size_t tick = 0; tick < ticks; ++tick) {
        now += tick == ticks / 2 ? 2.5 : 0.125;
        session.ticks_s.push_back(now);
        session.text.emplace_back();
        if (tick % 3 == 1)
            for (std::size_t i = 0; i < sizes.dims[0]; ++i) session.text.back().push_back(random.normal());
        for (std::size_t which = 0; which < kAnswers; ++which) {
            std::size_t count = 0;
            const bool away = which == 0 ? tick >= 5 && tick < 25 : tick < 4;
            for (; next[which] <= now; next[which] += hop[which]) {
                if (away) continue;
                for (std::size_t i = 0; i < sizes.dims[1 + which]; ++i) session.values[which].push_back(random.normal());
                // Two rows may share a time.
                session.times_s[which].push_back(count % 5 == 4 ? session.times_s[which].back() : next[which]);
                ++count;
            }
            session.rows[which].push_back(count);
        }
    }
    return session;
}

std::vector<Verdict> offline(const RandomWeights& weights, const Session& session, const std::vector<float>& no_word,
                             double window_s) {
    const std::size_t taps = weights.sizes().taps, ticks = session.ticks_s.size();
    Doubles text;
    for (const std::vector<float>& row : session.text) {
        const Doubles wide = widened(row.empty() ? no_word.data() : row.data(), no_word.size());
        text.insert(text.end(), wide.begin(), wide.end());
    }
    const auto with_null = [&](std::size_t m, const Doubles& x) {
        Doubles rows = null_slot(weights, m);
        const Doubles projected = projection(weights, m, x, taps - 1);
        rows.insert(rows.end(), projected.begin(), projected.end());
        return rows;
    };
    const Doubles asking = with_null(0, text);
    std::array<Doubles, kAnswers> answers;
    for (std::size_t which = 0; which < kAnswers; ++which) {
        const Doubles values = widened(session.values[which].data(), session.values[which].size());
        answers[which] = answered(weights, which, asking, with_null(1 + which, values), [&](std::size_t i, std::size_t j) {
            if (j == 0) return true;
            if (i == 0) return false;
            const double tick = session.ticks_s[i - 1], time = session.times_s[which][j - 1];
            return tick - window_s < time && time <= tick;
        });
    }
    const Doubles walked = states(weights, asking, answers);
    std::vector<Verdict> verdicts;
    for (std::size_t tick = 0; tick < ticks; ++tick) verdicts.push_back(verdict(weights, walked, 1 + tick, 1 + ticks));
    return verdicts;
}

struct Answer {
    Answer(std::size_t emotions) : sentiment(1), logits(emotions) {}
    Floats sentiment, logits;
};

// Steps through a session; where allocations fail on the way, the same tick is tried again.
void compare(const GhrnnCma& model, const Session& session, const std::vector<float>& no_word, double window_s,
             const std::vector<Verdict>& expected, bool failing) {
    GhrnnCmaStream stream(model, no_word.data(), window_s);
    expect(stream.window_s() == window_s, "its window");
    const GhrnnCmaSizes& sizes = model.sizes();
    std::array<std::size_t, kAnswers> next{};
    std::size_t failed = 0;
    for (std::size_t tick = 0; tick < session.ticks_s.size(); ++tick) {
        const Case here("tick", tick);
        const double now = session.ticks_s[tick];
        std::array<TimedRows, kAnswers> rows{};
        std::array<std::vector<float>, kAnswers> values;  // of this tick alone, so that nothing else can be read
        for (std::size_t which = 0; which < kAnswers; ++which) {
            const std::size_t count = session.rows[which][tick], dim = sizes.dims[1 + which];
            const auto from = session.values[which].begin() + static_cast<std::ptrdiff_t>(next[which] * dim);
            values[which].assign(from, from + static_cast<std::ptrdiff_t>(count * dim));
            rows[which] = {values[which].data(), session.times_s[which].data() + next[which], count};
            next[which] += count;
        }
        const std::vector<float>& text = session.text[tick];
        const float* const said = text.empty() ? nullptr : text.data();
        Answer answer(sizes.emotions);
        for (std::size_t granted = 0; failing; ++granted) {
            try {
                const FailingAllocations none(granted);
                stream.step(now, said, rows, answer.sentiment.data(), answer.logits.data());
                break;
            } catch (const std::bad_alloc&) {
                ++failed;
                expect_equal(stream.ticks(), tick, "ticks after a failed one");
            }
        }
        if (!failing) stream.step(now, said, rows, answer.sentiment.data(), answer.logits.data());
        expect_close(answer.sentiment.data(), &expected[tick].sentiment, 1, kFusionTolerance, "sentiment");
        expect_close(answer.logits.data(), expected[tick].logits.data(), sizes.emotions, kFusionTolerance, "logits");
        expect(stream.last_tick_s() == now, "the time of the last tick");
        for (std::size_t which = 0; which < kAnswers; ++which)
            if (next[which] > 0)
                expect(stream.newest_s(which) == session.times_s[which][next[which] - 1], "the time of the newest row");
    }
    expect_equal(stream.ticks(), session.ticks_s.size(), "ticks");
    if (failing) expect(failed >= 3, "allocations that failed");
}

void test_sessions() {
    const GhrnnCmaSizes shapes[] = {{{7, 5, 4}, 8, 2, 8, 16, 3, 7},
                                    {{6, 9, 3}, 30, 3, 21, 5, 5, 2},
                                    {{6, 3, 9}, 5, 5, 3, 2, 1, 2},
                                    {{40, 30, 20}, 64, 4, 64, 96, 3, 7}};
    std::size_t seed = 60;
    for (const GhrnnCmaSizes& sizes : shapes) {
        Random random(++seed);
        RandomWeights weights(sizes, seed);
        (void)GhrnnCma(sizes, weights.source(), *runnable_kernels().front());
        const Session session = random_session(sizes, 70, random);
        std::vector<float> no_word(sizes.dims[0]);
        for (float& value : no_word) value = random.normal();
        for (const double window_s : {0.625, 2.0}) {
            const std::vector<Verdict> expected = offline(weights, session, no_word, window_s);
            for (const Kernels* kernels : runnable_kernels()) {
                const Case here("stream", kernels->name, "model", sizes.model, "taps", sizes.taps, "window", window_s);
                const GhrnnCma model(sizes, weights.source(), *kernels);
                compare(model, session, no_word, window_s, expected, false);
                if (sizes.model == 8) compare(model, session, no_word, window_s, expected, true);
            }
        }
    }
}

// Nobody ever heard or seen: the null slots answer.
void test_alone() {
    const GhrnnCmaSizes sizes{{4, 3, 2}, 8, 2, 8, 4, 3, 2};
    RandomWeights weights(sizes, 70);
    const std::vector<float> no_word{0.1f, -0.2f, 0.3f, 0.4f};
    for (const Kernels* kernels : runnable_kernels()) {
        const Case here("stream of no rows", kernels->name);
        const GhrnnCma model(sizes, weights.source(), *kernels);
        Session session;
        for (std::size_t tick = 0; tick < 5; ++tick) {
            session.ticks_s.push_back(0.1 * static_cast<double>(tick));
            session.text.emplace_back();
            for (auto& rows : session.rows) rows.push_back(0);
        }
        compare(model, session, no_word, 1.0, offline(weights, session, no_word, 1.0), false);
    }
}

}  // namespace

void test_stream() {
    test_sessions();
    test_alone();
}

}  // namespace affectrt::tests
