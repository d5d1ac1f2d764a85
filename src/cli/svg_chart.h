// Line charts as SVG, for reports without outside references.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace foresight {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

// Text as HTML and SVG write it.
std::string HtmlText(std::string_view text);

// All series in one chart, from y = 0. log_x: places by the logarithm of x.
std::string Chart(std::string_view x_name, std::string_view y_name, const std::vector<Series>& all,
                  bool log_x);

}  // namespace foresight
