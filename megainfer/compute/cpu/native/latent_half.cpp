#include "latent_half.h"

#include <algorithm>
#include <cstring>

#include "phases.h"

namespace {

constexpr int max_tile = 32 * 32;  // floats: rows of a group times a panel's width, in any level
constexpr int most_group_rows = 32;
constexpr int64_t slab_rows = 64;

// Query rows, a head's of a token each, that go through a sequence's tiles together: enough to pay
// for bringing a tile into shape, few enough to keep what is known of them in the cache beside it.
constexpr int64_t job_rows = 64;

int64_t block_bytes(const LatentLayer& layer, const LayerCache& cache) {
  const int64_t scales = has_scales(cache.type) ? latent_scales(layer.rank) * sizeof(uint16_t) : 0;
  return cache_block_tokens * ((layer.rank + layer.rope) * element_bytes(cache.type) + scales);
}

}  // namespace

template <class Work>
void LatentHalf::add_phase(int64_t count, Work work) {
  phases_.push_back(phase_of(count, pool_.threads(), work));
}

void LatentHalf::run() {
  pool_.run(phases_);
  phases_.clear();
}

void LatentHalf::attend(const LatentLayer& layer, const StepRows& step, const LayerCache& cache,
                        float* x) {
  const int64_t rows = step.rows, hidden = layer.out.outputs;
  project(layer, x, rows);
  finish_rows(layer, step, cache);
  context_ = context_scratch_.of<float>(rows * layer.heads * layer.value);
  const int64_t slabs = ceil_div(rows, slab_rows);
  for (int64_t s = 0; s < slabs; ++s) {
    const int64_t first = share(rows, s, slabs);
    attend_slab(layer, step, cache, {first, share(rows, s + 1, slabs) - first});
  }
  float* out = out_scratch_.of<float>(rows * hidden);
  half_.linear(layer.out, context_, rows, out);
  add_phase(rows, [=, this, &layer](int64_t r) {
    half_.level().add_scaled(out + r * hidden, layer.residual, x + r * hidden, hidden);
  });
  run();
}

// Queries [T, heads * (nope + rope)], latents with their keys [T, rank + rope], neither finished.
void LatentHalf::project(const LatentLayer& layer, const float* x, int64_t rows) {
  const int64_t hidden = layer.kv_down.inputs, q_rank = layer.q.inputs;
  normed_ = normed_scratch_.of<float>(rows * hidden);
  q_ = q_scratch_.of<float>(rows * layer.q.outputs);
  latent_ = latent_scratch_.of<float>(rows * layer.kv_down.outputs);
  half_.norm({layer.norm, nullptr, layer.eps, NormKind::rms}, x, rows, hidden, normed_);
  half_.linear(layer.kv_down, normed_, rows, latent_);
  const float* from = normed_;
  if (layer.q_down.panels != nullptr) {
    float* latent = q_latent_scratch_.of<float>(rows * q_rank);
    half_.linear(layer.q_down, normed_, rows, latent);
    const Norm norm = {layer.q_norm, nullptr, layer.latent_eps, NormKind::rms};
    half_.norm(norm, latent, rows, q_rank, latent);
    from = latent;
  }
  half_.linear(layer.q, from, rows, q_);
}

// Norms, rotation, and the cache.
void LatentHalf::finish_rows(const LatentLayer& layer, const StepRows& step,
                             const LayerCache& cache) {
  const int64_t width = layer.rank + layer.rope, head = layer.nope + layer.rope;
  const int64_t size = block_bytes(layer, cache);
  add_phase(step.rows, [=, this, &layer, &step, &cache](int64_t r) {
    const Level& level = half_.level();
    const float* cos = layer.rotary + step.positions[r] * 2 * layer.rope;
    const auto rotate = [&](float* at) {
      level.rows.rotate(at, cos, cos + layer.rope, layer.rope);
    };
    float *latent = latent_ + r * width, *queries = q_ + r * layer.heads * head;
    level.rows.rms_norm(latent, layer.kv_norm, layer.latent_eps, layer.rank, latent);
    rotate(latent + layer.rank);
    for (int64_t h = 0; h < layer.heads; ++h) rotate(queries + h * head + layer.nope);
    const int64_t block = step.slots[r] / cache_block_tokens;
    level.rows.write_latent[static_cast<int>(cache.type)](
        latent, layer.rank, width, step.slots[r] % cache_block_tokens, cache.data + block * size);
  });
  run();
}

void LatentHalf::attend_slab(const LatentLayer& layer, const StepRows& step,
                             const LayerCache& cache, const Slab& slab) {
  const int64_t heads = layer.heads, width = layer.rank + layer.rope;
  const int64_t head = layer.nope + layer.rope, rank = layer.rank, value = layer.value;
  queries_ = queries_scratch_.of<float>(slab.count * heads * width);
  found_ = found_scratch_.of<float>(slab.count * heads * rank);
  const float* q = q_ + slab.first * heads * head;
  float *queries = queries_, *found = found_, *context = context_ + slab.first * heads * value;
  multiply(
      layer.key_up, heads, slab.count,
      [=](int64_t r, int64_t h) { return q + (r * heads + h) * head; },
      [=](int64_t r, int64_t h) { return queries + (r * heads + h) * width; });
  add_phase(slab.count * heads, [=, &layer](int64_t i) {
    std::memcpy(queries + i * width + rank, q + i * head + layer.nope, layer.rope * sizeof(float));
  });
  list_jobs(layer, step, cache, slab);
  add_jobs(cache.type);
  run();
  multiply(
      layer.value_up, heads, slab.count,
      [=](int64_t r, int64_t h) { return found + (r * heads + h) * rank; },
      [=](int64_t r, int64_t h) { return context + (r * heads + h) * value; });
  run();
}

// Phases that write each row's product with each head's matrix.
template <class Read, class Write>
void LatentHalf::multiply(const HeadsLinear& linear, int64_t heads, int64_t rows, Read read,
                          Write write) {
  const Level& level = half_.level();
  const Product& product = level.products[static_cast<int>(linear.format)];
  const int64_t k = linear.inputs, row_words = product.row_words(k), width = level.panel_width;
  const int64_t groups = ceil_div(rows, product.max_rows), panels = ceil_div(linear.outputs, width);
  auto* words = words_scratch_.of<uint32_t>(heads * rows * row_words);
  add_phase(heads * groups, [=, &product](int64_t i) {
    const int64_t h = i / groups, g = i % groups;
    const int64_t first = share(rows, g, groups), end = share(rows, g + 1, groups);
    const float* from[most_group_rows];
    for (int64_t r = first; r < end; ++r) from[r - first] = read(r, h);
    product.pack_rows(from, static_cast<int>(end - first), k,
                      words + (h * rows + first) * row_words);
  });
  add_phase(heads * panels * groups, [=, &linear, &product](int64_t i) {
    const int64_t panel = i / groups, h = panel / panels, g = i % groups;
    const int64_t first = share(rows, g, groups), count = share(rows, g + 1, groups) - first;
    const int64_t column = panel % panels * width;
    alignas(64) float tile[max_tile];
    product.multiply(linear.panels + panel * product.panel_bytes(k),
                     words + (h * rows + first) * row_words, static_cast<int>(count), k, tile);
    const int64_t valid = std::min<int64_t>(width, linear.outputs - column);
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(write(first + r, h) + column, tile + r * width, valid * sizeof(float));
    }
  });
}

// A job is all heads of a token, or of a few that follow each other in a sequence, since all read
// the same rows of the cache; some of the heads where they are many, or of a single token where
// there are too few jobs for the threads.
void LatentHalf::list_jobs(const LatentLayer& layer, const StepRows& step, const LayerCache& cache,
                           const Slab& slab) {
  const int64_t width = layer.rank + layer.rope, heads = layer.heads, threads = pool_.threads();
  const bool few = step.sequences < 2 * threads && threads > 1;
  const int64_t head_parts = ceil_div(heads, job_rows);
  const int64_t single_parts = std::max(head_parts, few ? std::min(heads, threads) : 1);
  jobs_.clear();
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int64_t begin = std::max(step.row_starts[s], slab.first);
    const int64_t end = std::min(step.row_starts[s + 1], slab.first + slab.count);
    const int64_t parts = ceil_div(end - begin, std::max(int64_t{1}, job_rows / heads));
    const int64_t cuts = end - begin == 1 ? single_parts : head_parts;
    // The longest first, so that threads end together.
    for (int64_t part = parts; part-- > 0;) {
      const int64_t first = begin + share(end - begin, part, parts);
      const int64_t last = begin + share(end - begin, part + 1, parts);
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const int64_t head = share(heads, cut, cuts), row = (first - slab.first) * heads + head;
        jobs_.push_back({
            .queries = queries_ + row * width,
            .query_stride = heads * width,
            .out = found_ + row * layer.rank,
            .out_stride = heads * layer.rank,
            .tokens = last - first,
            .first_position = step.positions[first],
            .heads = share(heads, cut + 1, cuts) - head,
            .rank = layer.rank,
            .width = width,
            .scale = layer.scale,
            .cache = cache.data,
            .block_bytes = block_bytes(layer, cache),
            .blocks = step.blocks + s * step.blocks_a_sequence,
        });
      }
    }
  }
}

// A phase with a task a thread, each with scratch of its own: jobs differ in length, so it takes
// the next one when it is done.
void LatentHalf::add_jobs(CacheType type) {
  const RowFunctions& rows = half_.level().rows;
  size_t floats = 0;
  for (const LatentJob& job : jobs_) floats = std::max(floats, rows.latent_scratch(job));
  floats = (floats + 15) / 16 * 16;  // each on lines of its own
  const auto tasks = static_cast<uint32_t>(pool_.threads());
  float* scratch = job_scratch_.of<float>(floats * tasks);
  next_job_.store(0, std::memory_order_relaxed);
  phases_.push_back({tasks, [=, this, &rows](uint32_t task) {
                       const auto attend = rows.attend_latents[static_cast<int>(type)];
                       for (size_t i; (i = next_job_.fetch_add(1)) < jobs_.size();) {
                         attend(jobs_[i], scratch + task * floats);
                       }
                     }});
}
