// The replication's figures as one HTML page, each beside the paper's.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <set>

#include "cli/spec_bench.h"
#include "cli/spec_figures.h"
#include "cli/svg_chart.h"

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
constexpr std::string_view kPaperFigure3 =
    "accepted length rises with depth, most from one stage to two; two stages of DSpark pass five of DFlash "
    "in "
    "all domains";
constexpr std::string_view kPaperFigure6 =
    "ECE before and after, Alpaca, positions 1, 3, 5, 7: 5.7 to 2.0, 8.2 to 1.7, 5.8 to 0.8, 3.3 to 0.4 %; "
    "AUROC "
    ".818, .812, .864, .907";
constexpr std::string_view kPaperFigure4 = "gain over DFlash 15 to 18 % at length 7, 22 to 30 % at 15";
constexpr std::string_view kPaperFigure5 =
    "share of verified drafts that are accepted, threshold 0 to 0.8: chat 46 to 96 %, math 77 to 93 %, code "
    "68 to 92 %";
constexpr std::string_view kPaperFigure7 =
    "production V4-Flash: +60 to +85 % tokens/s per user over MTP-1 at matched throughput";
constexpr std::string_view kPaperFigure8 =
    "4 to 6 rows a request below about 200 concurrent ones, shrinking with load (MTP-1: 2)";

std::string Section(std::string_view title, std::string_view note, std::string_view paper,
                    std::string_view body) {
  return fmt::format("<section><h2>{}</h2><p>{}</p>{}<p class='paper'><b>The paper:</b> {}.</p></section>\n",
                     title, note, body, paper);
}

std::string AcceptanceTable(const SpecReport& report, double temperature) {
  const std::vector<std::string> domains = Distinct(report.acceptance, &AcceptanceRow::domain);
  std::string table = "<table><tr><th>drafter</th>";
  for (const std::string& d : domains) table += fmt::format("<th>{}</th>", HtmlText(d));
  table += "<th>macro</th></tr>";
  for (const std::string& setup : Distinct(report.acceptance, &AcceptanceRow::setup)) {
    table += fmt::format("<tr><td>{}</td>", HtmlText(setup));
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

// The points that no other passes in one coordinate without falling behind in the other, by the first.
std::vector<std::pair<double, double>> ParetoFront(
    const std::vector<SpeedRow>& rows,
    const std::function<std::pair<double, double>(const SpeedRow&)>& point) {
  std::vector<std::pair<double, double>> points;
  for (const SpeedRow& row : rows) points.push_back(point(row));
  std::sort(points.rbegin(), points.rend());
  std::vector<std::pair<double, double>> front;
  for (const auto& p : points) {
    if (front.empty() || p.second > front.back().second) front.push_back(p);
  }
  std::reverse(front.begin(), front.end());
  return front;
}

std::string DepthNote(const SpecReport& r) {
  std::set<int> depths;
  for (const HeadRow& head : r.heads) depths.insert(head.stages);
  std::string note = "Accepted length by the number of a head's stages, macro over domains, temperature 1.";
  if (depths.size() < 2) {
    note +=
        " All heads here have the same: recipes/train_draft.py --heads dspark-1,dspark,dspark-3 makes "
        "others, "
        "and --draft-heads takes them.";
  }
  return note;
}

std::string DepthTable(const SpecReport& r) {
  std::vector<HeadRow> heads = r.heads;
  std::stable_sort(heads.begin(), heads.end(),
                   [](const HeadRow& a, const HeadRow& b) { return a.stages < b.stages; });
  std::string table =
      "<table><tr><th>head</th><th>stages</th><th>rank of the sequential head</th>"
      "<th>accepted length</th></tr>";
  for (const HeadRow& head : heads) {
    table += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.2f}</td></tr>", HtmlText(head.setup),
                         head.stages, head.markov_rank, Macro(r.acceptance, head.setup, 1, AcceptedLength));
  }
  return table + "</table>";
}

std::string ReliabilitySection(const ReliabilityRow& row) {
  std::string body;
  for (const auto* positions : {&row.before, &row.after}) {
    std::vector<Series> all = {{"as predicted", {{0, 0}, {1, 1}}}};
    for (const std::vector<ReliabilityBin>& bins : *positions) {
      all.push_back({fmt::format("position {}", all.size()), {}});
      for (const ReliabilityBin& bin : bins) {
        // A bin of a few rounds says nothing.
        if (bin.rounds >= 20) all.back().points.emplace_back(bin.mean_predicted, bin.mean_observed);
      }
    }
    body += Chart(positions == &row.before ? "survival, before" : "survival, after", "accepted", all, false);
  }
  body +=
      "<table><tr><th>position</th><th>temperature</th><th>shift</th><th>weight of margin</th><th>ECE "
      "before</th><th>after</th><th>by "
      "chance</th>"
      "<th>AUROC</th><th>limit</th></tr>";
  for (size_t k = 0; k < row.fitted.scales.size(); ++k) {
    const PositionQuality& q = row.fitted.after[k];
    body += fmt::format(
        "<tr><td>{}</td><td>{:.2f}</td><td>{:.2f}</td><td>{:.2f}</td><td>{:.1f} %</td><td>{:.1f} "
        "%</td><td>{:.1f} "
        "%</td><td>{:.3f}</td>"
        "<td>{:.3f}</td></tr>",
        k + 1, row.fitted.scales[k].temperature, row.fitted.scales[k].shift,
        row.fitted.scales[k].margin_weight, 100 * row.fitted.before[k].ece, 100 * q.ece, 100 * q.ece_noise,
        q.auroc, q.auroc_best);
  }
  return Section(
      fmt::format("Reliability of confidences: {} (Figure 6)", SamplingRegimeName(row.fitted.regime)),
      "How often drafts of a predicted survival are accepted, with the head's confidences as they are and "
      "after sequential temperature scaling, on prompts that it was not fitted on. By chance: the ECE that "
      "right predictions would show on so few rounds. Limit: the AUROC of the true probabilities.",
      kPaperFigure6, body + "</table>");
}

// What only DSpark's heads have.
std::string DSparkSections(const SpecReport& r) {
  std::string page = Section("Depth (Figure 3)", DepthNote(r), kPaperFigure3, DepthTable(r));
  std::vector<Series> lengths = {{"dspark", {}}};
  for (const std::string& setup : Distinct(r.lengths, &AcceptanceRow::setup)) {
    lengths[0].points.emplace_back(std::stod(setup.substr(setup.find('=') + 1)),
                                   Macro(r.lengths, setup, 1, AcceptedLength));
  }
  page += Section("Proposal length (Figure 4)",
                  "Accepted length by block length, macro over domains; the head was trained for 5.",
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
  for (const ReliabilityRow& row : r.reliability) page += ReliabilitySection(row);
  return page;
}

std::string AcceptanceSections(const SpecReport& r) {
  std::string page;
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
  return r.heads.empty() ? page : page + DSparkSections(r);
}

std::string MatchedTable(const SpecReport& r) {
  const std::vector<MatchedSpeed> matched = AgainstMtp(r.load);
  std::string table = "<table><tr><th>setup</th>";
  for (const MatchedSpeed& m : matched) {
    if (m.setup == matched.front().setup) table += fmt::format("<th>{}</th>", m.concurrency);
  }
  for (const MatchedSpeed& m : matched) {
    if (m.concurrency == matched.front().concurrency)
      table += fmt::format("</tr><tr><td>{}</td>", HtmlText(m.setup));
    table += m.user_speed ? fmt::format("<td>{:.2f}</td>", *m.user_speed / m.mtp_user_speed)
                          : std::string("<td>-</td>");
  }
  return table + "</tr></table>";
}

// Of all domains together.
std::string LoadSections(const SpecReport& r) {
  std::string page;
  const auto throughput = [](const SpeedRow& row) {
    return std::pair(row.median_user_speed(), row.median_tokens_per_second());
  };
  std::vector<Series> setups = BySetup(r.load, throughput);
  setups.push_back({"Pareto front", ParetoFront(r.load, throughput)});
  page += Section(
      "Throughput against speed per user (Figure 7)",
      "One point for each number of concurrent requests; up and to the right is better. The Pareto front "
      "joins the points that no other beats in both.",
      kPaperFigure7, Chart("tokens/s per user", "tokens/s", setups, false));
  page += Section(
      "Speed per user at MTP-1's throughput (Figure 7)",
      "Times the speed of MTP-1's users, where MTP-1 serves so many requests at a time; - where a setup "
      "doesn't reach that throughput.",
      kPaperFigure7, MatchedTable(r));
  page += Section("Speed against no speculation, by concurrency",
                  "Ratios of times that were taken in turns of a twentieth of a second; below 1 "
                  "speculation loses. None again: "
                  "1 but for chance.",
                  kPaperFigure7,
                  Chart("concurrent requests", "times none",
                        BySetup(r.load,
                                [](const SpeedRow& row) {
                                  return std::pair(static_cast<double>(row.concurrency), row.ratio.value);
                                }),
                        true));
  page +=
      Section("Verification budget by concurrency (Figure 8)", "Rows a request has in a step that draws.",
              kPaperFigure8,
              Chart("concurrent requests", "rows a request",
                    BySetup(r.load,
                            [](const SpeedRow& row) {
                              return std::pair(static_cast<double>(row.concurrency), row.rows_per_request());
                            }),
                    true));
  return page;
}

std::string DomainSection(const SpecReport& r) {
  std::string table = "<table><tr><th>setup</th><th>requests</th>";
  const std::vector<std::string> domains = Distinct(r.domains, &SpeedRow::domain);
  for (const std::string& d : domains) table += fmt::format("<th>{}</th>", HtmlText(d));
  table += "</tr>";
  const std::vector<int> concurrency = Distinct(r.domains, &SpeedRow::concurrency);
  for (const std::string& setup : Distinct(r.domains, &SpeedRow::setup)) {
    for (int requests : concurrency) {
      table += fmt::format("<tr><td>{}</td><td>{}</td>", HtmlText(setup), requests);
      for (const SpeedRow& row : r.domains) {  // of a setup and load in the order of domains
        if (row.setup != setup || row.concurrency != requests) continue;
        table += fmt::format("<td class='{}'>{}</td>", row.ratio.value < 0.97 ? "loss" : "",
                             row.ratio.ToText("&plusmn;"));
      }
      table += "</tr>";
    }
  }
  return Section(
      "Speed by domain",
      "Times the speed of none, with intervals of 95 %; cases that lose more than 3 % in red. None "
      "again is 1 but for chance.",
      kPaperFigure7, table + "</table>");
}

}  // namespace

std::string SpecReportHtml(const SpecReport& r) {
  std::string page = fmt::format(
      "<!doctype html><html lang='en'><meta charset='utf-8'><title>Foresight: DSpark on a small "
      "model</title><style>"
      "body{{font:15px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}}"
      "svg{{font:11px system-ui,sans-serif}}table{{border-collapse:collapse;margin:.5rem "
      "0}}td,th{{padding:.2rem .6rem;"
      "border-bottom:1px solid #ddd;text-align:right}}td:first-child,th:first-child{{text-align:left}}"
      ".paper{{color:#666;font-size:13px}}.loss{{color:#b00}}</style>"
      "<h1>DSpark on a small model</h1><p><b>{}:</b> {}, {}, {} threads, answers of {} tokens. Speeds are "
      "ratios within "
      "one run.{}</p>\n",
      r.replayed.empty()
          ? std::string("A replication on a small model, not the paper's setting")
          : fmt::format("Step costs of random weights; which drafts are accepted is replayed from {}",
                        HtmlText(r.replayed)),
      HtmlText(r.model), HtmlText(r.machine), r.threads, r.max_tokens,
      r.missing.empty()
          ? ""
          : fmt::format(" Not compared, for there is no head: {}.", fmt::join(r.missing, ", ")));
  if (!r.acceptance.empty()) page += AcceptanceSections(r);
  if (!r.load.empty()) page += LoadSections(r);
  if (!r.domains.empty()) page += DomainSection(r);
  return page + "</html>\n";
}

}  // namespace foresight
