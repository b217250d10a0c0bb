// Attention of one query to a ring of keys, and the ring against a plain list of them.
#include <algorithm>
#include <deque>

#include "dispatch.hpp"
#include "doubles.hpp"
#include "ghrnn_cma_stream.hpp"

namespace affectrt::tests {
namespace {

struct Query {
    Query(std::size_t head_count, std::size_t width, Random& random)
        : heads(head_count), dim(width), q(normals(heads * dim, random)), null_k(normals(heads * dim, random)),
          null_v(normals(heads * dim, random)), out(heads * dim) {}

    RingAttention part() {
        RingAttention part{};
        part.q = q.data();
        part.heads = heads;
        part.dim = dim;
        part.null_k = null_k.data();
        part.null_v = null_v.data();
        part.out = out.data();
        return part;
    }

    // keys and values (count, heads · dim), oldest first.
    void compare(const Doubles& keys, const Doubles& values) {
        const std::size_t width = heads * dim;
        for (std::size_t head = 0; head < heads; ++head) {
            const auto taken = [&](const Floats& null, const Doubles& rows) {
                Doubles part = widened(null.data() + head * dim, null.size() == 0 ? 0 : dim);
                for (std::size_t at = head * dim; at < rows.size(); at += width)
                    for (std::size_t d = 0; d < dim; ++d) part.push_back(rows[at + d]);
                return part;
            };
            const Attended expected = attention(widened(q.data() + head * dim, dim), taken(null_k, keys),
                                                taken(null_v, values), dim, [](std::size_t, std::size_t) { return true; });
            expect_close(out.data() + head * dim, expected.out.data(), dim, kAttentionTolerance, "out");
        }
    }

    std::size_t heads, dim;
    Floats q, null_k, null_v, out;
};

// The kernel alone, at every turn of a ring. What lies in free slots is finite and counts for nothing.
void test_kernel(const Kernels& kernels) {
    Random random(30);
    const std::size_t lanes = kernels.lanes;
    for (const std::size_t dim : Sizes{1, 2, 3, 4, 5, 7, 8, 16, 33, 64})
        for (const std::size_t slots : Sizes{std::size_t{0}, lanes, 3 * lanes, 9 * lanes})
            for (std::size_t turn = 0; turn < 8; ++turn) {
                const std::size_t heads = 1 + random.below(4), width = heads * dim;
                const std::size_t first = slots == 0 ? 0 : random.below(slots);
                const std::size_t count = turn == 0 ? slots : turn == 1 ? 0 : random.below(slots + 1);
                const Case here("attend_ring", kernels.name, "heads", heads, "dim", dim, "slots", slots, "first", first,
                                "count", count);
                Floats k(slots * width, [&] { return 50.0f * random.normal(); });
                Floats v(slots * width, [&] { return 50.0f * random.normal(); });
                Doubles keys, values;
                for (std::size_t i = 0; i < count; ++i)
                    for (std::size_t u = 0; u < width; ++u) {
                        const std::size_t slot = (first + i) % slots;
                        const std::size_t at = (slot / lanes * width + u) * lanes + slot % lanes;
                        k[at] = random.normal();
                        v[at] = random.normal();
                        keys.push_back(static_cast<double>(k[at]));
                        values.push_back(static_cast<double>(v[at]));
                    }
                Query query(heads, dim, random);
                RingAttention part = query.part();
                part.k = k.data();
                part.v = v.data();
                part.slots = slots;
                part.first = first;
                part.count = count;
                Floats scratch(attend_ring_scratch(slots));
                kernels.attend_ring(part, scratch.data());
                query.compare(keys, values);
            }
}

// Keys come in and expire for a while, now a few, now many: the ring turns and grows.
void test_ring_of(const Kernels& kernels) {
    const Case here("Ring", kernels.name);
    Random random(31);
    const std::size_t heads = 2, dim = 5, width = heads * dim;
    struct Entry {
        double time_s;
        std::vector<float> key_value;
    };
    Ring ring(width, kernels);
    std::deque<Entry> list;
    std::size_t grown = 0, turned = 0, emptied = 0, pushed = 0;
    double now = 0.0;
    for (std::size_t step = 0; step < 300; ++step) {
        now += 0.125;  // exact, so that keys lie on the window's edge
        const double window = step % 60 < 40 ? 1.0 : 0.25;
        while (!list.empty() && list.front().time_s <= now - window) list.pop_front();
        ring.expire(now - window);
        if (list.empty()) ++emptied;
        std::size_t fresh = step % 50 < 10 ? 0 : random.below(8);
        if (step == 120 || step == 240) fresh = 70 + step / 4;
        const std::size_t slots = ring.slots();
        ring.reserve(fresh);
        if (ring.slots() != slots) {
            ++grown;
            expect(ring.slots() >= 2 * slots, "twice the slots, so that growing costs little for each key");
        }
        for (std::size_t i = 0; i < fresh; ++i) {
            Entry entry{now - (i + 1 < fresh ? 0.0625 : 0.0), {}};
            for (std::size_t u = 0; u < 2 * width; ++u) entry.key_value.push_back(random.normal());
            ring.push(entry.key_value.data(), entry.time_s);
            list.push_back(entry);
            ++pushed;
        }
        expect_equal(ring.count(), list.size(), "count");
        expect(ring.count() <= ring.slots() && ring.slots() % kernels.lanes == 0, "whole vectors of slots");
        expect(ring.empty() == list.empty(), "empty when nothing is left");
        if (!list.empty()) expect(ring.newest_s() == list.back().time_s, "the newest time");

        Doubles keys, values;
        for (const Entry& entry : list) {
            const auto middle = entry.key_value.begin() + static_cast<std::ptrdiff_t>(width);
            keys.insert(keys.end(), entry.key_value.begin(), middle);
            values.insert(values.end(), middle, entry.key_value.end());
        }
        Query query(heads, dim, random);
        Floats scratch(attend_ring_scratch(ring.slots()));
        ring.attend(query.part(), scratch.data());
        query.compare(keys, values);
    }
    turned = pushed / ring.slots();
    expect(grown >= 3 && turned >= 3 && emptied >= 3, "a ring that grew, turned and ran empty, each three times");
}

}  // namespace

void test_ring() {
    for (const Kernels* kernels : runnable_kernels()) {
        test_kernel(*kernels);
        test_ring_of(*kernels);
    }
}

}  // namespace affectrt::tests
