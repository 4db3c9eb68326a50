// std::format for standard libraries that lack it, such as libstdc++ before 13. mlx-c uses plain `{}` fields only.
#pragma once
#include <version>
#if defined(__cpp_lib_format)
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>

namespace std {

inline void format_to_stream(ostringstream& out, string_view text) {
  out << text;
}

template <typename First, typename... Rest>
void format_to_stream(ostringstream& out, string_view text, const First& first, const Rest&... rest) {
  const auto field = text.find("{}");
  out << text.substr(0, field);
  if (field != string_view::npos) {
    out << first;
    format_to_stream(out, text.substr(field + 2), rest...);
  }
}

template <typename... Args>
string format(string_view text, const Args&... args) {
  ostringstream out;
  format_to_stream(out, text, args...);
  return out.str();
}

} // namespace std
#endif
