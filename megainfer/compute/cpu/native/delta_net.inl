// Gated DeltaNet between its projections, over `Vec`.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "delta_jobs.h"
#include "elementwise.inl"
#include "rows.inl"

namespace {

// x = silu(x), whole vectors and then the rest padded to one.
inline void silu_all(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + Vec::width <= n; i += Vec::width) Vec::store(x + i, silu(Vec::load(x + i)));
  if (i == n) return;
  float rest[Vec::width] = {};
  std::memcpy(rest, x + i, (n - i) * sizeof(float));
  Vec::store(rest, silu(Vec::load(rest)));
  std::memcpy(x + i, rest, (n - i) * sizeof(float));
}

// Row `index` of the past, then of the inputs.
inline const float* input_row(const ConvolutionJob& job, int64_t index) {
  const int64_t before = job.taps - 1;
  return index < before ? job.past + index * job.channel_stride
                        : job.inputs + (index - before) * job.input_stride;
}

void convolve(const ConvolutionJob& job) {
  const int64_t channels = job.channels;
  for (int64_t t = 0; t < job.tokens; ++t) {
    float* out = job.out + t * job.out_stride;
    for (int64_t tap = 0; tap < job.taps; ++tap) {
      const float* weights = job.weights + tap * job.channel_stride;
      const float* inputs = input_row(job, t + tap);
      if (tap == 0) {
        for (int64_t c = 0; c < channels; ++c) out[c] = inputs[c] * weights[c];
      } else {
        for (int64_t c = 0; c < channels; ++c) out[c] += inputs[c] * weights[c];
      }
    }
    silu_all(out, channels);
  }
  for (int64_t i = 0; i < job.taps - 1; ++i) {  // from older rows to newer ones: none is lost
    float* to = job.past + i * job.channel_stride;
    std::memcpy(to, input_row(job, job.tokens + i), channels * sizeof(float));
  }
}

// What tokens bring to a head: queries and keys [tokens, key_dim], decays and rates [tokens], and
// room for one row's gates.
struct DeltaScratch {
  float *queries, *keys, *decays, *rates, *gates;

  static size_t floats(int64_t tokens, int64_t key_dim, int64_t value_dim) {
    return static_cast<size_t>(2 * tokens * (key_dim + 1) + value_dim);
  }

  DeltaScratch(float* memory, int64_t tokens, int64_t key_dim)
      : queries(memory),
        keys(queries + tokens * key_dim),
        decays(keys + tokens * key_dim),
        rates(decays + tokens),
        gates(rates + tokens) {}
};

// out = x / sqrt(x . x + eps) * scale.
inline void to_length(const float* x, int64_t n, float scale, float* out) {
  const float factor = scale / __builtin_sqrtf(sum_of_squares(x, n) + 1e-6f);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor;
}

inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// `Vectors` vectors of the state's columns through all tokens. A column sees no other column. The
// loop that takes a token in also finds what the state then knows of the next one's key, so that
// each token costs one pass over the state; the additions are those of a pass of their own.
template <int Vectors>
void recur_columns(const DeltaJob& job, int64_t column, const DeltaScratch& tokens) {
  float* state = job.state + column;
  Vec::F known[Vectors], correction[Vectors], read[Vectors];
  for (int v = 0; v < Vectors; ++v) known[v] = Vec::zero();
  for (int64_t i = 0; i < job.key_dim; ++i) {
    const Vec::F key = Vec::set1(tokens.keys[i]);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      known[v] = Vec::fma(Vec::load(state + i * job.value_dim + v * Vec::width), key, known[v]);
    }
  }
  for (int64_t t = 0; t < job.tokens; ++t) {
    const float* query = tokens.queries + t * job.key_dim;
    const float* key = tokens.keys + t * job.key_dim;
    const float* next = t + 1 < job.tokens ? key + job.key_dim : key;
    const float* value = job.value + t * job.mixed_stride + column;
    const Vec::F decay = Vec::set1(tokens.decays[t]), rate = Vec::set1(tokens.rates[t]);
    for (int v = 0; v < Vectors; ++v) {
      const Vec::F left = Vec::mul(Vec::mul(known[v], decay), Vec::set1(-1.0f));
      correction[v] = Vec::mul(rate, Vec::add(Vec::load(value + v * Vec::width), left));
      known[v] = read[v] = Vec::zero();
    }
    for (int64_t i = 0; i < job.key_dim; ++i) {
      float* row = state + i * job.value_dim;
      const Vec::F own = Vec::set1(key[i]), wanted = Vec::set1(query[i]);
      const Vec::F coming = Vec::set1(next[i]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        const Vec::F kept = Vec::mul(Vec::load(row + v * Vec::width), decay);
        const Vec::F now = Vec::fma(own, correction[v], kept);
        Vec::store(row + v * Vec::width, now);
        read[v] = Vec::fma(now, wanted, read[v]);
        known[v] = Vec::fma(now, coming, known[v]);
      }
    }
    float* out = job.out + t * job.out_stride + column;
    for (int v = 0; v < Vectors; ++v) Vec::store(out + v * Vec::width, read[v]);
  }
}

// The same for one column.
void recur_column(const DeltaJob& job, int64_t column, const DeltaScratch& tokens) {
  float* state = job.state + column;
  for (int64_t t = 0; t < job.tokens; ++t) {
    const float* query = tokens.queries + t * job.key_dim;
    const float* key = tokens.keys + t * job.key_dim;
    const float decay = tokens.decays[t];
    float known = 0.0f, read = 0.0f;
    for (int64_t i = 0; i < job.key_dim; ++i) known += state[i * job.value_dim] * key[i];
    const float value = job.value[t * job.mixed_stride + column];
    const float correction = tokens.rates[t] * (value - known * decay);
    for (int64_t i = 0; i < job.key_dim; ++i) {
      float& now = state[i * job.value_dim];
      now = now * decay + key[i] * correction;
      read += now * query[i];
    }
    job.out[t * job.out_stride + column] = read;
  }
}

void take_tokens(const DeltaJob& job, const DeltaScratch& tokens) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(job.key_dim));
  for (int64_t t = 0; t < job.tokens; ++t) {
    const int64_t mixed = t * job.mixed_stride, row = t * job.key_dim;
    to_length(job.query + mixed, job.key_dim, scale, tokens.queries + row);
    to_length(job.key + mixed, job.key_dim, 1.0f, tokens.keys + row);
    const float decay = job.decay[t * job.rate_stride];
    tokens.decays[t] = expf(-job.decay_factor * softplus(decay + job.time_bias));
    tokens.rates[t] = 1.0f / (1.0f + expf(-job.rate[t * job.rate_stride]));
  }
}

void finish_rows(const DeltaJob& job, float* gates) {
  for (int64_t t = 0; t < job.tokens; ++t) {
    float* out = job.out + t * job.out_stride;
    rms_norm(out, job.norm, job.eps, job.value_dim, out);
    std::memcpy(gates, job.gate + t * job.gate_stride, job.value_dim * sizeof(float));
    silu_all(gates, job.value_dim);
    for (int64_t i = 0; i < job.value_dim; ++i) out[i] *= gates[i];
  }
}

void recur(const DeltaJob& job, float* memory) {
  constexpr int most = 4;
  const DeltaScratch tokens(memory, job.tokens, job.key_dim);
  take_tokens(job, tokens);
  int64_t column = 0;
  for (; column + most * Vec::width <= job.value_dim; column += most * Vec::width) {
    recur_columns<most>(job, column, tokens);
  }
  for (; column + Vec::width <= job.value_dim; column += Vec::width) {
    recur_columns<1>(job, column, tokens);
  }
  for (; column < job.value_dim; ++column) recur_column(job, column, tokens);
  finish_rows(job, tokens.gates);
}

constexpr DeltaFunctions delta_functions() {
  return {.convolve = convolve, .scratch = DeltaScratch::floats, .recur = recur};
}

}  // namespace
