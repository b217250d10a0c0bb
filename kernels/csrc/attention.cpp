#include "attention.hpp"

#include <algorithm>
#include <limits>

#include "memory.hpp"
#include "threads.hpp"

namespace affectrt {

void pairwise_attention(const Pair* pairs, std::size_t count, std::size_t batch, std::size_t heads, std::size_t dim,
                        const Kernels& kernels, std::size_t threads) {
    const std::size_t tasks = count * batch * heads;
    const std::size_t workers = std::max<std::size_t>(1, std::min(threads, tasks));
    const std::size_t each = Pieces::rounded(attend_scratch(kernels.panel, dim));
    float* const scratch = thread_scratch(workers * each);
    const auto width = static_cast<std::ptrdiff_t>(heads * dim);

    share(tasks, workers, [&](std::size_t task, std::size_t worker) {
        const Pair& pair = pairs[task / (batch * heads)];
        const std::size_t b = task / heads % batch, head = task % heads;
        const auto row = static_cast<std::ptrdiff_t>(b);
        const auto at = static_cast<std::ptrdiff_t>(head * dim);
        const auto valid = [b](const std::int64_t* lengths, std::size_t all) {
            return lengths == nullptr ? all : 1 + static_cast<std::size_t>(lengths[b]);
        };
        const std::size_t queries = valid(pair.query_lengths, pair.queries);
        float* const out = pair.out + (b * pair.queries) * heads * dim + head * dim;
        float* const log_sums =
            pair.log_sums == nullptr ? nullptr : pair.log_sums + (b * heads + head) * pair.queries;

        Attention part{};
        part.q_stride = pair.q.row_stride;
        part.k = pair.k.data + row * pair.k.batch_stride + at;
        part.k_stride = pair.k.row_stride;
        part.v = pair.v.data + row * pair.v.batch_stride + at;
        part.v_stride = pair.v.row_stride;
        part.keys = valid(pair.key_lengths, pair.keys);
        part.dim = dim;
        part.out_stride = width;
        for (std::size_t first = 0; first < queries; first += kernels.panel) {
            const auto skip = static_cast<std::ptrdiff_t>(first);
            part.q = pair.q.data + row * pair.q.batch_stride + at + skip * pair.q.row_stride;
            part.queries = std::min(kernels.panel, queries - first);
            part.windows =
                pair.windows == nullptr ? nullptr : pair.windows + 2 * (b * pair.queries + first);
            part.out = out + skip * width;
            part.log_sum = log_sums == nullptr ? nullptr : log_sums + first;
            kernels.attend(part, scratch + worker * each);
        }
        for (std::size_t i = queries; i < pair.queries; ++i) {
            std::fill_n(out + static_cast<std::ptrdiff_t>(i) * width, dim, 0.0f);
            if (log_sums != nullptr) log_sums[i] = std::numeric_limits<float>::infinity();
        }
    });
}

}  // namespace affectrt
