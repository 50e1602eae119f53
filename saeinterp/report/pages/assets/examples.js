/* Examples of a latent: tokens marked by colour and underline, truth, both verdicts, and the replies behind them. */

function tokenLine(example) {
  const line = element("span", { class: "tokens", dir: "auto" });
  example.tokens.forEach((token, index) => {
    const level = example.levels[index];
    if (!level) return line.append(token);
    const word = token.trimStart() || token; // the mark begins at the word, not at the space before it
    const mark = { class: "tok", "data-level": level, title: `activation ${example.shown[index]}`, vars: { "--level": level } };
    line.append(token.slice(0, token.length - word.length), element("span", mark, word));
  });
  return line;
}

function verdictCell(verdict, truth, side) {
  const who = element("span", { class: `tag side ${side}`, "aria-hidden": "true" }, side.toUpperCase()); // where columns have no heads
  if (!verdict) return element("td", { class: "v" }, who, "—");
  if (verdict.status !== "ok") return element("td", { class: "v ko" }, who, `– ${verdict.status}`);
  const right = verdict.verdict === truth;
  return element("td", { class: right ? "v ok" : "v ko" }, who, `${right ? "✓" : "✗"} ${verdict.verdict ? "yes" : "no"}`,
    element("span", { class: "visually-hidden" }, right ? " (right)" : " (wrong)"),
    verdict.p === null ? null : element("small", { title: "The scorer's probability of yes" }, `P(yes) ${verdict.p}`));
}

function rawReplies(example) {
  const lines = [["A", example.a], ["B", example.b]].filter(([, verdict]) => verdict && verdict.reply !== null);
  if (!lines.length) return null;
  return element("details", { class: "raw" }, element("summary", {}, "Raw replies"),
    ...lines.map(([who, verdict]) => element("div", {}, `${who}: `, element("code", {}, verdict.reply))));
}

function scoredTable(examples) {
  const rows = [];
  let band = null;
  for (const example of examples) {
    if (example.band !== band) {
      band = example.band;
      rows.push(element("tr", { class: "band-row" }, element("th", { colspan: 4, scope: "colgroup" }, band)));
    }
    rows.push(element("tr", {},
      element("td", { class: "v" }, example.truth ? "fires" : "silent"),
      verdictCell(example.a, example.truth, "a"),
      verdictCell(example.b, example.truth, "b"),
      element("td", { class: "text" }, tokenLine(example), element("span", { class: "reason" }, example.place), rawReplies(example))));
  }
  const heads = ["Truth", "A", "B", "Example"].map((text) => element("th", { scope: "col" }, text));
  return element("div", { class: "card scroll", role: "group", "aria-label": "Scored examples" },
    element("table", { class: "examples" }, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)));
}

/* The scored examples with their filter, then those the explainers were shown. */
function exampleParts(page) {
  const parts = [];
  if (page.score.length) {
    const judged = (e) => [e.a, e.b].filter((v) => v);
    const choices = [
      ["with a wrong or missing verdict", page.score.filter((e) => judged(e).some((v) => v.verdict !== e.truth))],
      ["on which A and B disagree", page.score.filter((e) => e.a && e.b && e.a.verdict !== e.b.verdict)],
    ];
    let list = scoredTable(page.score);
    const toggles = choices.map(([words, some]) => element("button", { class: "chip", type: "button", "aria-pressed": "false", on: { click(event) {
      const only = event.currentTarget.getAttribute("aria-pressed") !== "true";
      toggles.forEach((toggle) => toggle.setAttribute("aria-pressed", String(only && toggle === event.currentTarget)));
      const next = scoredTable(only ? some : page.score);
      list.replaceWith(next);
      list = next;
      reachable(next.parentElement);
    } } }, `Only the ${some.length} ${words}`));
    parts.push(element("section", {}, element("h3", {}, `${page.score.length} scored examples`),
      element("p", { class: "small quiet" }, `From documents that no explainer saw, strongest quantile first. ${page.legend}`), element("div", { class: "tools" }, ...toggles), list));
  }
  if (page.explain.length) {
    const shown = page.explain.map((example) => element("tr", {}, element("td", { class: "v" }, example.fires ? "fires" : "silent"), element("td", { class: "text" }, tokenLine(example), element("span", { class: "reason" }, example.place))));
    parts.push(element("section", {}, element("h3", {}, `${page.explain.length} examples shown to the explainers`),
      element("p", { class: "small quiet" }, "Top activations first, then other quantiles; the silent ones were shown by explainers that contrast."),
      element("div", { class: "card scroll", role: "group", "aria-label": "Examples shown to the explainers" },
        element("table", { class: "examples" }, element("tbody", {}, ...shown)))));
  }
  return parts;
}
