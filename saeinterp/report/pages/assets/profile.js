/* A latent's profile: how strongly it fires, the tokens it goes with, what it writes, and its neighbours. */

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/* Bars on a logarithmic scale: counts of activations fall off by powers of ten. The table behind holds every count. */
function histogram(bars, title) {
  if (!bars.bars.length) return null;
  const width = 300, height = 64, step = width / bars.bars.length;
  const tallest = Math.log1p(Math.max(...bars.bars));
  const marks = bars.bars.map((count, index) => {
    const tall = count ? Math.max(1.5, height * Math.log1p(count) / tallest) : 0;
    return svg("rect", { x: index * step + 0.5, y: height - tall, width: Math.max(0.5, step - 1), height: tall }, svg("title", {}, bars.texts[index]));
  });
  const rows = bars.texts.map((text) => text.split(": ")).map(([range, count]) => element("tr", {}, element("th", { scope: "row" }, range), element("td", { class: "r" }, count)));
  return element("figure", { class: "bars" },
    svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}. ${bars.caption} The counts are in the table below.` }, ...marks),
    element("div", { class: "ends", "aria-hidden": "true" }, ...bars.ends.map((end) => element("span", {}, end))),
    element("figcaption", { class: "small quiet" }, `${bars.caption} Heights are logarithmic.`),
    element("details", {}, element("summary", {}, "Counts"), element("div", { class: "scroll" }, element("table", {}, element("tbody", {}, ...rows)))));
}

function panel(title, ...children) {
  return element("section", { class: "card pad panel" }, element("h3", {}, title), ...children);
}

function tokenPanel(profile) {
  if (!profile.tokens.length) return null;
  const rows = profile.tokens.map(([token, rate, counts, share]) => {
    const [value, bounds] = rate.split(/ (?=\[)/);
    return element("tr", {}, element("th", { scope: "row" }, element("code", { dir: "auto" }, token)),
      element("td", { class: "r" }, value, bounds ? element("span", { class: "ci" }, bounds) : null, element("span", { class: "reason" }, counts)),
      element("td", { class: "r" }, share));
  });
  const heads = [["Token", ""], ["Fires on it", "r"], ["Of its firings", "r"]].map(([text, kind]) => element("th", { scope: "col", class: kind }, text));
  return panel("Tokens it goes with", element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows))),
    element("p", { class: "small quiet" }, profile.tokens_note));
}

function logitPanel(profile) {
  const list = (rows, title) => element("div", {}, element("h4", {}, title),
    element("ol", { class: "logits" }, ...rows.map(([token, value]) => element("li", {}, element("code", { dir: "auto" }, token), element("span", {}, value)))));
  return panel("Logits", element("div", { class: "two" }, list(profile.logits.down, "Lowered most"), list(profile.logits.up, "Raised most")), histogram(profile.logits, "Histogram of logits"));
}

function neighbourPanel(profile, rowOf, open) {
  if (!profile.neighbours.length) return null;
  const rows = profile.neighbours.map(([id, cosine, word]) => {
    const row = rowOf(id);
    const name = row === undefined ? element("span", { class: "mono" }, id) : element("button", { class: "link", type: "button", on: { click: () => open(row) } }, id);
    return element("tr", {}, element("th", { scope: "row" }, name), element("td", { class: "r" }, cosine), element("td", { class: "quiet" }, word));
  });
  return panel("Nearest by decoder direction", element("table", {}, element("tbody", {}, ...rows)), element("p", { class: "small quiet" }, profile.neighbours_note));
}

function profilePanels(profile, rowOf, open) {
  return [
    profile.activations.bars.length ? panel("Activation density", histogram(profile.activations, "Histogram of activations")) : null,
    tokenPanel(profile), logitPanel(profile), neighbourPanel(profile, rowOf, open),
  ].filter((item) => item !== null);
}
