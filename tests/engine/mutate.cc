// The mutator of fuzz.cc. It knows the container: it changes what the header says or makes a new network, and mends
// lengths, offsets and the digest afterwards, most of the time: the checks behind the digest are what is to be reached.
// It is compiled without sanitizers, for speed.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <forward_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#define bireal unchecked  // a copy of the reader for the mutator, not the one that is tested
#include "json.h"
#include "sha256.h"
#undef bireal
#include "random.h"

namespace bireal = unchecked;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

using bireal::Json;
using bireal::Shape;

const bool infer = std::getenv("BIREAL_FUZZ") && !std::strcmp(std::getenv("BIREAL_FUZZ"), "infer");

// ------------------------------------------------------------------------------------------------------ the container

struct Tensor {
  std::string name, type;
  std::vector<size_t> shape;
  std::string bytes;
};

struct File {
  std::string spec;  // JSON
  std::vector<Tensor> tensors;
};

std::string quoted(const std::string& text) {
  std::string out = "\"";
  out.reserve(text.size() * 5 / 4 + 16);
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\', out += c;
    else if (static_cast<unsigned char>(c) < 32) out += "\\u00", out += char('0' + (c >> 4)), out += "0123456789abcdef"[c & 15];
    else out += c;
  }
  return out + '"';
}

std::string list(const std::vector<size_t>& numbers) {
  std::string out = "[";
  for (size_t n : numbers) out += (out.size() > 1 ? "," : "") + std::to_string(n);
  return out + "]";
}

// False where the header is not of the usual form.
bool open(const std::string& data, File& file) {
  uint64_t length = 0;
  if (data.size() < 8) return false;
  std::memcpy(&length, data.data(), 8);
  if (length > data.size() - 8) return false;
  const size_t payload = 8 + length;
  try {
    const bireal::Document document(std::string_view(data).substr(8, length));
    const Json& header = document.root();
    file.spec = header["__metadata__"]["bireal_jax"].str("");
    for (const Json& row : header.items()) {
      if (row.key == "__metadata__") continue;
      Tensor tensor{std::string(row.key), std::string(row["dtype"].str("")), {}, ""};
      for (const Json& side : row["shape"].list("", 0, 8)) tensor.shape.push_back(side.integer("", 0, 1l << 62));
      const auto offsets = row["data_offsets"].list("", 2, 2);
      const size_t begin = offsets[0].integer("", 0, 1l << 62), end = offsets[1].integer("", 0, 1l << 62);
      if (begin <= end && end <= data.size() - payload) tensor.bytes = data.substr(payload + begin, end - begin);
      file.tensors.push_back(tensor);
    }
    return true;
  } catch (const bireal::Error&) {
    return false;
  }
}

std::string assemble(const File& file, Random& random) {
  std::string header = "{\"__metadata__\":{\"bireal_jax\":" + quoted(file.spec) + "}", payload;
  for (const Tensor& t : file.tensors) {
    size_t begin = payload.size(), end = begin + t.bytes.size();
    if (random.one_in(200)) begin += random(16) - 8;
    if (random.one_in(200)) end = random.one_in(2) ? end + random(16) - 8 : size_t(1) << random(63);
    header += "," + quoted(t.name) + ":{\"dtype\":" + quoted(t.type) + ",\"shape\":" + list(t.shape) +
              ",\"data_offsets\":" + list({begin, end}) + "}";
    payload += t.bytes;
  }
  header += "}";
  while (header.size() % 8) header += ' ';
  uint64_t length = header.size();
  if (random.one_in(100)) length += random.one_in(2) ? random(64) - 32 : uint64_t(1) << random(64);
  std::string out(8, 0);
  std::memcpy(&out[0], &length, 8);
  return out + header + payload;
}

// Writes the digest, where there is a place for one.
void seal(std::string& file) {
  static const std::string mark = "\\\"digest\\\":\\\"";
  const size_t at = file.find(mark);
  if (at == std::string::npos || at + mark.size() + 64 > file.size()) return;
  file.replace(at + mark.size(), 64, 64, '0');
  bireal::Sha256 sha;
  sha.add(reinterpret_cast<const uint8_t*>(file.data()), file.size());
  file.replace(at + mark.size(), 64, sha.hex());
}

// --------------------------------------------------------------------------------------------------------- mutations

// A value in a JSON text; key: where its key begins, or begin.
struct Span {
  size_t key, begin, end;
  bool leaf;
};

// All of a text; until the next call.
const std::vector<Span>& spans(const std::string& text) {
  static std::vector<Span> found;  // static, here and below: under a sanitizer, getting memory takes the most time
  static std::vector<std::pair<size_t, size_t>> open;  // key and begin
  found.clear(), open.clear();
  size_t key = std::string::npos;
  auto add = [&](size_t begin, size_t end, bool leaf) {
    found.push_back({key == std::string::npos ? begin : key, begin, end, leaf});
    key = std::string::npos;
  };
  for (size_t i = 0; i < text.size(); i++) {
    const size_t begin = i;
    if (text[i] == '"') {
      for (i++; i < text.size() && text[i] != '"'; i++) i += text[i] == '\\';
      if (i + 1 < text.size() && text[i + 1] == ':') key = begin;
      else add(begin, std::min(i + 1, text.size()), true);
    } else if (text[i] == '{' || text[i] == '[') {
      open.emplace_back(key == std::string::npos ? i : key, i);
      key = std::string::npos;
    } else if (text[i] == '}' || text[i] == ']') {
      if (open.empty()) continue;
      key = open.back().first;
      add(open.back().second, i + 1, false);
      open.pop_back();
    } else if (!std::strchr(",: \n\t\r", text[i])) {
      while (i + 1 < text.size() && !std::strchr(",]} \n\t\r", text[i + 1])) i++;
      add(begin, i + 1, true);
    }
  }
  return found;
}

const std::vector<std::string> kinds = {"conv", "binary_conv", "affine", "add", "sign", "rprelu", "clip", "max_pool",
                                        "avg_pool", "mean", "subsample", "pad_channels", "concat", "reshape", "none"};
const std::vector<std::string> values = {
    "0", "1", "-1", "2", "3", "4", "7", "8", "15", "16", "17", "31", "32", "33", "63", "64", "65", "127", "255", "256",
    "65535", "65536", "65537", "268435456", "268435457", "2147483647", "2147483648", "4294967296", "4611686018427387904",
    "9223372036854775807", "18446744073709551616", "1e308", "1e309", "-1e400", "0e999", "0.5", "1e-9", "-0.0", "3.0",
    "3.4e38", "3.5e38", "01", "+1", "-", ".5", "1.", "1e", "NaN", "Infinity", "null", "true", "false", "[]", "{}", "\"\"",
    "\"a\\u0000b\"", "\"\\ud83d\\ude00\"", "\"\\ud83d\"", "\"\\udc00\\ud800\"", "\"\\u12\"", "\"\\x\"", "\"\xff\xfe\"",
    "[0,0]", "[1,1]", "[0,0,0,0]", "[1,1,1]", "[1,1,1,1]", "[2147483647,2147483647,2147483647]", "{\"a\":1,\"a\":1}",
    "123456789012345678901234567890123456789012345678901234567890"};

std::string nested(Random& random) {
  const size_t depth = random.one_in(4) ? random(4000) : random(12);
  const bool object = random.one_in(2);
  std::string out;
  for (size_t i = 0; i < depth; i++) out += object ? "{\"a\":" : "[";
  out += "1";
  return random.one_in(4) ? out : out + std::string(depth, object ? '}' : ']');
}

void mutate_text(std::string& text, Random& random) {
  const auto& all = spans(text);
  if (all.empty()) return;
  Span s = random.of(all);
  for (int i = 0; i < 4 && !s.leaf; i++) s = random.of(all);
  const std::string old = text.substr(s.begin, s.end - s.begin);
  auto put = [&](const std::string& value) { text.replace(s.begin, s.end - s.begin, value); };
  switch (random(10)) {
    case 0:
    case 1: return put(random.of(values));
    case 2: {
      const Span& other = random.of(all);
      return put(text.substr(other.begin, other.end - other.begin));
    }
    case 3:
    case 4: {
      const long number = std::strtol(old.c_str(), nullptr, 10) % (1l << 60), step = long(random(9)) - 4;
      return put(std::to_string(random.one_in(3) ? number * 2 : number + step));
    }
    case 5: return put(quoted(random.of(kinds)));
    case 6: {  // once more, or very often
      const std::string copy = text.substr(s.key, s.end - s.key) + ",";
      std::string copies;
      for (size_t n = random.one_in(30) ? random(3000) : 1; n && copies.size() < 60000; n--) copies += copy;
      text.insert(s.key, copies);
      return;
    }
    case 7: {
      const size_t end = s.end < text.size() && text[s.end] == ',' ? s.end + 1 : s.end;
      text.erase(s.key, end - s.key);
      return;
    }
    case 8: return put(random.one_in(4) ? nested(random) : old + std::string(random(3), ' '));
    default: {
      const size_t at = random(text.size());
      text[at] = random.one_in(2) ? text[random(text.size())] : char(random(256));
    }
  }
}

// Changes the header where it stands: the spec in it, or what is around the spec. Tensors and offsets stay. False where
// the header is not of the usual form.
bool mutate_header(std::string& file, Random& random) {
  static const std::string mark = "\"bireal_jax\":\"";
  static std::string header, spec;
  uint64_t length = 0;
  if (file.size() < 8) return false;
  std::memcpy(&length, file.data(), 8);
  if (length > file.size() - 8) return false;
  header.assign(file, 8, length);
  size_t begin = header.find(mark);
  if (begin == std::string::npos) return false;
  begin += mark.size();
  spec.clear();
  size_t end = begin;
  for (; end < header.size() && header[end] != '"'; end++) {
    if (header[end] == '\\' && end + 1 < header.size() && std::strchr("\"\\", header[end + 1])) end++;
    spec += header[end];
  }
  if (end >= header.size()) return false;
  for (size_t n = 1 + random(2); n; n--) mutate_text(spec, random);
  const std::string text = quoted(spec);
  header.replace(begin, end - begin, text, 1, text.size() - 2);
  if (random.one_in(4)) mutate_text(header, random);
  header.append((8 - header.size() % 8) % 8, ' ');
  file.replace(8, length, header);
  length = header.size();
  std::memcpy(&file[0], &length, 8);
  return true;
}

void mutate_tensor(File& file, Random& random) {
  if (file.tensors.empty()) return;
  const size_t number = random(file.tensors.size());
  Tensor& t = file.tensors[number];
  switch (random(8)) {
    case 0: t.type = random.of(std::vector<std::string>{"F32", "U8", "F64", "BOOL", "f32", "", "I8"}); break;
    case 1:
      if (t.shape.empty() || random.one_in(4)) t.shape.push_back(random(3));
      else t.shape[random(t.shape.size())] = random.one_in(3) ? size_t(1) << random(63) : random(20);
      break;
    case 2:
      if (!t.shape.empty()) t.shape.pop_back();
      break;
    case 3: t.name = std::to_string(random(12)) + "." + random.of(std::vector<std::string>{"weight", "scale", "offset"}); break;
    case 4: return file.tensors.push_back(Tensor(t));
    case 5: file.tensors.erase(file.tensors.begin() + number); return;
    case 6: std::swap(t, file.tensors[random(file.tensors.size())]); return;
    default: {
      static const uint32_t bits[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 1, 0x80000000, 0x3f800000};
      if (t.bytes.size() >= 4) std::memcpy(&t.bytes[random(t.bytes.size() / 4) * 4], &bits[random(7)], 4);
      return;
    }
  }
  size_t size = t.type == "F32" ? 4 : 1;
  for (size_t side : t.shape) size = std::min(size * std::min(side, size_t(1) << 20), size_t(1) << 20);
  if (size <= 8192 && !random.one_in(4)) t.bytes.resize(size, char(random(64)));
}

// ------------------------------------------------------------------------------------------------------- new networks

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

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  Random random(seed);
  std::string out(reinterpret_cast<const char*>(data), size);
  File file;
  if (random.one_in(infer ? 3 : 50)) {
    out = assemble(Maker(random).make(), random);
  } else if (!random.one_in(5) && mutate_header(out, random)) {
  } else if (open(out, file)) {
    for (size_t n = 1 + random(3); n; n--) random.one_in(4) ? mutate_tensor(file, random) : mutate_text(file.spec, random);
    out = assemble(file, random);
  } else {
    out.resize(max_size);
    out.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(&out[0]), size, max_size));
  }
  if (random.one_in(40) && !out.empty()) {  // cut, lengthened, or a byte changed
    const size_t at = random(out.size());
    if (random.one_in(3)) out.resize(at);
    else if (random.one_in(2)) out += std::string(1 + random(9), char(random(256)));
    else out[at] = char(random(256));
  }
  if (out.size() > max_size) out.resize(max_size);
  if (!random.one_in(8)) seal(out);
  std::memcpy(data, out.data(), out.size());
  return out.size();
}
