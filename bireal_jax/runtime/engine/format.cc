#include "format.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

namespace bireal {
namespace {

// ---------------------------------------------------------------------------------------------------------- JSON

struct Json {
  enum Type { null, boolean, number, string, array, object } type = null;
  double value = 0;
  std::string text;
  std::vector<Json> items;
  std::vector<std::string> keys;  // of an object, one for each item

  const Json& operator[](const char* key) const {
    if (type == object)
      for (size_t i = 0; i < keys.size(); i++)
        if (keys[i] == key) return items[i];
    throw Error(std::string("the header has no ") + key);
  }
  const std::vector<Json>& list(const char* what, size_t least, size_t most) const {
    if (type != array || items.size() < least || items.size() > most) throw Error(std::string("bad list: ") + what);
    return items;
  }
  long integer(const char* what, long low, long high) const {
    if (type != number || !(value >= low && value <= high) || value != std::floor(value))
      throw Error(std::string(what) + " is not an integer from " + std::to_string(low) + " to " + std::to_string(high));
    return long(value);
  }
  float real(const char* what) const {
    float f = float(value);
    if (type != number || !std::isfinite(f)) throw Error(std::string(what) + " is not a finite number");
    return f;
  }
  const std::string& str(const char* what) const {
    if (type != string) throw Error(std::string(what) + " is not a string");
    return text;
  }
};

class Parser {
 public:
  Parser(const char* begin, const char* end) : at_(begin), end_(end) {}

  Json document() {
    Json json = value(0);
    space();
    if (at_ != end_) fail();
    return json;
  }

 private:
  [[noreturn]] static void fail() { throw Error("the header is not valid JSON"); }

  void space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) at_++;
  }
  char peek() {
    space();
    if (at_ == end_) fail();
    return *at_;
  }
  void expect(char c) {
    if (peek() != c) fail();
    at_++;
  }
  bool word(const char* w) {
    size_t n = std::strlen(w);
    if (size_t(end_ - at_) < n || std::memcmp(at_, w, n)) return false;
    at_ += n;
    return true;
  }

  Json value(int depth) {
    if (depth > 8) fail();  // nothing of ours is nested deeper
    if (++count_ > max_values) throw Error("the header has more than 131,072 values");
    Json json;
    char c = peek();
    if (c == '{' || c == '[') {
      char close = c == '{' ? '}' : ']';
      json.type = c == '{' ? Json::object : Json::array;
      at_++;
      if (peek() == close) return at_++, json;
      for (;;) {
        if (c == '{') {
          peek();
          json.keys.push_back(string());
          expect(':');
        }
        json.items.push_back(value(depth + 1));
        if (peek() == close) break;
        expect(',');
      }
      at_++;
      std::vector<std::string> sorted = json.keys;
      std::sort(sorted.begin(), sorted.end());
      if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) throw Error("the header has a key twice");
    } else if (c == '"') {
      json.type = Json::string;
      json.text = string();
    } else if (word("true") || word("false")) {
      json.type = Json::boolean;
    } else if (word("null")) {
    } else {
      json.type = Json::number;
      json.value = number();
    }
    return json;
  }

  double number() {
    char copy[40];
    size_t n = 0;
    while (at_ != end_ && n < sizeof copy - 1 && std::strchr("+-.0123456789eE", *at_) && *at_) copy[n++] = *at_++;
    copy[n] = 0;
    // No strtod: it reads the locale's decimal point.
    const char* p = copy;
    bool negative = *p == '-';
    p += negative;
    auto digit = [&] { return *p >= '0' && *p <= '9'; };
    if (!digit() || (*p == '0' && p[1] >= '0' && p[1] <= '9')) fail();
    double mantissa = 0;
    int exponent = 0;
    for (; digit(); p++) mantissa = mantissa * 10 + (*p - '0');
    if (*p == '.') {
      if (p++, !digit()) fail();
      for (; digit(); p++, exponent--) mantissa = mantissa * 10 + (*p - '0');
    }
    if (*p == 'e' || *p == 'E') {
      p++;
      bool down = *p == '-';
      p += down || *p == '+';
      int e = 0;
      if (!digit()) fail();
      for (; digit(); p++) e = std::min(e * 10 + (*p - '0'), 1000);
      exponent += down ? -e : e;
    }
    if (*p) fail();
    double v = exponent < 0 ? mantissa / std::pow(10.0, -exponent) : mantissa * std::pow(10.0, exponent);
    return negative ? -v : v;
  }

  unsigned hex4() {
    unsigned v = 0;
    for (int i = 0; i < 4; i++, at_++) {
      if (at_ == end_) fail();
      char c = *at_;
      v = v * 16 + (c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : (fail(), 0));
    }
    return v;
  }

  std::string string() {
    if (at_ == end_ || *at_ != '"') fail();
    at_++;
    std::string out;
    for (;;) {
      if (at_ == end_ || static_cast<unsigned char>(*at_) < 32) fail();
      char c = *at_++;
      if (c == '"') return out;
      if (c != '\\') {
        out += c;
        continue;
      }
      if (at_ == end_) fail();
      switch (c = *at_++) {
        case '"': case '\\': case '/': out += c; break;
        case 'b': out += '\b'; break;
        case 'f': out += '\f'; break;
        case 'n': out += '\n'; break;
        case 'r': out += '\r'; break;
        case 't': out += '\t'; break;
        case 'u': {
          unsigned u = hex4();
          if (u >= 0xd800 && u < 0xdc00 && end_ - at_ >= 2 && at_[0] == '\\' && at_[1] == 'u') {
            at_ += 2;
            u = 0x10000 + ((u - 0xd800) << 10) + ((hex4() - 0xdc00) & 0x3ff);
          }
          if (u < 0x80) out += char(u);
          else if (u < 0x800) out += char(0xc0 | u >> 6), out += char(0x80 | (u & 63));
          else if (u < 0x10000)
            out += char(0xe0 | u >> 12), out += char(0x80 | (u >> 6 & 63)), out += char(0x80 | (u & 63));
          else
            out += char(0xf0 | u >> 18), out += char(0x80 | (u >> 12 & 63)), out += char(0x80 | (u >> 6 & 63)),
                out += char(0x80 | (u & 63));
          break;
        }
        default: fail();
      }
    }
  }

  const char *at_, *end_;
  size_t count_ = 0;
};

// ---------------------------------------------------------------------------------------------------------- digests

class Sha256 {
 public:
  void add(const uint8_t* data, size_t size) {
    length_ += size;
    while (size) {
      size_t n = std::min(size, 64 - fill_);
      std::memcpy(block_ + fill_, data, n);
      fill_ += n, data += n, size -= n;
      if (fill_ == 64) compress(), fill_ = 0;
    }
  }
  std::string hex() {
    uint64_t bits = length_ * 8;
    uint8_t one = 0x80, zero = 0, tail[8];
    add(&one, 1);
    while (fill_ != 56) add(&zero, 1);
    for (int i = 0; i < 8; i++) tail[i] = uint8_t(bits >> (56 - 8 * i));
    add(tail, 8);
    std::string out;
    for (uint32_t word : state_)
      for (int shift = 28; shift >= 0; shift -= 4) out += "0123456789abcdef"[word >> shift & 15];
    return out;
  }

 private:
  static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

  void compress() {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
      w[i] = uint32_t(block_[4 * i]) << 24 | block_[4 * i + 1] << 16 | block_[4 * i + 2] << 8 | block_[4 * i + 3];
    for (int i = 16; i < 64; i++)
      w[i] = w[i - 16] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
             (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    std::memcpy(s, state_, sizeof s);
    for (int i = 0; i < 64; i++) {
      uint32_t a = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) +
                   k[i] + w[i];
      uint32_t b = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
                   ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      std::memmove(s + 1, s, 28);
      s[4] += a;
      s[0] = a + b;
    }
    for (int i = 0; i < 8; i++) state_[i] += s[i];
  }

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t block_[64];
  size_t fill_ = 0;
  uint64_t length_ = 0;
};

void check_digest(const uint8_t* data, size_t size, size_t header_end, const std::string& digest) {
  static const char mark[] = "\\\"digest\\\":\\\"";
  constexpr size_t length = sizeof mark - 1;
  const uint8_t* end = data + header_end;
  const uint8_t* found = std::search(data, end, mark, mark + length);
  if (found == end || size_t(end - found) < length + 64 || digest.size() != 64) throw Error("the header has no digest");
  found += length;
  if (std::memcmp(found, digest.data(), 64)) throw Error("the digest is not where it belongs");
  Sha256 sha;
  sha.add(data, found - data);
  sha.add(reinterpret_cast<const uint8_t*>(std::string(64, '0').data()), 64);
  sha.add(found + 64, data + size - found - 64);
  if (sha.hex() != digest) throw Error("the file is damaged: its digest does not fit; take another copy");
}

// ------------------------------------------------------------------------------------------------------- operations

struct Data {
  bool binary;  // uint8, else float32
  std::vector<size_t> shape;
  const uint8_t* bytes;
  size_t size;
};

std::map<std::string, Data> read_tensors(const Json& header, const uint8_t* data, size_t size) {
  std::map<std::string, Data> tensors;
  std::vector<std::pair<size_t, size_t>> ranges;
  for (size_t i = 0; i < header.items.size(); i++) {
    if (header.keys[i] == "__metadata__") continue;
    const Json& row = header.items[i];
    Data tensor;
    const std::string& type = row["dtype"].str("dtype");
    if (type != "U8" && type != "F32") throw Error("a tensor of type " + type.substr(0, 8) + "; known: F32, U8");
    tensor.binary = type == "U8";
    size_t bytes = tensor.binary ? 1 : 4;
    for (const Json& side : row["shape"].list("shape", 0, 4)) {
      tensor.shape.push_back(side.integer("a side of a tensor", 0, max_elements));
      bytes *= tensor.shape.back();
      if (bytes > size) throw Error("a tensor is larger than the file");
    }
    const auto& offsets = row["data_offsets"].list("data_offsets", 2, 2);
    size_t begin = offsets[0].integer("an offset", 0, size), end = offsets[1].integer("an offset", 0, size);
    if (begin > end || end - begin != bytes) throw Error("the offsets of " + header.keys[i].substr(0, 40) + " do not fit its shape");
    tensor.bytes = data + begin;
    tensor.size = bytes;
    ranges.emplace_back(begin, end);
    tensors[header.keys[i]] = tensor;
  }
  std::sort(ranges.begin(), ranges.end());
  size_t at = 0;
  for (auto& range : ranges) {
    if (range.first != at) throw Error("the tensors overlap or leave gaps");
    at = range.second;
  }
  if (at != size) throw Error("the file is cut short, or longer than its tensors");
  return tensors;
}

Shape read_shape(const Json& json) {
  const auto& sides = json.list("shape", 3, 3);
  Shape s{int(sides[0].integer("a side", 1, max_side)), int(sides[1].integer("a side", 1, max_side)),
          int(sides[2].integer("channels", 1, max_elements))};
  if (s.size() > max_elements) throw Error("a map has more than 2^28 elements");
  return s;
}

class Reader {
 public:
  Reader(const std::map<std::string, Data>& tensors) : tensors_(tensors) {}

  Op op(const Json& row, size_t index, const std::vector<Shape>& shapes) {
    static const std::map<std::string, Kind> kinds = {
        {"conv", Kind::conv}, {"binary_conv", Kind::binary_conv}, {"affine", Kind::affine}, {"add", Kind::add},
        {"sign", Kind::sign}, {"rprelu", Kind::rprelu}, {"clip", Kind::clip}, {"max_pool", Kind::max_pool},
        {"avg_pool", Kind::avg_pool}, {"mean", Kind::mean}, {"subsample", Kind::subsample},
        {"pad_channels", Kind::pad_channels}, {"concat", Kind::concat}, {"reshape", Kind::reshape},
        {"upsample", Kind::upsample}};
    const std::string& name = row["op"].str("op");
    auto kind = kinds.find(name);
    if (kind == kinds.end()) throw Error("operation " + name.substr(0, 40) + " is not known; a newer version may have it");
    Op op;
    op.kind = kind->second;
    bool several = op.kind == Kind::concat, two = op.kind == Kind::add;
    for (const Json& input : row["inputs"].list("inputs", two ? 2 : 1, several ? 16 : two ? 2 : 1))
      op.inputs.push_back(input.integer("an input", 0, shapes.size() - 1));
    op.in = shapes[op.inputs[0]];
    op.out = read_shape(row["shape"]);
    index_ = index;
    Shape expected = fill(op, row, shapes);
    if (expected.h != op.out.h || expected.w != op.out.w || expected.c != op.out.c)
      throw Error("operation " + std::to_string(index) + " (" + name + ") gives another shape than the file says");
    return op;
  }

  size_t used() const { return used_; }

 private:
  Shape fill(Op& op, const Json& row, const std::vector<Shape>& shapes) {
    const Shape in = op.in;
    switch (op.kind) {
      case Kind::conv:
      case Kind::binary_conv: return convolution(op, row);
      case Kind::affine: op.arrays[0] = channels("scale", in.c), op.arrays[1] = channels("offset", in.c); return in;
      case Kind::rprelu:
        op.arrays[0] = channels("shift_in", in.c), op.arrays[1] = channels("slope", in.c);
        op.arrays[2] = channels("shift_out", in.c);
        return in;
      case Kind::add: {
        const Shape other = shapes[op.inputs[1]];
        if (other.h != in.h || other.w != in.w || other.c != in.c) throw Error("maps of different shape are added");
        return in;
      }
      case Kind::sign: return in;
      case Kind::clip:
        op.low = row["low"].real("low"), op.high = row["high"].real("high"), op.leak = row["leak"].real("leak");
        if (!(op.low <= op.high)) throw Error("clip: low is above high");
        return in;
      case Kind::max_pool: {
        window(row["window"], op.kh, op.kw, max_window);
        window(row["strides"], op.sh, op.sw, max_window);
        padding(op, row, op.kh - 1, op.kw - 1);
        return slid(op, in.c);
      }
      case Kind::avg_pool:
        op.kh = op.kw = op.sh = op.sw = row["window"].integer("window", 1, max_window);
        return slid(op, in.c);
      case Kind::mean: return {1, 1, in.c};
      case Kind::subsample:
        op.sh = op.sw = row["stride"].integer("stride", 1, max_window);
        return slid(op, in.c);
      case Kind::pad_channels: {
        op.before = row["before"].integer("before", 0, max_elements);
        return {in.h, in.w, int(in.c + op.before + row["after"].integer("after", 0, max_elements))};
      }
      case Kind::concat: {
        Shape out = in;
        for (size_t i = 1; i < op.inputs.size(); i++) {
          const Shape other = shapes[op.inputs[i]];
          if (other.h != in.h || other.w != in.w) throw Error("maps of different size are concatenated");
          out.c += other.c;  // at most 16 times 2^28: fits
          if (size_t(out.c) > max_elements) throw Error("too many channels");
        }
        return out;
      }
      case Kind::reshape:
        if (in.size() != op.out.size()) throw Error("a reshape changes the number of elements");
        return op.out;
      case Kind::upsample:
        op.factor = row["factor"].integer("factor", 1, max_window);
        return {in.h * op.factor, in.w * op.factor, in.c};
    }
    throw Error("unreachable");
  }

  static void window(const Json& json, int& h, int& w, int most) {
    const auto& sides = json.list("window or strides", 2, 2);
    h = sides[0].integer("window or stride", 1, most), w = sides[1].integer("window or stride", 1, most);
  }

  static void padding(Op& op, const Json& row, int most_h, int most_w) {
    const auto& p = row["padding"].list("padding", 4, 4);
    op.top = p[0].integer("padding", 0, most_h), op.bottom = p[1].integer("padding", 0, most_h);
    op.left = p[2].integer("padding", 0, most_w), op.right = p[3].integer("padding", 0, most_w);
  }

  static Shape slid(const Op& op, int channels) {
    int h = op.in.h + op.top + op.bottom - op.kh, w = op.in.w + op.left + op.right - op.kw;
    if (h < 0 || w < 0) throw Error("a window is larger than the map");
    return {h / op.sh + 1, w / op.sw + 1, channels};
  }

  Shape convolution(Op& op, const Json& row) {
    const Data& weight = find("weight");
    const auto& s = weight.shape;
    op.groups = row["groups"].integer("groups", 1, op.in.c);
    if (op.in.c % op.groups || s.size() != 4) throw Error("a convolution's weight or groups do not fit its input");
    size_t cin = op.in.c / op.groups, cout = weight.binary ? s[0] : s[3];
    size_t kh = weight.binary ? s[1] : s[0], kw = weight.binary ? s[2] : s[1];
    if (kh < 1 || kw < 1 || kh > size_t(max_window) || kw > size_t(max_window) || !cout || cout % op.groups ||
        cout > max_elements || s[weight.binary ? 3 : 2] != (weight.binary ? (cin + 7) / 8 : cin))
      throw Error("a convolution's weight does not fit its input");
    op.kh = int(kh), op.kw = int(kw);
    window(row["strides"], op.sh, op.sw, max_window);
    padding(op, row, op.kh - 1, op.kw - 1);
    if (op.kind == Kind::binary_conv) {
      if (!weight.binary) throw Error("a binary convolution with a real-valued weight");
      op.pad = row["pad"].integer("pad", -1, 1);
      if (kh * kw * cin > size_t(max_binary_inputs)) throw Error("a binary convolution adds more than 65,535 products");
    }
    if (weight.binary) op.bits.assign(weight.bytes, weight.bytes + weight.size);
    else op.arrays[0] = floats(weight);
    return slid(op, int(cout));
  }

  std::vector<float> channels(const char* name, int count) {
    const Data& tensor = find(name);
    if (tensor.binary || tensor.shape.size() != 1 || tensor.shape[0] != size_t(count))
      throw Error(std::string(name) + " has not one number for each channel");
    return floats(tensor);
  }

  static std::vector<float> floats(const Data& tensor) {
    std::vector<float> values(tensor.size / 4);
    if (!values.empty()) std::memcpy(values.data(), tensor.bytes, tensor.size);
    for (float v : values)
      if (!std::isfinite(v)) throw Error("a weight is not finite");
    return values;
  }

  const Data& find(const char* name) {
    auto found = tensors_.find(std::to_string(index_) + "." + name);
    if (found == tensors_.end()) throw Error("operation " + std::to_string(index_) + " has no " + name);
    used_++;
    return found->second;
  }

  const std::map<std::string, Data>& tensors_;
  size_t index_ = 0, used_ = 0;
};

}  // namespace

std::vector<float> dense(const Op& op) {
  const size_t taps = size_t(op.kh) * op.kw, cin = op.in.c / op.groups, cout = op.out.c, bytes = (cin + 7) / 8;
  std::vector<float> weight(taps * cin * cout);
  for (size_t o = 0; o < cout; o++)
    for (size_t t = 0; t < taps; t++)
      for (size_t c = 0; c < cin; c++)
        weight[(t * cin + c) * cout + o] = op.bits[(o * taps + t) * bytes + c / 8] >> c % 8 & 1 ? 1.f : -1.f;
  return weight;
}

Network parse(const uint8_t* data, size_t size) {
  uint64_t header_size = 0;
  if (size < 8) throw Error("the file is too short for a packed network");
  std::memcpy(&header_size, data, 8);
  if (header_size > size - 8 || header_size > max_header)
    throw Error("no packed network: the header is longer than the file, or than 4 MB");
  const char* text = reinterpret_cast<const char*>(data) + 8;
  Json header = Parser(text, text + header_size).document();
  const std::string& inner = header["__metadata__"]["bireal_jax"].str("the metadata");
  Json spec = Parser(inner.data(), inner.data() + inner.size()).document();
  if (spec["format"].type != Json::number || spec["format"].value != 1)
    throw Error("the file has another format than 1; take a version of bireal_jax that reads it");
  check_digest(data, size, 8 + header_size, spec["digest"].str("digest"));
  auto tensors = read_tensors(header, data + 8 + header_size, size - 8 - header_size);

  Network net;
  const Json& image = spec["image"];
  net.image = read_shape(image["shape"]);
  for (const Json& v : image["mean"].list("mean", net.image.c, net.image.c)) net.mean.push_back(v.real("mean"));
  for (const Json& v : image["std"].list("std", net.image.c, net.image.c)) net.std.push_back(v.real("std"));
  for (float v : net.std)
    if (!(v > 1e-6f)) throw Error("std is not positive");
  for (const Json& label : spec["labels"].list("labels", 0, max_elements)) net.labels.push_back(label.str("a label"));

  std::vector<Shape> shapes{net.image};
  Reader reader(tensors);
  const auto& rows = spec["ops"].list("ops", 1, max_ops);
  for (size_t i = 0; i < rows.size(); i++) {
    net.ops.push_back(reader.op(rows[i], i, shapes));
    const Op& op = net.ops.back();
    if (op.kind == Kind::binary_conv && (!op.inputs[0] || net.ops[op.inputs[0] - 1].kind != Kind::sign))
      throw Error("operation " + std::to_string(i) + " (binary_conv) reads what is no sign");
    shapes.push_back(op.out);
    bool conv = op.kind == Kind::conv || op.kind == Kind::binary_conv;
    net.work += double(op.out.size()) * op.kh * op.kw * (conv ? op.in.c / op.groups : 1) + double(op.in.size());
  }
  if (reader.used() != tensors.size()) throw Error("the file has tensors that no operation uses");
  if (!net.labels.empty() && shapes.back().pixels() != 1)  // without labels it may be a map
    throw Error("the last operation does not give one number a class");
  if (!net.labels.empty() && net.labels.size() != size_t(shapes.back().c)) throw Error("the labels are not one for each output");
  return net;
}

}  // namespace bireal
