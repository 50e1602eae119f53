/* Latents and tokens: a sortable table, the page of each latent with all its tokens, and the latents of each token. */

/* Everything that can be opened of associations. Buttons on the page work before the table is there, or without it. */
async function explore(data, page, nonce, grids) {
  let table = null;
  let kind = null;
  const open = (index, order) => page?.open(kind, index, order ?? table?.pages() ?? kind.all());
  if (data.latents && page) {
    const choose = (token) => { page.close(); table?.choose(token); };
    kind = associatedLatents(data.latents, latentPages(data.latents, nonce, ASSOCIATED), choose);
    page.add(kind);
    document.querySelectorAll("[data-associated]").forEach((button) => {
      button.addEventListener("click", () => open(Number(button.dataset.associated)));
    });
  }
  if (await grids) {
    table = await makeAssociated(data, kind ? open : () => {});
    if (kind) kind.closed = table.focusPage;
  }
  return { open };
}

async function makeAssociated(data, open) {
  const grid = byId("associated-grid");
  const narrow = matchMedia("(max-width: 40rem)").matches;
  let chosen = null; // the token whose pairs the rows show, or null: each latent's first token
  const plain = (cell) => element("span", {}, String(cell.getValue() ?? "–"));
  const boxed = (cell) => element("div", { dir: "auto" }, String(cell.getValue() ?? "–"));
  const shown = (field) => (cell) => {
    const { index, number } = cell.getData();
    const whole = number === undefined ? data.columns[`${field}_text`][index] : chosen.columns[`${field}_text`][number];
    const [text, bounds] = whole.split(/ (?=\[)/);
    return element("span", {}, text, bounds ? element("span", { class: "ci" }, bounds) : null);
  };
  const missingLast = (a, b, _x, _y, _column, direction) => {
    if (a === null || b === null) return a === b ? 0 : (a === null) === (direction === "asc") ? 1 : -1;
    return a - b;
  };
  const csv = (value) => (typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : value);
  const text = (field, title, extra = {}) => ({
    field, title, formatter: plain, headerFilter: "input", headerFilterPlaceholder: "contains", accessorDownload: csv, ...extra,
  });
  const words = (field, title, extra = {}) => text(field, title, { formatter: boxed, cssClass: "clamp", ...extra });
  const choice = (field, title, extra = {}) => text(field, title, {
    headerFilter: "list", headerFilterParams: { values: ["", ...new Set(data.columns[field])], clearable: true },
    headerFilterPlaceholder: "any", headerFilterFunc: "=", ...extra,
  });
  const measure = (field, title, extra = {}) => ({
    field, title, formatter: shown(field), sorter: missingLast, hozAlign: "right", headerHozAlign: "right", width: 120,
    headerFilter: "input", headerFilterPlaceholder: "≥", headerFilterFunc: within("≥"), headerSortStartingDir: "desc",
    headerFilterParams: { elementAttributes: { pattern: LIMIT, title: "A number, or one after >, <, ≥ or ≤" } }, ...extra,
  });
  const opens = (cell) => (data.columns.page ? element("button", { class: "link", type: "button", tabindex: "-1" }, cell.getValue()) : plain(cell));
  const rows = tableRows(data.columns);
  let all = rows;
  const table = new Tabulator(grid, {
    data: rows, index: "index", layout: "fitColumns", headerSortTristate: true, placeholder: "No latent passes the filters",
    columnDefaults: { resizable: false }, downloadRowRange: "active", height: rows.length > 14 ? "38rem" : false, autoResize: false,
    responsiveLayout: narrow ? "collapse" : false,
    rowFormatter: (row) => walk.mark(row),
    columns: [
      text("id", "Latent", { width: 108, formatter: opens, responsive: 0 }),
      choice("side", "Model", { minWidth: 96, responsive: 2 }),
      choice("preset", "Rules", { minWidth: 96, responsive: 2 }),
      words("label", "Label", { minWidth: narrow ? 240 : 132, widthGrow: 2 }),
      words("token", "Token", { minWidth: 96, responsive: 0 }),
      choice("layer", "Layer", { width: 96, visible: !narrow }),
      choice("position", "Slot", { width: 84, visible: !narrow }),
      measure("odds_ratio", "Odds ratio", { width: narrow ? 132 : 140, responsive: 0 }),
      measure("q_value", "q", { headerFilterPlaceholder: "≤", headerFilterFunc: within("≤"), headerSortStartingDir: "asc", width: 84, visible: !narrow }),
      measure("mcc", "MCC", { width: 92 }),
      choice("replicated", "Replicated", { width: 128, visible: !narrow }),
    ],
  });
  const pageOf = (row) => data.columns.page[row];
  const walk = walkRows(table, grid, (index) => data.columns.page && open(pageOf(index), pages()));
  const pages = () => [...new Set(walk.order().map(pageOf))];
  const count = () => {
    const active = walk.order();
    const about = chosen ? ` that go with ${chosen.token} shown; odds ratio, q and MCC are of this pair` : " shown";
    byId("associated-count").textContent = `${active.length} of ${all.length} latents${about}`;
    walk.keepStop(active);
  };
  table.on("dataFiltered", () => requestAnimationFrame(count));
  await new Promise((resolve) => table.on("tableBuilt", resolve));
  settle(table, grid);
  count();
  byId("associated-csv").addEventListener("click", () => table.download("csv", "associated.csv", { bom: true }));
  document.documentElement.classList.add("has-grid");

  async function show(found) {
    chosen = found;
    all = found ? found.pairs.map(({ index, number }) => ({ ...rows[index], number, token: found.token, ...found.values(number) })) : rows;
    await table.setData(all);
    count();
  }
  const choose = data.columns.page ? tokenField(show) : null;
  return {
    pages,
    choose,
    focusPage(page) {
      const row = walk.order().find((index) => pageOf(index) === page);
      if (row !== undefined) walk.focus(row);
    },
  };
}

/* The field that chooses a token: every token that some latent of the table goes with, not only first ones. */
function tokenField(show) {
  const field = byId("associated-token");
  const clear = byId("associated-any");
  let loading = null;
  const tokens = () => {
    loading ??= inflate("tokens").then((text) => {
      const data = JSON.parse(text);
      byId("associated-tokens").append(...data.tokens.map((token, place) => element("option", { value: token, label: `${token} (${data.counts[place]})` })));
      if (data.note) byId("associated-note").textContent = data.note;
      return { ...data, places: new Map(data.tokens.map((token, place) => [token, place])) };
    });
    return loading;
  };
  const found = (data, place) => {
    let index = 0;
    return {
      token: data.tokens[place],
      columns: data.columns,
      pairs: data.rows[place].map((step, at) => ({ index: index += step, number: data.numbers[place][at] })),
      values: (number) => Object.fromEntries(["odds_ratio", "q_value", "mcc", "replicated"].map((name) => [name, data.columns[name][number]])),
    };
  };
  async function choose(token) {
    const data = await tokens();
    const place = data.places.get(token);
    if (token !== field.value) field.value = token;
    if (token && place === undefined) {
      await show(null);
      clear.hidden = false;
      /* After the table has said how many rows it shows. */
      requestAnimationFrame(() => requestAnimationFrame(() => { byId("associated-count").textContent = `No latent of this table goes with ${token}`; }));
      return;
    }
    clear.hidden = !token;
    await show(token ? found(data, place) : null);
    if (token) field.scrollIntoView({ block: "nearest" });
  }
  field.closest(".token").hidden = false;
  field.addEventListener("focus", tokens, { once: true });
  field.addEventListener("input", async () => { // a choice from the list, which is complete at once
    if (!field.value || (await tokens()).places.has(field.value)) choose(field.value);
  });
  field.addEventListener("change", () => choose(field.value));
  clear.addEventListener("click", () => { choose(""); field.focus(); });
  return choose;
}

/* Latents that go with tokens: their labels under every set of rules, and every token with its counts. */
function associatedLatents(data, page, choose) {
  const places = new Map();
  data.id.forEach((id, index) => { if (!places.has(id)) places.set(id, index); }); // an id of two models is the first one's
  data.link.forEach((link, index) => places.set(link, index));

  function ruleCard(rule) {
    const facts = rule.facts.map(([title, whole]) => {
      const [value, bounds] = whole.split(/ (?=\[)/);
      return element("div", { class: bounds ? "wide" : null }, element("dt", {}, title), element("dd", {}, value, bounds ? element("span", { class: "ci" }, ` ${bounds}`) : null));
    });
    return element("div", { class: "card" },
      element("div", { class: "who" }, rule.title),
      element("p", { class: "what", dir: "auto" }, rule.label ?? "No label", rule.kind ? element("span", { class: "pill" }, rule.kind) : null, rule.why ? element("span", { class: "reason" }, rule.why) : null),
      element("dl", {}, ...facts),
      rule.chance ? element("p", { class: "small quiet" }, rule.chance) : null);
  }

  function half([odds, p, counts]) {
    return element("td", { class: "r" }, odds, element("span", { class: "ci" }, `p ${p}`), element("span", { class: "ci" }, counts));
  }

  function pairRow(pair) {
    const [odds, bounds] = pair.odds.split(/ (?=\[)/);
    const token = element("code", { dir: "auto" }, pair.token);
    const name = pair.kept ? element("button", { class: "link", type: "button", title: "All latents that go with it", on: { click: () => choose(pair.token) } }, token) : token;
    const [both, ...rest] = pair.counts;
    return element("tr", {},
      element("th", { scope: "row" }, name, element("span", { class: "ci" }, pair.category)),
      element("td", { class: "r" }, both, element("span", { class: "ci" }, `${pair.expected} by chance`)),
      ...rest.map((count) => element("td", { class: "r" }, count)),
      element("td", { class: "r" }, pair.enrichment),
      element("td", { class: "r" }, odds, bounds ? element("span", { class: "ci" }, bounds) : null),
      ...[pair.p, pair.q, pair.mcc].map((number) => element("td", { class: "r" }, number)),
      ...pair.halves.map(half),
      element("td", {}, pair.replicated));
  }

  function pairTable(rule) {
    const names = ["Token", "With both", "Latent alone", "Token alone", "Neither", "Enrichment", "Odds ratio", "p", "q", "MCC", "First half", "Second half", "Replicated"];
    const heads = names.map((name, place) => element("th", { scope: "col", class: place && place < names.length - 1 ? "r" : null }, name));
    const group = (pairs, words) => (pairs.length ? [element("tr", { class: "group" }, element("th", { colspan: names.length, scope: "rowgroup" }, words)), ...pairs.map(pairRow)] : []);
    const kept = rule.pairs.filter((pair) => pair.kept);
    const others = rule.pairs.filter((pair) => !pair.kept);
    return element("section", {}, element("h3", {}, `Tokens by the ${rule.name} rules`),
      element("div", { class: "card" }, element("div", { class: "scroll", role: "group", "aria-label": `Tokens by the ${rule.name} rules` },
        element("table", { class: "tokens-of" }, element("thead", {}, element("tr", {}, ...heads)),
          ...[group(kept, `Kept: ${kept.length}`), group(others, `Not kept, but marked in the plot: ${others.length}`)].filter((some) => some.length).map((some) => element("tbody", {}, ...some))))));
  }

  return {
    id: (index) => data.id[index],
    link: (index) => data.link[index],
    where: (index) => `${data.side[index]}, ${data.site[index]}`,
    find: (link) => places.get(link),
    all: () => data.id.map((_, index) => index),
    closed: () => {},
    async render(index) {
      let detail = null;
      let problem = null;
      try { detail = await page(index); } catch (error) { problem = error.message; }
      if (!detail) return [element("p", { class: "quiet" }, problem ?? data.left_out ?? "There is nothing more to show of this latent.")];
      return [
        element("p", { class: "small quiet" }, detail.active),
        element("div", { class: "pair rules" }, ...detail.rules.map(ruleCard)),
        ...detail.rules.filter((rule) => rule.pairs.length).map(pairTable),
        element("p", { class: "small quiet" }, data.note),
      ];
    },
  };
}
