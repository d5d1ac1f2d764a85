// What the replication found, as JSON, as one HTML page, and as text.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <set>

#include "cli/spec_bench.h"

namespace foresight {
namespace {

// Figures of the paper (arXiv 2607.05147), for the reader's eye beside ours; other models, other data.
constexpr std::string_view kPaperTable1 =
    "Qwen3-4B, block of 7: DSpark 6.11 to 3.29, DFlash 5.40 to 2.83, Eagle3 5.14 to 2.26 (GSM8K to "
    "Arena-Hard); macro "
    "gain over DFlash 16 to 18 %";
constexpr std::string_view kPaperFigure2 =
    "first position: DSpark .93 (math), DFlash .88; over the block DFlash falls (code .87 to .78, chat .72 "
    "to .63), "
    "DSpark stays flat";
constexpr std::string_view kPaperFigure4 = "gain over DFlash 15 to 18 % at length 7, 22 to 30 % at 15";
constexpr std::string_view kPaperFigure5 =
    "share of verified drafts that are accepted, threshold 0 to 0.8: chat 46 to 96 %, math 77 to 93 %, code "
    "68 to 92 %";
constexpr std::string_view kPaperFigure7 =
    "production V4-Flash: +60 to +85 % tokens/s per user over MTP-1 at matched throughput";
constexpr std::string_view kPaperFigure8 =
    "4 to 6 rows a request below about 200 concurrent ones, shrinking with load (MTP-1: 2)";

template <typename Row>
std::vector<std::string> Distinct(const std::vector<Row>& rows, std::string Row::*field) {
  std::vector<std::string> names;
  for (const Row& row : rows) {
    if (std::find(names.begin(), names.end(), row.*field) == names.end()) names.push_back(row.*field);
  }
  return names;
}

// The mean over domains of what `value` gives for the rows of a setup.
double Macro(const std::vector<AcceptanceRow>& rows, std::string_view setup, double temperature,
             const std::function<double(const AcceptanceRow&)>& value) {
  double sum = 0;
  int count = 0;
  for (const AcceptanceRow& row : rows) {
    if (row.setup != setup || row.temperature != temperature) continue;
    sum += value(row);
    ++count;
  }
  return count > 0 ? sum / count : 0;
}

double AcceptedLength(const AcceptanceRow& row) {
  return row.accepted_length();
}

// Of all domains together, by position; as long as at least 50 drafts reached it.
std::vector<double> ConditionalAcceptance(const std::vector<AcceptanceRow>& rows, std::string_view setup,
                                          double temperature, std::string_view domain = {}) {
  DraftCounts sum;
  for (const AcceptanceRow& row : rows) {
    if (row.setup == setup && row.temperature == temperature && (domain.empty() || row.domain == domain)) {
      sum.Add(row.drafts);
    }
  }
  std::vector<double> shares;
  for (int k = 0; k < kDraftPositionsMax && sum.reached[k] >= 50; ++k) {
    shares.push_back(static_cast<double>(sum.accepted[k]) / static_cast<double>(sum.reached[k]));
  }
  return shares;
}

double AcceptedShare(const AcceptanceRow& row) {
  const int64_t verified = row.drafts.total_verified();
  return verified > 0 ? static_cast<double>(row.drafts.total_accepted()) / static_cast<double>(verified) : 0;
}

std::string Numbers(const std::vector<double>& values) {
  return fmt::format("[{:.4f}]", fmt::join(values, ", "));
}

std::string ToJson(const AcceptanceRow& r) {
  auto counts = [](const std::array<int64_t, kDraftPositionsMax>& a) {
    return fmt::format("[{}]", fmt::join(a, ", "));
  };
  return fmt::format(
      "{{\"setup\": \"{}\", \"temperature\": {}, \"domain\": \"{}\", \"tokens\": {}, \"steps\": {}, "
      "\"accepted_length\": {:.4f}, \"verified\": {}, \"reached\": {}, \"accepted\": {}}}",
      r.setup, r.temperature, r.domain, r.completion_tokens, r.steps, r.accepted_length(),
      counts(r.drafts.verified), counts(r.drafts.reached), counts(r.drafts.accepted));
}

std::string ToJson(const SpeedRow& r) {
  return fmt::format(
      "{{\"setup\": \"{}\", \"domain\": \"{}\", \"concurrency\": {}, \"tokens_per_second\": {}, "
      "\"ratio_to_none\": {}, "
      "\"median_ratio\": {:.4f}, \"rows_per_request\": {:.3f}}}",
      r.setup, r.domain, r.concurrency, Numbers(r.tokens_per_second), Numbers(r.ratio_to_none),
      r.median_ratio(), r.verified_per_request);
}

template <typename Row>
std::string List(const std::vector<Row>& rows) {
  std::string text = "[";
  for (const Row& row : rows) text += (text.size() > 1 ? ",\n    " : "\n    ") + ToJson(row);
  return text + "\n  ]";
}

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

constexpr std::array<std::string_view, 8> kColours = {"#1b6ca8", "#d1495b", "#2e8b57", "#8a5fbf",
                                                      "#e08e0b", "#555555", "#00a3a3", "#a0522d"};

// A line chart as SVG. log_x: positions by logarithm of x.
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
          sy(y), colour, all[i].name, x, y);
    }
    svg += fmt::format("<polyline points='{}' fill='none' stroke='{}' stroke-width='2'/>", line, colour);
    svg += fmt::format("<rect x='{}' y='{}' width='12' height='4' fill='{}'/><text x='{}' y='{}'>{}</text>",
                       kLeft, kHeight + 18 * i + 4, colour, kLeft + 18, kHeight + 18 * i + 10, all[i].name);
  }
  return svg + "</svg>";
}

std::string Section(std::string_view title, std::string_view note, std::string_view paper,
                    std::string_view body) {
  return fmt::format("<section><h2>{}</h2><p>{}</p>{}<p class='paper'><b>The paper:</b> {}.</p></section>\n",
                     title, note, body, paper);
}

std::string AcceptanceTable(const SpecReport& report, double temperature) {
  const std::vector<std::string> domains = Distinct(report.acceptance, &AcceptanceRow::domain);
  std::string table = "<table><tr><th>drafter</th>";
  for (const std::string& d : domains) table += fmt::format("<th>{}</th>", d);
  table += "<th>macro</th></tr>";
  for (const std::string& setup : Distinct(report.acceptance, &AcceptanceRow::setup)) {
    table += fmt::format("<tr><td>{}</td>", setup);
    for (const std::string& domain : domains) {
      for (const AcceptanceRow& row : report.acceptance) {
        if (row.setup == setup && row.domain == domain && row.temperature == temperature) {
          table += fmt::format("<td>{:.2f}</td>", row.accepted_length());
        }
      }
    }
    table += fmt::format("<td><b>{:.2f}</b></td></tr>",
                         Macro(report.acceptance, setup, temperature, AcceptedLength));
  }
  return table + "</table>";
}

std::string BestMtp(const SpecReport& report, double temperature) {
  std::string best;
  double length = 0;
  for (const std::string& setup : Distinct(report.acceptance, &AcceptanceRow::setup)) {
    const double macro = Macro(report.acceptance, setup, temperature, AcceptedLength);
    if (setup.starts_with("mtp") && macro > length) {
      best = setup;
      length = macro;
    }
  }
  return best;
}

std::vector<Series> BySetup(const std::vector<SpeedRow>& rows,
                            const std::function<std::pair<double, double>(const SpeedRow&)>& point) {
  std::vector<Series> all;
  for (const std::string& setup : Distinct(rows, &SpeedRow::setup)) {
    all.push_back({setup, {}});
    for (const SpeedRow& row : rows) {
      if (row.setup == setup) all.back().points.push_back(point(row));
    }
  }
  return all;
}

}  // namespace

std::string SpecReportJson(const SpecReport& r) {
  return fmt::format(
      "{{\n  \"format\": \"foresight-spec-bench\", \"version\": 1, \"foresight\": \"{}\",\n  \"model\": "
      "\"{}\", "
      "\"processor\": \"{}\", \"threads\": {}, \"max_tokens\": {}, \"requests_per_domain\": {},\n"
      "  \"acceptance\": {},\n  \"block_lengths\": {},\n  \"thresholds\": {},\n  \"load\": {},\n  "
      "\"batch_1_by_domain\": "
      "{}\n}}\n",
      FORESIGHT_VERSION, r.model, r.machine, r.threads, r.max_tokens, r.requests_per_domain,
      List(r.acceptance), List(r.lengths), List(r.thresholds), List(r.load), List(r.domains));
}

std::string SpecReportHtml(const SpecReport& r) {
  std::string page = fmt::format(
      "<!doctype html><html lang='en'><meta charset='utf-8'><title>Foresight: DSpark on a small "
      "model</title><style>"
      "body{{font:15px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}}"
      "svg{{font:11px system-ui,sans-serif}}table{{border-collapse:collapse;margin:.5rem "
      "0}}td,th{{padding:.2rem .6rem;"
      "border-bottom:1px solid #ddd;text-align:right}}td:first-child,th:first-child{{text-align:left}}"
      ".paper{{color:#666;font-size:13px}}.loss{{color:#b00}}</style>"
      "<h1>DSpark on a small model</h1><p><b>A replication on a small model, not the paper's setting:</b> "
      "{}, {}, {} "
      "threads, {} requests a domain of {} tokens each. Speeds are ratios within one run.</p>\n",
      r.model, r.machine, r.threads, r.requests_per_domain, r.max_tokens);
  for (double temperature : {1.0, 0.0}) {
    page += Section(fmt::format("Accepted length, temperature {:g} (Table 1)", temperature),
                    "Tokens per verification, the target's own included; every draft is verified in full.",
                    kPaperTable1, AcceptanceTable(r, temperature));
  }
  std::vector<Series> positions;
  for (const std::string& setup : Distinct(r.acceptance, &AcceptanceRow::setup)) {
    if (setup.starts_with("mtp") && setup != "mtp k=5") continue;
    Series s{setup, {}};
    for (double share : ConditionalAcceptance(r.acceptance, setup, 1)) {
      s.points.emplace_back(static_cast<double>(s.points.size() + 1), share);
    }
    positions.push_back(std::move(s));
  }
  page += Section("Conditional acceptance by position (Figure 2)",
                  "How often a draft is accepted when all before it were; all domains, temperature 1.",
                  kPaperFigure2, Chart("position", "accepted", positions, false));
  std::vector<Series> lengths = {{"dspark", {}}};
  for (const std::string& setup : Distinct(r.lengths, &AcceptanceRow::setup)) {
    lengths[0].points.emplace_back(std::stod(setup.substr(setup.find('=') + 1)),
                                   Macro(r.lengths, setup, 1, AcceptedLength));
  }
  page += Section("Proposal length (Figure 4)",
                  "Accepted length by block length, macro over domains; the head was trained for 5. Depth "
                  "(Figure 3) needs "
                  "heads of other depths and is not measured.",
                  kPaperFigure4, Chart("block length", "accepted length", lengths, false));
  std::vector<Series> thresholds = {{"accepted share of verified drafts", {}}, {"tokens a step / 4", {}}};
  for (const std::string& setup : Distinct(r.thresholds, &AcceptanceRow::setup)) {
    const double at = std::stod(setup.substr(setup.find(' ') + 1));
    thresholds[0].points.emplace_back(at, Macro(r.thresholds, setup, 1, AcceptedShare));
    thresholds[1].points.emplace_back(at, Macro(r.thresholds, setup, 1, AcceptedLength) / 4);
  }
  page += Section("Confidence threshold (Figure 5)",
                  "Verification stops at the first confidence below the threshold.", kPaperFigure5,
                  Chart("threshold", "share", thresholds, false));
  page += Section("Throughput against speed per user (Figure 7)",
                  "One point for each number of concurrent requests; up and to the right is better.",
                  kPaperFigure7,
                  Chart("tokens/s per user", "tokens/s",
                        BySetup(r.load,
                                [](const SpeedRow& row) {
                                  return std::pair(row.median_tokens_per_second() / row.concurrency,
                                                   row.median_tokens_per_second());
                                }),
                        false));
  page += Section("Speed against no speculation, by concurrency",
                  "Medians of ratios within a repetition; below 1 speculation loses.", kPaperFigure7,
                  Chart("concurrent requests", "times none",
                        BySetup(r.load,
                                [](const SpeedRow& row) {
                                  return std::pair(static_cast<double>(row.concurrency), row.median_ratio());
                                }),
                        true));
  page += Section("Verification budget by concurrency (Figure 8)", "Rows a request has in a step that draws.",
                  kPaperFigure8,
                  Chart("concurrent requests", "rows a request",
                        BySetup(r.load,
                                [](const SpeedRow& row) {
                                  return std::pair(static_cast<double>(row.concurrency),
                                                   row.verified_per_request);
                                }),
                        true));
  std::string table = "<table><tr><th>setup</th>";
  const std::vector<std::string> domains = Distinct(r.domains, &SpeedRow::domain);
  for (const std::string& d : domains) table += fmt::format("<th>{}</th>", d);
  table += "</tr>";
  for (const std::string& setup : Distinct(r.domains, &SpeedRow::setup)) {
    table += fmt::format("<tr><td>{}</td>", setup);
    for (const std::string& domain : domains) {
      for (const SpeedRow& row : r.domains) {
        if (row.setup != setup || row.domain != domain) continue;
        table += fmt::format("<td class='{}'>{:.2f}</td>", row.median_ratio() < 0.97 ? "loss" : "",
                             row.median_ratio());
      }
    }
    table += "</tr>";
  }
  page += Section("One request at a time, by domain",
                  "Times the speed of none; cases that lose more than 3 % in red.", kPaperFigure7,
                  table + "</table>");
  return page + "</html>\n";
}

std::string SpecReportText(const SpecReport& r) {
  std::string text;
  for (double temperature : {1.0, 0.0}) {
    text +=
        fmt::format("accepted length, temperature {:g}; conditional acceptance by position\n", temperature);
    for (const std::string& setup : Distinct(r.acceptance, &AcceptanceRow::setup)) {
      text += fmt::format("  {:<14}", setup);
      for (const AcceptanceRow& row : r.acceptance) {
        if (row.setup == setup && row.temperature == temperature) {
          text += fmt::format(" {} {:.2f}", row.domain, row.accepted_length());
        }
      }
      text += fmt::format("  macro {:.3f};", Macro(r.acceptance, setup, temperature, AcceptedLength));
      for (double share : ConditionalAcceptance(r.acceptance, setup, temperature))
        text += fmt::format(" {:.0f} %", 100 * share);
      text += "\n";
    }
    const std::string mtp = BestMtp(r, temperature);
    const double dspark = Macro(r.acceptance, "dspark k=5", temperature, AcceptedLength);
    const double dflash = Macro(r.acceptance, "dflash k=5", temperature, AcceptedLength);
    text += fmt::format("  dspark over {}: {:+.1f} %", mtp,
                        100 * (dspark / Macro(r.acceptance, mtp, temperature, AcceptedLength) - 1));
    if (dflash > 0) text += fmt::format(", over dflash: {:+.1f} %", 100 * (dspark / dflash - 1));
    text += "\n";
  }
  for (const auto* rows : {&r.load, &r.domains}) {
    text += rows == &r.load ? "speed, times none, by concurrent requests\n"
                            : "speed of one request, times none, by domain\n";
    for (const std::string& setup : Distinct(*rows, &SpeedRow::setup)) {
      text += fmt::format("  {:<14}", setup);
      for (const SpeedRow& row : *rows) {
        if (row.setup != setup) continue;
        const std::string at = rows == &r.load ? fmt::format("{}", row.concurrency) : row.domain;
        text += setup == "none" ? fmt::format(" {}: {:.0f} tokens/s", at, row.median_tokens_per_second())
                                : fmt::format(" {}: {:.2f}", at, row.median_ratio());
      }
      text += "\n";
    }
  }
  return text;
}

}  // namespace foresight
