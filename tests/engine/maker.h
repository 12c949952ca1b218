// New networks for mutate.cc.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "container.h"

namespace {

using bireal::Shape;

// A network that is sound, of random operations.
class Maker {
 public:
  explicit Maker(Random& random) : r_(random) {}

  File make() {
    maps_.push_back({int(1 + r_(9)), int(1 + r_(9)), r_.one_in(8) ? 17 : int(1 + r_(4))});
    for (size_t n = 1 + r_(12); n; n--) operation();
    if (maps_.back().pixels() > 1) {
      const Shape s = maps_.back();
      if (r_.one_in(4)) row("reshape", {last()}, {1, 1, int(s.size())});
      else row("mean", {last()}, {1, 1, s.c});
    }
    if (r_.one_in(2)) conv(last(), false);
    const Shape& image = maps_[0];
    std::string mean, std;
    for (int i = 0; i < image.c; i++) mean += i ? ",0.4" : "0.5", std += i ? ",0.3" : "0.25";
    file_.spec = "{\"digest\":\"" + std::string(64, '0') + "\",\"format\":1,\"image\":{\"shape\":" + text(image) +
                 ",\"mean\":[" + mean + "],\"std\":[" + std + "],\"resize\":0},\"labels\":[],\"ops\":[" + rows_ + "]}";
    return file_;
  }

 private:
  static std::string text(const Shape& s) { return list({size_t(s.h), size_t(s.w), size_t(s.c)}); }
  static std::string pair(int a, int b) { return list({size_t(a), size_t(b)}); }
  size_t last() const { return maps_.size() - 1; }
  int channels() {
    return r_.of(std::vector<int>{1, 2, 3, 5, 8, 10, 15, 16, 17, 20, 31, 32, 33, 47, 48, 63, 64, 65, 70, 96, 130});
  }

  void row(const std::string& kind, const std::vector<size_t>& inputs, const Shape& out, const std::string& settings = "") {
    rows_ += (rows_.empty() ? "" : ",") + ("{\"op\":\"" + kind) + "\",\"inputs\":" + list(inputs) + ",\"shape\":" +
             text(out) + (settings.empty() ? "" : ",") + settings + "}";
    maps_.push_back(out), kinds_.push_back(kind);
  }

  void array(const std::string& name, const std::vector<size_t>& shape, bool binary = false) {
    Tensor t{std::to_string(kinds_.size()) + "." + name, binary ? "U8" : "F32", shape, ""};
    size_t count = 1;
    for (size_t side : shape) count *= side;
    for (size_t i = 0; i < count; i++) {
      const float value = r_.one_in(500) ? 1e30f : r_.one_in(20) ? 0 : (float(r_(2000)) - 1000) / 700;
      char bytes[4];
      std::memcpy(bytes, &value, 4);
      t.bytes += binary ? std::string(1, char(r_(256))) : std::string(bytes, 4);
    }
    file_.tensors.push_back(t);
  }

  // Window, stride and padding that fit a map's side.
  void window(int side, int& size, int& stride, int& before, int& after) {
    size = 1 + int(r_(r_.one_in(6) ? 9 : 3)), stride = 1 + int(r_(r_.one_in(6) ? 5 : 2));
    before = int(r_(size)), after = int(r_(size));
    if (side + before + after < size) size = 1, before = after = 0;
  }

  struct Window {
    int kh, kw, sh, sw, top, bottom, left, right;
    Shape out;
    std::string settings;
  };
  Window window(const Shape& in) {
    Window w{};
    window(in.h, w.kh, w.sh, w.top, w.bottom), window(in.w, w.kw, w.sw, w.left, w.right);
    w.out = {(in.h + w.top + w.bottom - w.kh) / w.sh + 1, (in.w + w.left + w.right - w.kw) / w.sw + 1, in.c};
    w.settings = "\"strides\":" + pair(w.sh, w.sw) +
                 ",\"padding\":" + list({size_t(w.top), size_t(w.bottom), size_t(w.left), size_t(w.right)});
    return w;
  }

  void conv(size_t from, bool binary_conv) {
    if (binary_conv && (!from || kinds_[from - 1] != "sign")) row("sign", {from}, maps_[from]), from = last();
    const Shape in = maps_[from];
    Window w = window(in);
    int groups = 1;
    if (r_.one_in(3))
      for (int g = 2; g <= in.c; g++)
        if (in.c % g == 0 && (groups == 1 || r_.one_in(2))) groups = g;
    w.out.c = groups * std::max(1, channels() / (r_.one_in(2) ? groups : 1));
    if (in.size() > 9000 || w.out.size() > 9000 || size_t(w.kh) * w.kw * (in.c / groups) * w.out.c > 3000) return;
    const bool bits = binary_conv || r_.one_in(8);
    const size_t kh = w.kh, kw = w.kw, cin = in.c / groups, cout = w.out.c;
    array("weight", bits ? std::vector<size_t>{cout, kh, kw, (cin + 7) / 8} : std::vector<size_t>{kh, kw, cin, cout}, bits);
    w.settings += ",\"groups\":" + std::to_string(groups);
    if (binary_conv) w.settings += ",\"pad\":" + std::to_string(int(r_(3)) - 1);
    row(binary_conv ? "binary_conv" : "conv", {from}, w.out, w.settings);
  }

  void operation() {
    const size_t from = r_.one_in(3) ? r_(maps_.size()) : last();
    const Shape in = maps_[from];
    const size_t count = in.c;
    switch (r_(18)) {
      case 0:
      case 1: return conv(from, false);
      case 2:
      case 3:
      case 4: return conv(from, true);
      case 5:
      case 6: return array("scale", {count}), array("offset", {count}), row("affine", {from}, in);
      case 7: return row("sign", {from}, in);
      case 8: return array("shift_in", {count}), array("slope", {count}), array("shift_out", {count}), row("rprelu", {from}, in);
      case 9: return row("clip", {from}, in, r_.one_in(2) ? "\"low\":-1,\"high\":1,\"leak\":0" : "\"low\":0,\"high\":2.5,\"leak\":0.1");
      case 10:
      case 11: {
        size_t other = from;
        for (size_t i = 0; i < maps_.size(); i++)
          if (maps_[i].h == in.h && maps_[i].w == in.w && maps_[i].c == in.c && i != from && r_.one_in(2)) other = i;
        return r_.one_in(2) ? row("add", {from, other}, in) : row("add", {other, from}, in);
      }
      case 12: {
        const Window w = window(in);
        return row("max_pool", {from}, w.out, w.settings + ",\"window\":" + pair(w.kh, w.kw));
      }
      case 13: {
        const int s = 1 + int(r_(std::min(in.h, in.w)));
        return row("avg_pool", {from}, {in.h / s, in.w / s, in.c}, "\"window\":" + std::to_string(s));
      }
      case 14: {
        const int s = 1 + int(r_(4));
        return row("subsample", {from}, {(in.h - 1) / s + 1, (in.w - 1) / s + 1, in.c}, "\"stride\":" + std::to_string(s));
      }
      case 15: {
        const int before = int(r_(20)), after = int(r_(20));
        return row("pad_channels", {from}, {in.h, in.w, in.c + before + after},
                   "\"before\":" + std::to_string(before) + ",\"after\":" + std::to_string(after));
      }
      case 16: {
        std::vector<size_t> inputs{from};
        int c = in.c;
        for (size_t i = 0; i < maps_.size() && inputs.size() < 16; i++)
          if (maps_[i].h == in.h && maps_[i].w == in.w && r_.one_in(2) && c < 200) inputs.push_back(i), c += maps_[i].c;
        return row("concat", inputs, {in.h, in.w, c});
      }
      default: return r_.one_in(3) ? row("mean", {from}, {1, 1, in.c}) : row("reshape", {from}, {in.w * in.c, 1, in.h});
    }
  }

  Random& r_;
  File file_;
  std::string rows_;
  std::vector<Shape> maps_;
  std::vector<std::string> kinds_;
};

}  // namespace
