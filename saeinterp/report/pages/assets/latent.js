/* The page of one latent, over the report; its address is #L4_F355. One dialog serves every kind of latent: a kind says
   which latents it has, where each is, and what its page holds. */

function makeLatentPage() {
  const dialog = byId("latent-page");
  const body = byId("latent-body");
  const title = byId("latent-title");
  const report = document.title;
  const kinds = [];
  let kind = null;
  let order = [];
  let current = 0;
  let pushed = false; // whether opening it made an entry of the browser's history, which closing takes back

  async function show(index) {
    current = index;
    const of = kind;
    const link = of.link(index);
    title.textContent = of.id(index);
    document.title = `${of.id(index)} · ${report}`;
    byId("latent-layer").textContent = of.where(index);
    const place = order.indexOf(index);
    byId("latent-place").textContent = place < 0 ? "" : `${place + 1} of ${order.length}`;
    byId("latent-previous").disabled = place <= 0;
    byId("latent-next").disabled = place < 0 || place >= order.length - 1;
    history.replaceState(null, "", `#${encodeURI(link)}`);
    const parts = await of.render(index, show);
    if (kind !== of || current !== index) return; // another one was asked for meanwhile
    body.replaceChildren(...parts);
    reachable(body);
    dialog.scrollTop = 0;
    dialog.dataset.shown = link;
  }

  const step = (by) => {
    const next = order[order.indexOf(current) + by];
    if (next !== undefined) show(next);
  };
  byId("latent-previous").addEventListener("click", () => step(-1));
  byId("latent-next").addEventListener("click", () => step(1));
  byId("latent-close").addEventListener("click", () => dialog.close());
  byId("latent-home").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("close", () => {
    delete dialog.dataset.shown;
    document.title = report;
    if (pushed) history.back();
    else history.replaceState(null, "", location.pathname + location.search);
    pushed = false;
    kind.closed(current);
  });

  function open(of, index, among) {
    kind = of;
    order = among;
    if (!dialog.open) {
      pushed = found(location.hash) === null;
      if (pushed) history.pushState(null, "", location.hash);
      dialog.showModal();
    }
    show(index);
  }

  /* The kind and the latent that an address names. */
  function found(hash) {
    let link;
    try { link = decodeURIComponent(hash.slice(1)); } catch { return null; }
    for (const of of kinds) {
      const index = of.find(link);
      if (index !== undefined) return { of, index };
    }
    return null;
  }

  /* An address typed or followed opens its latent; going back closes the page. */
  addEventListener("popstate", () => {
    const named = found(location.hash);
    if (named === null && dialog.open) {
      pushed = false;
      dialog.close();
    } else if (named !== null && (named.of !== kind || named.index !== current || !dialog.open)) {
      open(named.of, named.index, named.of === kind && order.includes(named.index) ? order : named.of.all());
    }
  });

  return {
    add(of) { kinds.push(of); },
    open,
    close() { dialog.close(); },
    follow() {
      const named = found(location.hash);
      if (named !== null) open(named.of, named.index, named.of.all());
    },
  };
}

/* Latents that were explained: labels with their scores, examples, profile. */
function explainedLatents(data, page) {
  const rows = new Map(data.columns.id.map((id, index) => [id, index]));

  function sideCard(side, index, detail) {
    const reason = detail?.sides[side.key === "a" ? 0 : 1].reason;
    return element("div", { class: "card" },
      element("div", { class: "who" }, element("span", { class: `tag ${side.key}` }, side.key.toUpperCase()), element("span", {}, side.title)),
      element("p", { class: "what", dir: "auto" }, data.columns[`label_${side.key}`][index] ?? "no explanation", reason ? element("span", { class: "reason" }, reason) : null));
  }

  /* Every measure of both sides, one row each. */
  function scoreTable(index, detail) {
    const number = (text) => {
      const [value, bounds] = text.split(/ (?=\[)/);
      return element("td", { class: "r" }, value, bounds ? element("span", { class: "ci" }, ` ${bounds}`) : null);
    };
    const rows = detail
      ? detail.sides[0].measures.map(([title, a], place) => [title, a, detail.sides[1].measures[place][1]])
      : [[data.metric, data.columns.value_a_text[index], data.columns.value_b_text[index]]];
    const lines = rows.map(([title, a, b]) => element("tr", {}, element("th", { scope: "row" }, title), number(a), number(b)));
    if (detail) lines.push(element("tr", {}, element("th", { scope: "row" }, "Verdicts"), ...detail.sides.map((side) => element("td", { class: "r" }, side.counts))));
    const heads = data.sides.map((side) => element("th", { scope: "col", class: "r" }, element("span", { class: `tag ${side.key}`, "aria-hidden": "true" }, side.key.toUpperCase()), element("span", { class: "visually-hidden" }, side.key.toUpperCase())));
    return element("div", { class: "card scroll scores", role: "group", "aria-label": "Scores" }, element("table", { class: "scores" },
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Score"), ...heads)), element("tbody", {}, ...lines)));
  }

  function otherLabels(others) {
    const cells = others.map((item) => element("tr", {}, element("th", { scope: "row" }, item.title), element("td", { dir: "auto" }, item.label ?? "no explanation"), element("td", { class: "r" }, item.value)));
    return element("section", {}, element("h3", {}, "Other explainers"), element("div", { class: "card scroll" }, element("table", {}, element("tbody", {}, ...cells))));
  }

  function contents(index, detail, problem, open) {
    const at = (name) => data.columns[name][index];
    const facts = [`density ${at("density_text")}`, detail ? `fires on ${detail.firings} tokens` : null, `B − A ${at("delta_text")}`].filter((item) => item !== null);
    const lead = element("p", { class: "small quiet" }, element("span", { class: at("status") === "scored" ? "pill" : "pill warn" }, at("status").replaceAll("_", " ")), ` ${facts.join(" · ")}`);
    if (detail?.top?.length) lead.append(element("br"), "Largest summed activation: ", element("span", { class: "chips" }, ...detail.top.map((token) => element("code", { dir: "auto" }, token))));
    const parts = [lead];
    if (detail?.profile?.dead) parts.push(element("p", { class: "banner note" }, detail.profile.dead));
    parts.push(element("div", { class: "pair" }, ...data.sides.map((side) => sideCard(side, index, detail))));
    if (detail?.others?.length) parts.push(otherLabels(detail.others));
    const main = detail ? exampleParts(detail) : [element("p", { class: "quiet" }, problem ?? data.left_out ?? "There is nothing more to show of this latent.")];
    main.unshift(scoreTable(index, detail));
    if (detail && !detail.score.length) main.push(element("p", { class: "quiet" }, "It was not scored, so there are no verdicts."));
    const side = detail?.profile ? profilePanels(detail.profile, (id) => rows.get(id), open) : [];
    parts.push(side.length ? element("div", { class: "columns" }, element("div", {}, ...main), element("div", { class: "side" }, ...side)) : element("div", {}, ...main));
    return parts;
  }

  return {
    id: (index) => data.columns.id[index],
    link: (index) => data.columns.id[index],
    where: (index) => data.columns.hookpoint[index],
    find: (link) => rows.get(link),
    all: () => [...rows.values()],
    closed: () => {},
    async render(index, open) {
      let detail = null;
      let problem = null;
      try { detail = await page(index); } catch (error) { problem = error.message; }
      return contents(index, detail, problem, open);
    },
  };
}
