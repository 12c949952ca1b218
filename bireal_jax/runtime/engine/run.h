// Runs a planned network: each step is cut into pieces for the threads.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <type_traits>
#include <vector>

#include "lines.h"

namespace bireal {

class Run {
 public:
  // team: null for this thread alone.
  Run(const Net& net, const Buffer& memory, Team* team) : net_(net), memory_(memory), team_(team), kernels_(*net.kernels) {}

  template <class Pixel>
  void image(const Pixel* pixels, float* logits) {
    const Shape& s = net_.network.image;
    if (net_.reals[0]) {
      float* out = real(0);
      for (size_t p = 0; p < s.pixels(); p++)
        for (int c = 0; c < s.c; c++) out[p * pitch_of(s.c) + c] = net_.pixel(pixels[p * s.c + c], c);
    }
    for (const Step& step : net_.steps) run(step, pixels);
    const Shape& last = net_.network.ops.back().out;
    const float* from = real(int(net_.network.ops.size()));
    for (size_t p = 0; p < last.pixels(); p++)
      std::memcpy(logits + p * last.c, from + p * pitch_of(last.c), last.c * sizeof(float));
  }

  std::vector<double> profile(const uint8_t* pixels, int repeats) {
    std::vector<float> logits(net_.network.ops.back().out.size());
    std::vector<std::vector<double>> times(net_.steps.size());
    for (int r = 0; r < repeats; r++) {
      image(pixels, logits.data());
      for (size_t s = 0; s < net_.steps.size(); s++) {
        const auto begin = std::chrono::steady_clock::now();
        run(net_.steps[s], pixels);
        times[s].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      }
    }
    std::vector<double> seconds(net_.network.ops.size());
    for (size_t s = 0; s < times.size(); s++) {
      std::nth_element(times[s].begin(), times[s].begin() + repeats / 2, times[s].end());
      seconds[net_.steps[s].op] = times[s][repeats / 2];
    }
    return seconds;
  }

  float* real(int tensor) const { return reinterpret_cast<float*>(at(net_.reals[tensor])); }
  uint8_t* bits(int tensor) const { return at(net_.bits[tensor]); }

 private:
  uint8_t* at(const Place& place) const { return place ? memory_.as<uint8_t>() + place.offset : nullptr; }
  uint8_t* local(int thread) const { return memory_.as<uint8_t>() + net_.workspace + thread * net_.local; }

  // Cuts [0, count) into one contiguous piece a thread.
  template <class Function>
  void split(int count, const Function& function) {
    const int threads = team_ && !light_ ? std::min(count, team_->size()) : 1;
    if (threads <= 1) return function(0, count, 0);
    team_->run([&](int i) {
      const int begin = int(int64_t(count) * i / team_->size()), end = int(int64_t(count) * (i + 1) / team_->size());
      if (begin < end) function(begin, end, i);
    });
  }

  Epilogue epilogue(const Chain& chain) const {
    Epilogue e;
    const Shape& shape = net_.shape(chain.out);
    e.pitch = pitch_of(shape.c), e.bits_pitch = bits_pitch(shape.c);
    if (chain.affine >= 0) e.scale = net_.array(chain.affine, 0), e.offset = net_.array(chain.affine, 1);
    if (chain.residual >= 0) e.residual = real(chain.residual);
    if (chain.act >= 0) {
      const Op& op = net_.network.ops[chain.act];
      if (op.kind == Kind::sign) e.act = Act::sign;
      if (op.kind == Kind::clip) e.act = Act::clip, e.low = op.low, e.high = op.high, e.leak = op.leak;
      if (op.kind == Kind::rprelu) {
        e.act = Act::rprelu;
        e.shift_in = net_.array(chain.act, 0), e.slope = net_.array(chain.act, 1), e.shift_out = net_.array(chain.act, 2);
      }
    }
    if (chain.keep) e.out = real(chain.out);
    if (chain.bits >= 0) {
      e.bits = bits(chain.bits);
      if (chain.sign_affine >= 0)
        e.sign_scale = net_.array(chain.sign_affine, 0), e.sign_offset = net_.array(chain.sign_affine, 1);
    }
    return e;
  }

  // For each output row the rows of the map that its window has, null beyond the border, and its first pixel.
  template <class Function>
  void windows(const Op& op, const float* input, int pitch, const Function& function) {
    split(op.out.h, [&](int y0, int y1, int) {
      for (int y = y0; y < y1; y++) {
        const float* rows[max_window];
        for (int i = 0; i < op.kh; i++) {
          const int iy = y * op.sh + i - op.top;
          rows[i] = iy >= 0 && iy < op.in.h ? input + size_t(iy) * op.in.w * pitch : nullptr;
        }
        function(rows, size_t(y) * op.out.w);
      }
    });
  }

  template <class Pixel>
  void run(const Step& step, const Pixel* pixels) {
    const Op& op = net_.network.ops[step.op];
    light_ = step.light;
    const Epilogue e = epilogue(step.chain);
    const float* input = net_.reals[step.input] ? real(step.input) : nullptr;
    const int pitch = int(pitch_of(op.in.c)), out_pitch = int(pitch_of(op.out.c));
    const size_t bytes = size_t(pitch) * sizeof(float);
    switch (op.kind) {
      case Kind::binary_conv: return binary(step, e);
      case Kind::conv:
        if (!depthwise(op, step.input)) return real_conv(step, e, pixels);
        return windows(op, input, pitch, [&](const float* const* rows, size_t pixel) {
          kernels_.depthwise_row(rows, static_cast<const float*>(step.conv.weight), op.kh, op.kw, op.sw, op.left, op.in.w,
                                 op.out.w, pitch, pixel, e);
        });
      case Kind::affine: case Kind::add: case Kind::rprelu: case Kind::clip: case Kind::sign:
        return split(int(op.in.pixels()), [&](int p0, int p1, int) { kernels_.map(input, p0, p1, e); });
      case Kind::max_pool:
        return windows(op, input, pitch, [&](const float* const* rows, size_t pixel) {
          kernels_.max_pool_row(rows, op.kh, op.kw, op.sw, op.left, op.in.w, op.out.w, pitch, pixel, e);
        });
      case Kind::avg_pool:
        return windows(op, input, pitch, [&](const float* const* rows, size_t pixel) {
          kernels_.avg_pool_row(rows, op.kh, op.out.w, pitch, pixel, e);
        });
      case Kind::mean: {
        std::memset(e.out, 0, bytes);
        for (size_t p = 0; p < op.in.pixels(); p++)
          for (int c = 0; c < pitch; c++) e.out[c] += input[p * pitch + c];
        for (int c = 0; c < pitch; c++) e.out[c] /= float(op.in.pixels());
        return;
      }
      case Kind::subsample:
        for (int y = 0; y < op.out.h; y++)
          for (int x = 0; x < op.out.w; x++)
            std::memcpy(e.out + (size_t(y) * op.out.w + x) * pitch, input + (size_t(y) * op.sh * op.in.w + x * op.sw) * pitch, bytes);
        return;
      case Kind::upsample:
        return split(op.out.h, [&](int y0, int y1, int) {
          for (int y = y0; y < y1; y++)
            for (int x = 0; x < op.out.w; x++)
              std::memcpy(e.out + (size_t(y) * op.out.w + x) * pitch, input + (size_t(y / op.factor) * op.in.w + x / op.factor) * pitch, bytes);
        });
      case Kind::pad_channels:
        for (size_t p = 0; p < op.in.pixels(); p++) {
          std::memset(e.out + p * out_pitch, 0, out_pitch * sizeof(float));
          std::memcpy(e.out + p * out_pitch + op.before, input + p * pitch, op.in.c * sizeof(float));
        }
        return;
      case Kind::concat: {
        int before = 0;
        for (int number : op.inputs) {
          const int c = net_.shape(number).c;
          const size_t from = pitch_of(c);
          for (size_t p = 0; p < op.in.pixels(); p++)
            std::memcpy(e.out + p * out_pitch + before, real(number) + p * from, c * sizeof(float));
          before += c;
        }
        return;
      }
      case Kind::reshape:
        for (size_t i = 0, n = op.in.size(); i < n;) {
          const size_t ic = i % op.in.c, oc = i % op.out.c, run = std::min(op.in.c - ic, op.out.c - oc);
          std::memcpy(e.out + i / op.out.c * out_pitch + oc, input + i / op.in.c * pitch + ic, run * sizeof(float));
          i += run;
        }
        return;
    }
  }

  void binary(const Step& step, const Epilogue& e) {
    const Conv& c = step.conv;
    const uint8_t* in = bits(step.input);
    const int blocks = c.groups * c.blocks;
    if (by_rows(net_, c))  // pixels of one thread share no cache line with the other's
      return split(c.ho, [&](int y0, int y1, int thread) {
        for (int y = y0; y < y1; y += c.band) {
          const int end = std::min(y1, y + c.band);
          kernels_.binary_prepare(c, in, local(thread), y, end);
          for (int block = 0; block < blocks; block++) kernels_.binary_rows(c, local(thread), y, block, y, end, e);
        }
      });
    split(blocks * c.ho, [&](int from, int to, int thread) {  // by filters: each thread reads its own weights
      kernels_.binary_prepare(c, in, local(thread), 0, c.ho);
      while (from < to) {
        const int block = from / c.ho, y = from % c.ho, end = std::min(c.ho, y + to - from);
        kernels_.binary_rows(c, local(thread), 0, block, y, end, e);
        from += end - y;
      }
    });
  }

  // The input with its border of zeros, rows [y0, y1) of it.
  template <class To, class From>
  void border(const Conv& c, const Op& op, To* out, int y0, int y1, const From& from) {
    const int channels = op.in.c;
    for (int y = y0; y < y1; y++) {
      To* row = out + size_t(y) * c.pw * channels;
      const int iy = y - c.top, x0 = std::min(c.left, c.pw), x1 = std::min(c.pw, c.left + op.in.w);
      if (iy < 0 || iy >= op.in.h) {
        std::memset(row, 0, size_t(c.pw) * channels * sizeof(To));
        continue;
      }
      std::memset(row, 0, size_t(x0) * channels * sizeof(To));
      from(row + size_t(x0) * channels, size_t(iy) * op.in.w, x1 - x0);
      std::memset(row + size_t(x1) * channels, 0, size_t(c.pw - x1) * channels * sizeof(To));
    }
  }

  const int16_t* prepare_int16(const Step& step, const uint8_t* pixels) {
    const Op& op = net_.network.ops[step.op];
    int16_t* out = reinterpret_cast<int16_t*>(at(step.scratch));
    split(step.int16.ph, [&](int y0, int y1, int) {
      border(step.int16, op, out, y0, y1, [&](int16_t* to, size_t pixel, int count) {
        for (int i = 0; i < count * op.in.c; i++) to[i] = int16_t(pixels[pixel * op.in.c + i] - 128);
      });
    });
    return out;
  }
  const int16_t* prepare_int16(const Step&, const float*) { return nullptr; }

  template <class Pixel>
  const float* prepare_real(const Step& step, const Pixel* pixels) {
    const Conv& c = step.conv;
    const Op& op = net_.network.ops[step.op];
    if (!c.scratch) return real(step.input);
    float* out = reinterpret_cast<float*>(at(step.scratch));
    const int channels = op.in.c;
    if (step.input == 0) {
      split(c.ph, [&](int y0, int y1, int) {
        border(c, op, out, y0, y1, [&](float* to, size_t pixel, int count) {
          for (int i = 0; i < count; i++)
            for (int k = 0; k < channels; k++) to[i * channels + k] = net_.pixel(pixels[(pixel + i) * channels + k], k);
        });
      });
    } else if (net_.reals[step.input]) {
      const float* in = real(step.input);
      const size_t pitch = pitch_of(channels);
      split(c.ph, [&](int y0, int y1, int) {
        border(c, op, out, y0, y1, [&](float* to, size_t pixel, int count) {
          for (int i = 0; i < count; i++) std::memcpy(to + size_t(i) * channels, in + (pixel + i) * pitch, channels * sizeof(float));
        });
      });
    }
    return out;
  }

  // For a thread: a function that computes some rows.
  template <class T, class Pixel>
  auto by_winograd(const Conv& c, const Pixel* pixels) {
    return [this, &c, pixels](int thread) {
      return [this, &c, lines = Lines<T, Pixel>(net_, c, pixels, local(thread))](
                 int b0, int b1, int y0, int y1, size_t pixel, const Epilogue& to) mutable {
        for (int y = y0; y < y1; y++, pixel += c.wo) winograd(kernels_, c, lines.window(y), b0, b1, y, pixel, to);
      };
    };
  }

  template <class Pixel>
  void real_conv(const Step& step, Epilogue e, const Pixel* pixels) {
    if (step.input && step.int16.weight) return pointwise16(step, e);
    const bool narrow = step.int16.offsets && std::is_same<Pixel, uint8_t>();
    const Conv& c = narrow ? step.int16 : step.conv;
    if (narrow) e.scale = step.int16_scale.as<float>();
    if (c.points && narrow) return rows(step, c, e, by_winograd<int16_t>(c, pixels));
    if (c.points) return rows(step, c, e, by_winograd<float>(c, pixels));
    const int16_t* shorts = narrow ? prepare_int16(step, pixels) : nullptr;
    const float* wide = narrow ? nullptr : prepare_real(step, pixels);
    rows(step, c, e, [&](int) {
      return [&](int b0, int b1, int y0, int y1, size_t pixel, const Epilogue& to) {
        if (narrow) kernels_.int16_rows(c, shorts, b0, b1, y0, y1, pixel, to);
        else kernels_.real_rows(c, wide, b0, b1, y0, y1, pixel, to);
      };
    });
  }

  void pointwise16(const Step& step, Epilogue e) {
    Conv c = step.int16;
    const int channels = net_.network.ops[step.op].in.c;
    float* scales = reinterpret_cast<float*>(at(step.scratch));
    int16_t* narrow = reinterpret_cast<int16_t*>(scales + c.wo);
    const float* in = real(step.input);
    split(c.wo, [&](int p0, int p1, int) {
      for (size_t p = p0; p < size_t(p1); p++) scales[p] = kernels_.quantize(in + p * c.c, channels, c.c, narrow + p * c.c);
    });
    c.input_scales = scales;
    e.scale = step.int16_scale.as<float>();
    split(c.blocks, [&](int b0, int b1, int) { kernels_.int16_rows(c, narrow, b0, b1, 0, 1, 0, e); });
  }

  template <class Rows>
  void rows(const Step& step, const Conv& c, const Epilogue& e, const Rows& of_thread) {
    if (step.pool >= 0) return pooled(step, e, of_thread);
    if (c.ho > 1)
      return split(c.ho, [&](int y0, int y1, int thread) { of_thread(thread)(0, c.blocks, y0, y1, size_t(y0) * c.wo, e); });
    split(c.blocks, [&](int b0, int b1, int thread) { of_thread(thread)(b0, b1, 0, 1, 0, e); });
  }

  // Convolution and maximum together: a band of as many rows as a window has, in turn.
  template <class Rows>
  void pooled(const Step& step, const Epilogue& e, const Rows& of_thread) {
    const Conv& c = step.conv;
    const Op& op = net_.network.ops[step.pool];
    const Epilogue last = epilogue(step.pool_chain);
    const int width = pooled_width(c);
    const size_t row = size_t(width) * e.pitch;
    split(op.out.h, [&](int y0, int y1, int thread) {
      float* band = reinterpret_cast<float*>(local(thread) + step.line);
      auto rows = of_thread(thread);
      Epilogue to = e;
      to.bits = nullptr;
      int done = std::max(0, y0 * op.sh - op.top);
      for (int y = y0; y < y1; y++) {
        const int begin = std::max(0, y * op.sh - op.top), end = std::min(c.ho, y * op.sh - op.top + op.kh);
        for (done = std::max(done, begin); done < end; done++) {
          to.out = band + done % op.kh * row;
          rows(0, c.blocks, done, done + 1, 0, to);
        }
        const float* window[max_window];
        for (int i = 0; i < op.kh; i++) {
          const int iy = y * op.sh - op.top + i;
          window[i] = iy >= 0 && iy < c.ho ? band + iy % op.kh * row : nullptr;
        }
        if (c.halved) kernels_.max_pool_row(window, op.kh, 1, 1, 0, width, width, int(e.pitch), size_t(y) * width, last);
        else kernels_.max_pool_row(window, op.kh, op.kw, op.sw, op.left, width, op.out.w, int(e.pitch), size_t(y) * op.out.w, last);
      }
    });
  }

  const Net& net_;
  const Buffer& memory_;
  Team* team_;
  bool light_ = false;  // the step that is run
  const Kernels& kernels_;
};

}  // namespace bireal
