// JSON as the header of a packed file has it: read once, without copying what needs no decoding.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <forward_list>
#include <string>
#include <string_view>
#include <vector>

#include "format.h"

namespace bireal {

// A value. Those that an object or a list holds follow it in memory, each with all of its own.
struct Json {
  enum Type { null, boolean, number, string, array, object } type = null;
  double value = 0;
  std::string_view text, key;  // of a string; in an object
  size_t count = 0, span = 1;  // of an object or a list: values directly in it, and in all, itself included

  class List {
   public:
    class Iterator {
     public:
      explicit Iterator(const Json* at) : at_(at) {}
      const Json& operator*() const { return *at_; }
      Iterator& operator++() { return at_ += at_->span, *this; }
      bool operator!=(const Iterator& other) const { return at_ != other.at_; }

     private:
      const Json* at_;
    };

    explicit List(const Json& json) : json_(&json) {}
    size_t size() const { return json_->count; }
    Iterator begin() const { return Iterator(json_ + 1); }
    Iterator end() const { return Iterator(json_ + json_->span); }
    const Json& operator[](size_t i) const {  // i < size(); passes those before it
      const Json* at = json_ + 1;
      while (i--) at += at->span;
      return *at;
    }

   private:
    const Json* json_;
  };

  List items() const { return List(*this); }  // none, where it is no object and no list

  const Json& operator[](std::string_view name) const {
    if (type == object)
      for (const Json& item : items())
        if (item.key == name) return item;
    throw Error("the header has no " + std::string(name));
  }
  List list(const char* what, size_t least, size_t most) const {
    if (type != array || count < least || count > most) throw Error(std::string("bad list: ") + what);
    return items();
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
  std::string_view str(const char* what) const {
    if (type != string) throw Error(std::string(what) + " is not a string");
    return text;
  }
};

// Reads a text, which has to outlive it; throws Error where it is not JSON.
class Document {
 public:
  explicit Document(std::string_view text) : at_(text.data()), end_(at_ + text.size()) {
    values_.reserve(std::min(text.size() / 4, max_values));
    value({}, 0);
    space();
    if (at_ != end_) fail();
  }
  Document(const Document&) = delete;

  const Json& root() const { return values_[0]; }

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
  bool word(std::string_view w) {
    if (std::string_view(at_, end_ - at_).substr(0, w.size()) != w) return false;
    at_ += w.size();
    return true;
  }

  void value(std::string_view key, int depth) {
    if (depth > 8) fail();  // nothing of ours is nested deeper
    const size_t self = values_.size();
    if (self == max_values) throw Error("the header has more than 131,072 values");
    values_.emplace_back();
    Json json;
    json.key = key;
    const char c = peek();
    if (c == '{' || c == '[') {
      json.type = c == '{' ? Json::object : Json::array;
      at_++;
      json.count = members(c == '{', depth);
      json.span = values_.size() - self;
    } else if (c == '"') {
      json.type = Json::string;
      json.text = string();
    } else if (c == '-' || digit()) {
      json.type = Json::number;
      json.value = number();
    } else if (word("true") || word("false")) {
      json.type = Json::boolean;
    } else if (!word("null")) {
      fail();
    }
    values_[self] = json;
  }

  // What stands between the brackets, and the closing one; returns how many values.
  size_t members(bool object, int depth) {
    const char close = object ? '}' : ']';
    const size_t keys = keys_.size();
    size_t count = 0;
    for (; peek() != close; count++) {
      if (count) expect(',');
      std::string_view key;
      if (object) {
        peek();
        keys_.push_back(key = string());
        expect(':');
      }
      value(key, depth + 1);
    }
    at_++;
    std::sort(keys_.begin() + keys, keys_.end());
    if (std::adjacent_find(keys_.begin() + keys, keys_.end()) != keys_.end()) throw Error("the header has a key twice");
    keys_.resize(keys);
    return count;
  }

  bool digit() const { return at_ != end_ && *at_ >= '0' && *at_ <= '9'; }

  // No strtod: it reads the locale's decimal point, and wants a zero at the end.
  double number() {
    const char* begin = at_;
    const bool negative = *at_ == '-';
    at_ += negative;
    if (!digit()) fail();
    const char* first = at_;
    double mantissa = 0;
    int exponent = 0;
    for (; digit(); at_++) mantissa = mantissa * 10 + (*at_ - '0');
    if (*first == '0' && at_ - first > 1) fail();
    if (at_ != end_ && *at_ == '.') {
      if (at_++, !digit()) fail();
      for (; digit(); at_++, exponent--) mantissa = mantissa * 10 + (*at_ - '0');
    }
    if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
      at_++;
      const bool down = at_ != end_ && *at_ == '-';
      at_ += down || (at_ != end_ && *at_ == '+');
      int e = 0;
      if (!digit()) fail();
      for (; digit(); at_++) e = std::min(e * 10 + (*at_ - '0'), 1000);
      exponent += down ? -e : e;
    }
    if (at_ - begin > 39) fail();  // no number of ours is longer
    if (exponent < 0) mantissa /= std::pow(10.0, -exponent);
    if (exponent > 0) mantissa *= std::pow(10.0, exponent);
    return negative ? -mantissa : mantissa;
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

  // Without its quotes, and decoded.
  std::string_view string() {
    if (at_ == end_ || *at_ != '"') fail();
    const char* begin = ++at_;
    bool plain = true;
    for (; at_ != end_ && *at_ != '"'; at_++) {
      if (static_cast<unsigned char>(*at_) < 32) fail();
      if (*at_ != '\\') continue;
      plain = false;
      if (++at_ == end_) fail();
    }
    if (at_ == end_) fail();
    const std::string_view raw(begin, at_ - begin);
    if (!plain) {
      at_ = begin;
      decoded_.push_front(decode(raw.size()));
    }
    at_++;
    return plain ? raw : decoded_.front();
  }

  // Up to the closing quote, which is there; size: of what it decodes, and no escape is shorter than what it means.
  std::string decode(size_t size) {
    std::string out(size, 0);
    char* to = &out[0];
    while (*at_ != '"') {
      if (*at_ != '\\') {
        *to++ = *at_++;
        continue;
      }
      at_++;
      switch (const char c = *at_++) {
        case '"': case '\\': case '/': *to++ = c; break;
        case 'b': *to++ = '\b'; break;
        case 'f': *to++ = '\f'; break;
        case 'n': *to++ = '\n'; break;
        case 'r': *to++ = '\r'; break;
        case 't': *to++ = '\t'; break;
        case 'u': to = utf8(code_point(), to); break;
        default: fail();
      }
    }
    out.resize(to - out.data());
    return out;
  }

  unsigned code_point() {
    const unsigned u = hex4();
    if (u < 0xd800 || u >= 0xdc00 || end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') return u;
    at_ += 2;
    return 0x10000 + ((u - 0xd800) << 10) + ((hex4() - 0xdc00) & 0x3ff);
  }

  static char* utf8(unsigned u, char* to) {
    if (u < 0x80) return *to++ = char(u), to;
    if (u < 0x800) *to++ = char(0xc0 | u >> 6);
    else if (u < 0x10000) *to++ = char(0xe0 | u >> 12), *to++ = char(0x80 | (u >> 6 & 63));
    else *to++ = char(0xf0 | u >> 18), *to++ = char(0x80 | (u >> 12 & 63)), *to++ = char(0x80 | (u >> 6 & 63));
    *to++ = char(0x80 | (u & 63));
    return to;
  }

  const char *at_, *end_;
  std::vector<Json> values_;
  std::vector<std::string_view> keys_;  // of the objects that are open
  std::forward_list<std::string> decoded_;
};

}  // namespace bireal
