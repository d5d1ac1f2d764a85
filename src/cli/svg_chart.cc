#include "cli/svg_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

namespace foresight {
namespace {

constexpr std::array<std::string_view, 8> kColours = {"#1b6ca8", "#d1495b", "#2e8b57", "#8a5fbf",
                                                      "#e08e0b", "#555555", "#00a3a3", "#a0522d"};

}  // namespace

std::string HtmlText(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else {
      out += c;
    }
  }
  return out;
}

std::string Chart(std::string_view x_name, std::string_view y_name, const std::vector<Series>& all,
                  bool log_x) {
  constexpr double kWidth = 460, kHeight = 300, kLeft = 52, kBottom = 40, kTop = 12, kRight = 12;
  double x_min = 1e300, x_max = -1e300, y_max = 0;
  auto place = [&](double x) { return log_x ? std::log2(std::max(x, 1e-9)) : x; };
  for (const Series& s : all) {
    for (auto [x, y] : s.points) {
      x_min = std::min(x_min, place(x));
      x_max = std::max(x_max, place(x));
      y_max = std::max(y_max, y);
    }
  }
  if (x_max < x_min || y_max <= 0) return "<p>nothing was measured</p>";
  if (x_max == x_min) x_max = x_min + 1;
  const double unit = std::pow(10.0, std::floor(std::log10(y_max)));
  const double tick = y_max / unit > 5 ? unit : y_max / unit > 2 ? unit / 2 : unit / 5;
  const double y_top = std::ceil(y_max / tick) * tick;
  auto sx = [&](double x) {
    return kLeft + (place(x) - x_min) / (x_max - x_min) * (kWidth - kLeft - kRight);
  };
  auto sy = [&](double y) { return kHeight - kBottom - y / y_top * (kHeight - kBottom - kTop); };
  std::string svg = fmt::format("<svg viewBox='0 0 {} {}' width='{}' role='img'>", kWidth,
                                kHeight + 18 * all.size(), kWidth);
  for (double y = 0; y <= y_top * 1.0001; y += tick) {
    svg += fmt::format(
        "<line x1='{}' x2='{}' y1='{:.1f}' y2='{:.1f}' stroke='#ddd'/><text x='{}' y='{:.1f}' "
        "text-anchor='end'>{:g}</text>",
        kLeft, kWidth - kRight, sy(y), sy(y), kLeft - 6, sy(y) + 4, y);
  }
  std::set<double> xs;
  for (const Series& s : all) {
    for (auto [x, y] : s.points) xs.insert(x);
  }
  if (xs.size() <= 12) {
    for (double x : xs) {
      svg += fmt::format("<text x='{:.1f}' y='{}' text-anchor='middle'>{:.4g}</text>", sx(x),
                         kHeight - kBottom + 16, x);
    }
  } else {
    for (double x : {*xs.begin(), *xs.rbegin()}) {
      svg += fmt::format("<text x='{:.1f}' y='{}' text-anchor='middle'>{:.4g}</text>", sx(x),
                         kHeight - kBottom + 16, x);
    }
  }
  svg += fmt::format("<text x='{}' y='{}' text-anchor='middle'>{}</text>", kWidth / 2, kHeight - 6, x_name);
  svg += fmt::format("<text x='12' y='{}' transform='rotate(-90 12 {})' text-anchor='middle'>{}</text>",
                     kHeight / 2, kHeight / 2, y_name);
  for (size_t i = 0; i < all.size(); ++i) {
    const std::string_view colour = kColours[i % kColours.size()];
    std::string line;
    for (auto [x, y] : all[i].points) {
      line += fmt::format("{:.1f},{:.1f} ", sx(x), sy(y));
      svg += fmt::format(
          "<circle cx='{:.1f}' cy='{:.1f}' r='3' fill='{}'><title>{}: {:.4g}, {:.4g}</title></circle>", sx(x),
          sy(y), colour, HtmlText(all[i].name), x, y);
    }
    svg += fmt::format("<polyline points='{}' fill='none' stroke='{}' stroke-width='2'/>", line, colour);
    svg += fmt::format("<rect x='{}' y='{}' width='12' height='4' fill='{}'/><text x='{}' y='{}'>{}</text>",
                       kLeft, kHeight + 18 * i + 4, colour, kLeft + 18, kHeight + 18 * i + 10,
                       HtmlText(all[i].name));
  }
  return svg + "</svg>";
}

}  // namespace foresight
