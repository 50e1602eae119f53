/* The drawer: both labels side by side, every example with truth and verdicts, tokens marked by colour and underline. */

function makeDrawer(data, details) {
  const drawer = byId("drawer");
  const body = byId("drawer-body");
  const title = byId("drawer-title");
  let order = [];
  let current = 0;
  let onClose = () => {};

  function tokens(example) {
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

  function verdictCell(verdict, truth) {
    if (!verdict) return element("td", { class: "v" }, "—");
    if (verdict.status !== "ok") return element("td", { class: "v ko" }, `– ${verdict.status}`);
    const right = verdict.verdict === truth;
    return element("td", { class: right ? "v ok" : "v ko" }, `${right ? "✓" : "✗"} ${verdict.verdict ? "yes" : "no"}`,
      element("span", { class: "visually-hidden" }, right ? " (right)" : " (wrong)"),
      verdict.p === null ? null : element("small", { title: "P(match), the scorer's probability" }, `P ${verdict.p}`));
  }

  function replies(example) {
    const lines = [["A", example.a], ["B", example.b]].filter(([, verdict]) => verdict && verdict.reply !== null);
    if (!lines.length) return null;
    return element("details", { class: "raw" }, element("summary", {}, "Raw replies"),
      ...lines.map(([who, verdict]) => element("div", {}, `${who}: `, element("code", {}, verdict.reply))));
  }

  function scored(examples, two) {
    const rows = [];
    let band = null;
    for (const example of examples) {
      if (example.band !== band) {
        band = example.band;
        rows.push(element("tr", { class: "band-row" }, element("th", { colspan: two ? 4 : 3, scope: "colgroup" }, band)));
      }
      rows.push(element("tr", {},
        element("td", { class: "v" }, example.truth ? "fires" : "silent"),
        verdictCell(example.a, example.truth),
        two ? verdictCell(example.b, example.truth) : null,
        element("td", { class: "text" }, tokens(example), replies(example))));
    }
    const heads = ["Truth", "A", ...(two ? ["B"] : []), "Example"].map((text) => element("th", { scope: "col" }, text));
    return element("div", { class: "card scroll" },
      element("table", { class: "examples" }, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)));
  }

  function show(index) {
    current = index;
    const at = (name) => data.columns[name]?.[index];
    const detail = details[index];
    title.textContent = at("id");
    const facts = [at("hookpoint"), at("status_text"), `density ${at("density_text")}`, `fired on ${at("firings_text")} tokens`];
    const sides = data.sides.map((side) => {
      const measures = data.measures.map(([name, label]) => {
        const [value, bounds] = at(`${name}_${side.key}_text`).split(/ (?=\[)/);
        const text = element("dd", {}, value, bounds ? element("span", { class: "ci" }, ` ${bounds}`) : null);
        return element("div", { class: bounds ? "wide" : null }, element("dt", {}, label), text);
      });
      return element("div", { class: "card" },
        element("div", { class: "who" }, element("span", { class: `tag ${side.key}` }, side.key.toUpperCase()), element("span", {}, side.title)),
        element("p", { class: "what" }, at(`label_${side.key}`) ?? "no explanation",
          at(`reason_${side.key}`) ? element("span", { class: "reason" }, at(`reason_${side.key}`)) : null),
        element("dl", {}, ...measures,
          element("div", { class: "full" }, element("dt", {}, "Verdicts"), element("dd", {}, at(`counts_${side.key}_text`)))));
    });
    const lead = element("p", { class: "small quiet" }, facts.join(" · "));
    if (at("top_tokens")) lead.append(element("br"), "Tokens it fires on most: ", element("bdi", {}, at("top_tokens")));
    const parts = [lead, element("div", { class: "pair" }, ...sides)];
    if (!detail) {
      parts.push(element("p", { class: "quiet" }, data.no_detail));
    } else {
      if (detail.score.length) {
        const wrong = detail.score.filter((e) => [e.a, e.b].some((v) => v && v.verdict !== e.truth));
        let list = scored(detail.score, data.sides.length > 1);
        const toggle = element("button", { class: "chip", type: "button", "aria-pressed": "false", on: { click() {
          const only = toggle.getAttribute("aria-pressed") !== "true";
          toggle.setAttribute("aria-pressed", String(only));
          const next = scored(only ? wrong : detail.score, data.sides.length > 1);
          list.replaceWith(next);
          list = next;
        } } }, `Only the ${wrong.length} with a wrong or missing verdict`);
        parts.push(element("div", {}, element("h3", {}, `${detail.score.length} scored examples`), element("div", { class: "tools" }, toggle), list));
      }
      if (detail.explain.length) {
        const shown = detail.explain.map((example) => element("tr", {}, element("td", { class: "text" }, tokens(example))));
        parts.push(element("details", {}, element("summary", {}, `${detail.explain.length} examples shown to the explainers`),
          element("div", { class: "card scroll" }, element("table", { class: "examples" }, element("tbody", {}, ...shown)))));
      }
    }
    body.replaceChildren(...parts);
    drawer.scrollTop = 0;
    const place = order.indexOf(index);
    byId("drawer-previous").disabled = place <= 0;
    byId("drawer-next").disabled = place < 0 || place >= order.length - 1;
    history.replaceState(null, "", `#latent=${encodeURIComponent(at("id"))}`);
  }

  const step = (by) => {
    const next = order[order.indexOf(current) + by];
    if (next !== undefined) show(next);
  };
  byId("drawer-previous").addEventListener("click", () => step(-1));
  byId("drawer-next").addEventListener("click", () => step(1));
  byId("drawer-close").addEventListener("click", () => drawer.close());
  drawer.addEventListener("click", (event) => { if (event.target === drawer) drawer.close(); });
  drawer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  drawer.addEventListener("close", () => {
    history.replaceState(null, "", location.pathname + location.search);
    onClose(current);
  });

  return {
    open(index, among) {
      order = among;
      show(index);
      if (!drawer.open) drawer.showModal();
    },
    whenClosed(listener) { onClose = listener; },
  };
}
