// The container for mutate.cc: opened, put together again with mended lengths and offsets, and sealed with its digest.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#define bireal unchecked  // a copy of the reader for the mutator, not the one that is tested
#include "json.h"
#include "sha256.h"
#undef bireal
#include "random.h"

namespace bireal = unchecked;

namespace {

using bireal::Json;

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

}  // namespace
