// The mutator of fuzz.cc. It knows the container: it changes what the header says or makes a new network, and mends
// lengths, offsets and the digest afterwards, most of the time: the checks behind the digest are what is to be reached.
// It is compiled without sanitizers, for speed.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "container.h"
#include "maker.h"
#include "random.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

const bool infer = std::getenv("BIREAL_FUZZ") && !std::strcmp(std::getenv("BIREAL_FUZZ"), "infer");

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
                                        "avg_pool", "mean", "subsample", "pad_channels", "concat", "reshape",
                                        "upsample", "none"};
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
