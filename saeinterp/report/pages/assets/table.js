/* The latent table: Tabulator over the payload's columns. Cells show text that Python formatted, looked up in the
   columns by the row's index; sorting and filtering use the raw values, which alone are copied into rows. */

function tableRows(columns) {
  const names = Object.keys(columns).filter((name) => !name.endsWith("_text"));
  return columns.id.map((_, index) => {
    const row = { index };
    for (const name of names) row[name] = columns[name][index];
    return row;
  });
}

async function makeTable(data, openDetail) {
  const narrow = matchMedia("(max-width: 40rem)").matches;
  /* "0.684 [0.551, 0.846]": the interval goes below the number. */
  const shown = (field) => (cell) => {
    const [text, bounds] = data.columns[`${field}_text`][cell.getData().index].split(/ (?=\[)/);
    return element("span", {}, text, bounds ? element("span", { class: "ci" }, bounds) : null);
  };
  const widest = data.columns.delta.reduce((most, value) => Math.max(most, Math.abs(value ?? 0)), 0) || 1;
  const delta = (cell) => {
    const value = cell.getValue();
    const text = data.columns.delta_text[cell.getData().index];
    if (value === null) return element("span", {}, text);
    const share = 50 * Math.abs(value) / widest;
    const ends = value < 0 ? [50 - share, 50] : [50, 50 - share];
    const bar = element("i", { "aria-hidden": "true", vars: { "--from": `${ends[0]}%`, "--to": `${ends[1]}%` } });
    return element("span", { class: value > 0 ? "delta b" : "delta a" }, text, bar);
  };
  const plain = (cell) => element("span", {}, cell.getValue() ?? "");
  const boxed = (cell) => element("div", {}, cell.getValue() ?? "—");
  const missingLast = (a, b, _x, _y, _column, direction) => {
    if (a === null && b === null) return 0;
    if (a === null) return direction === "asc" ? 1 : -1;
    if (b === null) return direction === "asc" ? -1 : 1;
    return a - b;
  };
  const csv = (value) => (typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : value);
  const measure = (field, title, extra = {}) => ({
    field, title, formatter: shown(field), sorter: missingLast, hozAlign: "right", headerHozAlign: "right", width: narrow ? 84 : 110,
    headerFilter: "input", headerFilterPlaceholder: "≥", headerFilterFunc: within("≥"), headerSortStartingDir: "desc",
    headerFilterParams: { elementAttributes: { pattern: LIMIT, title: "A number, or one after >, <, ≥ or ≤" } }, ...extra,
  });
  const label = (field, title) => ({
    field, title, formatter: boxed, cssClass: "clamp", headerFilter: "input", headerFilterPlaceholder: "contains",
    minWidth: narrow ? 240 : 180, widthGrow: 3, responsive: narrow ? 2 : 0, accessorDownload: csv,
  });
  const options = (field) => ({ values: ["", ...new Set(data.columns[field])], clearable: true });
  const columns = [
    {
      field: "id", title: "Latent", width: narrow ? 88 : 98, headerFilter: "input", headerFilterPlaceholder: "id",
      sorter: (_a, _b, x, y) => x.getData().index - y.getData().index,
      formatter: (cell) => element("button", { class: "link", type: "button", tabindex: "-1" }, cell.getValue()),
    },
    {
      field: "hookpoint", title: "Layer", width: 96, visible: !narrow, formatter: plain, headerFilter: "list", headerFilterParams: options("hookpoint"), headerFilterPlaceholder: "any",
      headerFilterFunc: "=",
      sorter: (_a, _b, x, y) => x.getData().index - y.getData().index,
    },
    label("label_a", "Label A"),
    label("label_b", "Label B"),
    measure("value_a", `${data.metric} A`),
    measure("value_b", `${data.metric} B`),
    measure("delta", "B − A", { formatter: delta }),
    measure("density", "Density", { width: 104, visible: !narrow }),
    {
      field: "status", title: "Status", width: 150, responsive: 3, headerFilter: "list", headerFilterParams: options("status"), headerFilterPlaceholder: "any", headerFilterFunc: "=",
      formatter: (cell) => element("span", { class: cell.getValue() === "scored" ? "pill" : "pill warn" }, cell.getValue().replaceAll("_", " ")),
    },
    { field: "distance", title: "Distance", visible: false, download: false, sorter: missingLast },
  ].filter((column) => column.field === "distance" || data.columns[column.field] !== undefined);

  const rows = tableRows(data.columns);
  for (const row of rows) row.distance = row.delta === null ? null : Math.abs(row.delta);
  const grid = byId("latent-grid");
  const table = new Tabulator(grid, {
    data: rows, columns, index: "index", layout: "fitColumns", headerSortTristate: true, placeholder: "No latent passes the filters",
    responsiveLayout: narrow ? "collapse" : false, columnDefaults: { resizable: false }, downloadRowRange: "active",
    height: rows.length > 14 ? "38rem" : false,
    autoResize: false, // it rebuilds every row whenever the table scrolls into view: keepLayout() below redraws only when needed
    rowFormatter: (row) => walk.mark(row),
  });
  const walk = walkRows(table, grid, (index, order) => openDetail(index, order));
  const order = walk.order;
  const count = byId("latent-count");
  const listeners = [];
  const announce = () => {
    const active = order();
    count.textContent = `${active.length} of ${rows.length} latents shown`;
    walk.keepStop(active);
    listeners.forEach((listener) => listener(new Set(active)));
  };
  const built = new Promise((resolve) => table.on("tableBuilt", resolve)).then(() => {
    announce();
    settle(table, grid);
  });
  table.on("dataFiltered", () => requestAnimationFrame(announce));

  let quick = null;
  document.querySelectorAll("[data-quick]").forEach((button) => {
    button.addEventListener("click", () => {
      document.querySelectorAll("[data-quick]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      if (quick) table.removeFilter(quick);
      const wanted = button.dataset.quick;
      quick = wanted === "all" ? null : (row) => row.outcome === wanted;
      if (wanted === "all") table.clearHeaderFilter();
      if (quick) table.addFilter(quick);
    });
  });
  const furthest = byId("latent-furthest");
  furthest.addEventListener("click", () => {
    if (furthest.getAttribute("aria-pressed") === "true") table.clearSort();
    else table.setSort("distance", "desc");
  });
  table.on("dataSorted", (sorters) => furthest.setAttribute("aria-pressed", String(sorters[0]?.field === "distance")));
  byId("latent-csv").addEventListener("click", () => table.download("csv", "latents.csv", { bom: true }));
  document.documentElement.classList.add("has-grid");
  await built;
  return { order, focusRow: walk.focus, onFilter: (listener) => listeners.push(listener) };
}

/* Rows answer the keyboard: arrows move, Enter or Space opens; one row at a time is a tab stop. */
function walkRows(table, grid, open) {
  let stop = 0; // the one row that Tab reaches
  const order = () => table.getRows("active").map((row) => row.getData().index);
  /* A redraw (after a resize, say) takes rows out and puts them back, which would drop the focus. */
  let held = null;
  table.on("renderStarted", () => { held = document.activeElement.closest?.(`#${grid.id} .tabulator-row`)?.dataset.index ?? null; });
  table.on("renderComplete", () => {
    grid.querySelectorAll(".tabulator-row").forEach(cellOf);
    if (held !== null && document.activeElement === document.body) table.getRow(Number(held))?.getElement().focus({ preventScroll: true });
  });
  table.on("rowClick", (_event, row) => open(row.getData().index, order()));
  grid.addEventListener("keydown", (event) => {
    const node = event.target.closest(".tabulator-row");
    if (!node || event.target.closest("input, select")) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      open(Number(node.dataset.index), order());
    } else if (step) {
      event.preventDefault();
      const active = order();
      const next = active[active.indexOf(Number(node.dataset.index)) + step];
      if (next === undefined) return;
      focus(next);
    }
  });
  function setStop(index) {
    grid.querySelectorAll('.tabulator-row[tabindex="0"]').forEach((other) => { other.tabIndex = -1; });
    stop = index;
    const row = table.getRow(index);
    if (row) row.getElement().tabIndex = 0;
  }
  const focus = async (index) => {
    const row = table.getRow(index);
    if (!row || !order().includes(index)) return; // a filter that waited for the press may have taken the row
    setStop(index);
    if (!row.getElement().isConnected) await table.scrollToRow(row, "nearest", false);
    row.getElement().focus();
  };

  return {
    order,
    focus,
    mark(row) {
      const node = row.getElement();
      node.tabIndex = row.getData().index === stop ? 0 : -1;
      node.dataset.index = row.getData().index;
      cellOf(node);
    },
    keepStop(active) {
      if (!active.includes(stop) && active.length) setStop(active[0]);
    },
  };
}

/* What a table needs once it is built. */
function settle(table, grid) {
  /* Tabulator nests a rowgroup in a rowgroup and makes its scroller a tab stop without a role. */
  const roles = { header: "presentation", tableholder: "rowgroup", table: "presentation" };
  for (const [part, role] of Object.entries(roles)) grid.querySelector(`.tabulator-${part}`).setAttribute("role", role);
  /* Columns sort by keyboard too, and their filters have names. */
  for (const column of grid.querySelectorAll(".tabulator-col.tabulator-sortable")) {
    const name = column.querySelector(".tabulator-col-title").textContent;
    column.tabIndex = 0;
    column.addEventListener("keydown", (event) => {
      if (event.target !== column || (event.key !== "Enter" && event.key !== " ")) return;
      event.preventDefault();
      column.querySelector(".tabulator-col-title").click();
    });
    column.querySelector("input")?.setAttribute("aria-label", `Filter ${name}`);
  }
  holdStillWhilePressed(table, grid);
  keepLayout(table, grid);
}

/* A browser makes no click of a press whose target leaves the page before the release, not even when it is put back at
   once. So while a row is pressed, Tabulator postpones what would redraw the rows: a filter just typed, a new width. */
function holdStillWhilePressed(table, grid) {
  let pressed = false;
  const release = () => {
    if (!pressed) return;
    pressed = false;
    table.restoreRedraw();
  };
  grid.addEventListener("pointerdown", (event) => {
    if (pressed || event.button !== 0 || !event.target.closest(".tabulator-row")) return;
    pressed = true;
    table.blockRedraw();
  });
  /* The click follows its pointerup within the same frame. */
  addEventListener("pointerup", () => requestAnimationFrame(release), true);
  for (const type of ["pointercancel", "contextmenu", "blur"]) addEventListener(type, release);
}

/* The columns that a narrow row folds below itself are one more cell of it. */
function cellOf(row) {
  row.querySelector(".tabulator-responsive-collapse")?.setAttribute("role", "gridcell");
}

/* Fit the columns and rows to a new width; a table that is out of sight (as in print) has none and waits. */
function keepLayout(table, grid) {
  let width = grid.clientWidth;
  new ResizeObserver(() => {
    if (!grid.clientWidth || grid.clientWidth === width) return;
    width = grid.clientWidth;
    table.redraw();
  }).observe(grid);
}

/* What is typed above a column of numbers: `0.5`, `>= 0.5`, `< 0`; nothing is filtered by what is no number. */
const LIMIT = "\\s*(>=|<=|≥|≤|>|<|=)?\\s*[\\-−+]?(\\d+([.,]\\d*)?|[.,]\\d+)(e[\\-−+]?\\d+)?\\s*";

function within(usual) {
  const holds = { "≥": (v, l) => v >= l, ">=": (v, l) => v >= l, "≤": (v, l) => v <= l, "<=": (v, l) => v <= l, ">": (v, l) => v > l, "<": (v, l) => v < l, "=": (v, l) => v === l };
  return (wanted, value) => {
    const text = String(wanted);
    const found = new RegExp(`^${LIMIT}$`).exec(text);
    if (found === null) return true;
    const limit = Number.parseFloat(text.replace(found[1] ?? "", "").replaceAll("−", "-").replace(",", "."));
    return value !== null && holds[found[1] ?? usual](value, limit);
  };
}
