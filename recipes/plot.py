#!/usr/bin/env python3
"""Draws recall and held-out loss of an evaluation.json as one SVG."""
import argparse
import json


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluation")
    parser.add_argument("out")
    args = parser.parse_args()
    with open(args.evaluation, encoding="utf-8") as f:
        result = json.load(f)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="760" height="300" font-family="sans-serif" font-size="12">',
           '<rect width="760" height="300" fill="white"/>',
           '<text x="50" y="20" font-weight="bold">Needle recall by depth (exported)</text>',
           '<text x="440" y="20" font-weight="bold">Held-out bits per byte</text>']
    colours = ["#4c78a8", "#f58518", "#54a24b"]
    for share in (0, 0.5, 1):
        y = 250 - 200 * share
        out.append(f'<path d="M50 {y}H370" stroke="#ddd"/><text x="44" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
    for depth in (0, 0.5, 1):
        out.append(f'<text x="{50 + 320 * depth}" y="268" text-anchor="middle">{depth:.1f}</text>')
    for colour, (length, styles) in zip(colours, result["recall"]["exported"].items()):
        points = [(float(d), v) for d, v in styles["text"].items() if d not in ("mean", "trials_per_depth")]
        line = " ".join(f"{50 + 320 * d:.1f},{250 - 200 * v:.1f}" for d, v in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{60 + 110 * colours.index(colour)}" y="290" fill="{colour}">{length} tokens</text>')
    for group, domain in enumerate(result["loss"]["exported"]):
        for bar, (state, colour) in enumerate((("exported", colours[0]), ("5-gram", "#bbb"))):
            value = result["loss"][state][domain]["bits_per_byte"]
            x, height = 450 + 100 * group + 36 * bar, 110 * value
            out.append(f'<rect x="{x}" y="{250 - height:.1f}" width="32" height="{height:.1f}" fill="{colour}"/>'
                       f'<text x="{x + 16}" y="{244 - height:.1f}" text-anchor="middle">{value:.2f}</text>')
        out.append(f'<text x="{484 + 100 * group}" y="268" text-anchor="middle">{domain}</text>')
    out.append(f'<text x="450" y="290" fill="{colours[0]}">this model</text><text x="550" y="290" fill="#888">5-gram</text></svg>')
    with open(args.out, "w", encoding="utf-8") as f:
        f.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
