#include "format.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string_view>

#include "json.h"
#include "kernels.h"
#include "sha256.h"

namespace bireal {
namespace {

void check_digest(const uint8_t* data, size_t size, size_t header_end, std::string_view digest) {
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
  size_t shape[4], rank;
  const uint8_t* bytes;
  size_t size;
};

std::map<std::string_view, Data> read_tensors(const Json& header, const uint8_t* data, size_t size) {
  std::map<std::string_view, Data> tensors;
  std::vector<std::pair<size_t, size_t>> ranges;
  for (const Json& row : header.items()) {
    if (row.key == "__metadata__") continue;
    Data tensor{};
    const std::string_view type = row["dtype"].str("dtype");
    if (type != "U8" && type != "F32")
      throw Error("a tensor of type " + std::string(type.substr(0, 8)) + "; known: F32, U8");
    tensor.binary = type == "U8";
    uint64_t bytes = tensor.binary ? 1 : 4;
    for (const Json& side : row["shape"].list("shape", 0, 4)) {
      const size_t length = side.integer("a side of a tensor", 0, max_elements);
      tensor.shape[tensor.rank++] = length;
      bytes *= length;
      if (bytes > size) throw Error("a tensor is larger than the file");
    }
    const auto offsets = row["data_offsets"].list("data_offsets", 2, 2);
    size_t begin = offsets[0].integer("an offset", 0, size), end = offsets[1].integer("an offset", 0, size);
    if (begin > end || end - begin != bytes)
      throw Error("the offsets of " + std::string(row.key.substr(0, 40)) + " do not fit its shape");
    tensor.bytes = data + begin;
    tensor.size = end - begin;
    ranges.emplace_back(begin, end);
    tensors[row.key] = tensor;
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
  const auto sides = json.list("shape", 3, 3);
  Shape s{int(sides[0].integer("a side", 1, max_side)), int(sides[1].integer("a side", 1, max_side)),
          int(sides[2].integer("channels", 1, max_elements))};
  if (uint64_t(s.h) * s.w * s.c > max_elements) throw Error("a map has more than 2^28 elements");
  return s;
}

// What the engine makes of an operation is counted in size_t. Where that has 32 bits nothing comes near its end: maps,
// with their border and every channel padded, weights, and corrections for each kind of pixel at the border.
void check_32_bits(const Op& op) {
  if (sizeof(size_t) > 4) return;
  const auto padded = [](double n) { return n + 2 * unit; };
  const double rows = op.in.h + 2. * op.kh, columns = op.in.w + 2. * op.kw, taps = double(op.kh) * op.kw;
  const double filters = double(op.groups) * padded(double(op.out.c) / op.groups);
  const double classes = std::min(op.out.h, 2 * op.kh + 1) * double(std::min(op.out.w, 2 * op.kw + 1));
  for (double floats : {rows * columns * padded(op.in.c), double(op.out.pixels()) * padded(op.out.c),
                        taps * padded(op.in.c) * filters, 8 * op.kh * columns * padded(op.in.c), classes * filters})
    if (floats > 1 << 28) throw Error("a map or weight takes more than 1 GB, which is too much for 32 bits");
}

class Reader {
 public:
  Reader(const std::map<std::string_view, Data>& tensors) : tensors_(tensors) {}

  Op op(const Json& row, size_t index, const std::vector<Shape>& shapes) {
    static const std::map<std::string_view, Kind> kinds = {
        {"conv", Kind::conv}, {"binary_conv", Kind::binary_conv}, {"affine", Kind::affine}, {"add", Kind::add},
        {"sign", Kind::sign}, {"rprelu", Kind::rprelu}, {"clip", Kind::clip}, {"max_pool", Kind::max_pool},
        {"avg_pool", Kind::avg_pool}, {"mean", Kind::mean}, {"subsample", Kind::subsample},
        {"pad_channels", Kind::pad_channels}, {"concat", Kind::concat}, {"reshape", Kind::reshape},
        {"upsample", Kind::upsample}};
    const std::string_view name = row["op"].str("op");
    auto kind = kinds.find(name);
    if (kind == kinds.end())
      throw Error("operation " + std::string(name.substr(0, 40)) + " is not known; a newer version may have it");
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
      throw Error("operation " + std::to_string(index) + " (" + std::string(name) + ") gives another shape than the file says");
    check_32_bits(op);
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
    const auto sides = json.list("window or strides", 2, 2);
    h = sides[0].integer("window or stride", 1, most), w = sides[1].integer("window or stride", 1, most);
  }

  static void padding(Op& op, const Json& row, int most_h, int most_w) {
    const auto p = row["padding"].list("padding", 4, 4);
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
    if (op.in.c % op.groups || weight.rank != 4) throw Error("a convolution's weight or groups do not fit its input");
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
    if (tensor.binary || tensor.rank != 1 || tensor.shape[0] != size_t(count))
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

  const std::map<std::string_view, Data>& tensors_;
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

// How long a file is to be, as its header says: what was copied or fetched in part is shorter.
static double promised(const Json& header, size_t header_end) {
  double end = 0;
  for (const Json& row : header.items())
    for (const Json& item : row.items())
      if (item.key == "data_offsets" && item.type == Json::array && item.count == 2) {
        const Json& last = item.items()[1];
        if (last.type == Json::number) end = std::max(end, last.value);
      }
  return header_end + end;
}

static void check_whole(size_t size, double wanted, const char* least = "") {
  if (size < wanted && wanted < 9e15)
    throw Error("the file is cut off, or damaged: it has " + std::to_string(size) + " of the " + least +
                std::to_string(uint64_t(wanted)) + " bytes that its header promises");
}

Network parse(const uint8_t* data, size_t size) {
  uint64_t header_size = 0;
  if (size < 9) throw Error("the file is too short for a packed network");
  if (data[8] != '{') throw Error("no packed network: it does not begin like one");
  std::memcpy(&header_size, data, 8);
  if (header_size > max_header) throw Error("no packed network: its header is longer than 4 MB");
  check_whole(size, 8 + double(header_size), "at least ");
  const char* text = reinterpret_cast<const char*>(data) + 8;
  const Document outer(std::string_view(text, header_size));
  const Json& header = outer.root();
  check_whole(size, promised(header, 8 + header_size));
  const Document inner(header["__metadata__"]["bireal_jax"].str("the metadata"));
  const Json& spec = inner.root();
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
  for (const Json& label : spec["labels"].list("labels", 0, max_elements)) net.labels.emplace_back(label.str("a label"));

  std::vector<Shape> shapes{net.image};
  Reader reader(tensors);
  const auto rows = spec["ops"].list("ops", 1, max_ops);
  net.ops.reserve(rows.size());
  for (const Json& row : rows) {
    const size_t i = net.ops.size();
    net.ops.push_back(reader.op(row, i, shapes));
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
