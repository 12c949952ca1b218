// Plans a network: which operations become one step, and where maps lie.
#include <algorithm>

#include "net.h"

// Less work than so many multiply-adds, some microseconds, is not divided among threads; tests divide all.
#ifndef BIREAL_LIGHT
#define BIREAL_LIGHT 3e5
#endif

namespace bireal {
namespace {

class Planner {
 public:
  explicit Planner(Net& net) : net_(net), ops_(net.network.ops), readers_(ops_.size() + 1), absorbed_(ops_.size()) {
    for (size_t i = 0; i < ops_.size(); i++)
      for (int input : ops_[i].inputs) readers_[input].push_back(int(i));
    last_ = int(ops_.size());
  }

  void plan() {
    const bool fuse = !net_.options.unfused;
    for (int i = 0; i < int(ops_.size()); i++) {
      if (absorbed_[i]) continue;
      Step step;
      step.op = i, step.input = ops_[i].inputs[0], step.position = i;
      const Kind kind = ops_[i].kind;
      const bool ragged = kind == Kind::binary_conv && ops_[i].groups > 1 && ops_[i].out.c / ops_[i].groups % unit;
      step.chain = begin(i);
      if (fuse && !ragged && kind != Kind::reshape && kind != Kind::concat && kind != Kind::pad_channels &&
          kind != Kind::subsample && kind != Kind::upsample && kind != Kind::mean)
        step.position = extend(step.chain, i);
      const int next = only_reader(step.chain.out);
      if (fuse && kind == Kind::conv && !depthwise(ops_[i], step.input) && step.chain.bits < 0 && next >= 0 && ops_[next].kind == Kind::max_pool &&
          step.chain.add < 0 && net_.real_valued(step.input)) {
        absorbed_[next] = true;
        step.pool = next;
        step.pool_chain = begin(next);
        step.position = extend(step.pool_chain, next);
      }
      net_.steps.push_back(std::move(step));
    }
    net_.charge(size_t(net_.network.image.c) * 256 * sizeof(float));
    for (int c = 0; c < net_.network.image.c; c++)
      for (int value = 0; value < 256; value++)
        net_.normalized.push_back((float(value) / 255.f - net_.network.mean[c]) / net_.network.std[c]);
    std::stable_sort(net_.steps.begin(), net_.steps.end(),
                     [](const Step& a, const Step& b) { return a.position < b.position; });
    pack_weights(net_);
    place();
  }

 private:
  int only_reader(int tensor) const {
    return tensor != last_ && readers_[tensor].size() == 1 ? readers_[tensor][0] : -1;
  }
  // A sign that only binary convolutions read is kept as bits alone.
  bool bits_only(int op) const {
    if (ops_[op].kind != Kind::sign || op + 1 == last_) return false;
    for (int reader : readers_[op + 1])
      if (ops_[reader].kind != Kind::binary_conv) return false;
    return true;
  }

  // The step of an operation alone.
  Chain begin(int i) {
    Chain chain;
    chain.out = i + 1;
    switch (ops_[i].kind) {
      case Kind::affine: chain.affine = i; break;
      case Kind::add: chain.add = i, chain.residual = ops_[i].inputs[1]; break;
      case Kind::rprelu:
      case Kind::clip: chain.act = i; break;
      case Kind::sign: chain.act = i, chain.bits = i + 1, chain.keep = !bits_only(i) || net_.options.unfused; break;
      default: break;
    }
    return chain;
  }

  // Adds the operations behind it; returns the number of the last one that has an input of its own.
  int extend(Chain& chain, int position) {
    for (;;) {
      const int next = only_reader(chain.out);
      if (next < 0 || absorbed_[next]) break;
      const Op& op = ops_[next];
      if (op.kind == Kind::affine && chain.affine < 0 && chain.add < 0 && chain.act < 0) {
        chain.affine = next;
      } else if (op.kind == Kind::add && chain.add < 0 && chain.act < 0 && op.inputs[0] != op.inputs[1]) {
        chain.add = next;
        chain.residual = op.inputs[0] == chain.out ? op.inputs[1] : op.inputs[0];
        if (!net_.real_valued(chain.residual)) return chain.add = -1, chain.residual = -1, position;
      } else if ((op.kind == Kind::rprelu || op.kind == Kind::clip) && chain.act < 0) {
        chain.act = next;
      } else {
        break;
      }
      absorbed_[next] = true;
      chain.out = next + 1;
      position = next;
    }
    for (int reader : readers_[chain.out]) {
      if (chain.sign >= 0 || chain.bits >= 0 || absorbed_[reader]) continue;
      int sign = reader, affine = -1;
      if (ops_[reader].kind == Kind::affine && only_reader(reader + 1) >= 0) affine = reader, sign = only_reader(reader + 1);
      if (ops_[sign].kind != Kind::sign || !bits_only(sign)) continue;
      chain.sign = sign, chain.sign_affine = affine, chain.bits = sign + 1;
      absorbed_[sign] = true;
      if (affine >= 0) absorbed_[affine] = true;
    }
    chain.keep = chain.out == last_;
    for (int reader : readers_[chain.out]) chain.keep |= reader != chain.sign && reader != chain.sign_affine;
    return position;
  }

  // About how long an operation takes, in real-valued multiply-adds.
  static double work(const Op& op) {
    const double taps = double(op.out.size()) * op.kh * op.kw * op.in.c / std::max(1, op.groups);
    if (op.kind == Kind::conv) return taps;
    if (op.kind == Kind::binary_conv) return taps / 16;
    return 4.0 * double(std::max(op.in.size(), op.out.size()));
  }

  // Where maps lie: each from the step that writes it to the last one that reads it, first fit.
  void place() {
    const size_t count = ops_.size() + 1;
    net_.reals.resize(count), net_.bits.resize(count);
    std::vector<int> last_read(count, -1);
    for (size_t s = 0; s < net_.steps.size(); s++) {
      const Step& step = net_.steps[s];
      for (int input : ops_[step.op].inputs) last_read[input] = int(s);
      for (const Chain* chain : {&step.chain, &step.pool_chain})
        if (chain->residual >= 0) last_read[chain->residual] = int(s);
    }
    if (net_.options.unfused) last_read.assign(count, int(net_.steps.size()));
    last_read[last_] = int(net_.steps.size());
    struct Used {
      size_t begin, end;
      int until;
    };
    std::vector<Used> used;
    auto claim = [&](size_t size, int from, int until) {
      size = (size + 127) / 64 * 64;
      used.erase(std::remove_if(used.begin(), used.end(), [&](const Used& u) { return u.until < from; }), used.end());
      size_t at = 0;
      auto gap = used.begin();  // in order of begin
      for (; gap != used.end() && gap->begin < at + size; ++gap) at = std::max(at, gap->end);
      used.insert(gap, {at, at + size, std::max(from, until)});  // until: -1 where nobody reads it
      net_.workspace = std::max(net_.workspace, at + size);
      net_.charge(0);
      return Place{at, size};
    };
    auto real = [&](int tensor, int from, int until) {
      const Shape& s = net_.shape(tensor);
      return claim(s.pixels() * pitch_of(s.c) * sizeof(float), from, until);
    };
    bool image = net_.options.unfused;
    for (auto& step : net_.steps)
      for (int input : ops_[step.op].inputs) image |= input == 0 && ops_[step.op].kind != Kind::conv;
    for (auto& step : net_.steps) image |= step.chain.residual == 0 || step.pool_chain.residual == 0;
    if (image) net_.reals[0] = real(0, 0, int(net_.steps.size()));
    for (size_t s = 0; s < net_.steps.size(); s++) {
      Step& step = net_.steps[s];
      const int now = int(s);
      const Op& op = ops_[step.op];
      step.light = work(op) < BIREAL_LIGHT;
      if (op.kind == Kind::conv) step.scratch = claim(std::max(step.conv.scratch, step.int16.scratch), now, now);
      if (op.kind == Kind::binary_conv) net_.reserve(step.conv.scratch);
      const size_t row = pooled_width(step.conv) * pitch_of(step.conv.co) * sizeof(float);
      net_.reserve(step.line + (step.pool >= 0 ? ops_[step.pool].kh * row : 0));
      const Chain& chain = step.pool >= 0 ? step.pool_chain : step.chain;
      if (chain.bits >= 0) {
        const Shape& shape = net_.shape(chain.bits);
        net_.bits[chain.bits] = claim(shape.pixels() * bits_pitch(shape.c), now, last_read[chain.bits]);
      }
      if (!chain.keep) continue;
      // The sum takes the place of its shortcut, where nobody needs that any more.
      const int old = chain.residual;
      if (old > 0 && last_read[old] == now && net_.reals[old] && old != step.input) {
        net_.reals[chain.out] = net_.reals[old];
        for (auto& u : used)
          if (u.begin == net_.reals[old].offset) u.until = std::max(u.until, last_read[chain.out]);
      } else {
        net_.reals[chain.out] = real(chain.out, now, last_read[chain.out]);
      }
    }
  }

  Net& net_;
  std::vector<Op>& ops_;
  std::vector<std::vector<int>> readers_;
  std::vector<bool> absorbed_;
  int last_ = 0;
};

}  // namespace

void plan(Net& net) { Planner(net).plan(); }

}  // namespace bireal
