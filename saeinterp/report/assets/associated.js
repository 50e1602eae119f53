/* The table of latents and tokens: sortable and filterable, with the texts that Python formatted. */

async function makeAssociated(data) {
  const grid = byId("associated-grid");
  const plain = (cell) => element("span", {}, String(cell.getValue() ?? "–"));
  const shown = (field) => (cell) => {
    const [text, bounds] = data.columns[`${field}_text`][cell.getData().index].split(/ (?=\[)/);
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
  const choice = (field, title, extra = {}) => text(field, title, {
    headerFilter: "list", headerFilterParams: { values: ["", ...new Set(data.columns[field])], clearable: true },
    headerFilterPlaceholder: "any", headerFilterFunc: "=", ...extra,
  });
  const measure = (field, title, extra = {}) => ({
    field, title, formatter: shown(field), sorter: missingLast, hozAlign: "right", headerHozAlign: "right", width: 120,
    headerFilter: "input", headerFilterPlaceholder: "≥", headerFilterFunc: atLeast, headerSortStartingDir: "desc", ...extra,
  });
  const rows = tableRows(data.columns);
  const table = new Tabulator(grid, {
    data: rows, index: "index", layout: "fitColumns", headerSortTristate: true, placeholder: "No latent passes the filters",
    columnDefaults: { resizable: false }, downloadRowRange: "active", height: rows.length > 14 ? "38rem" : false, autoResize: false,
    columns: [
      text("id", "Latent", { width: 108 }),
      choice("side", "Model", { minWidth: 96 }),
      choice("preset", "Rules", { minWidth: 96 }),
      text("label", "Label", { minWidth: 132, widthGrow: 2 }),
      text("token", "Token", { minWidth: 96 }),
      choice("layer", "Layer", { width: 96 }),
      choice("position", "Slot", { width: 84 }),
      measure("odds_ratio", "Odds ratio", { width: 140 }),
      measure("q_value", "q", { headerFilterPlaceholder: "≤", headerFilterFunc: atMost, headerSortStartingDir: "asc", width: 84 }),
      measure("mcc", "MCC", { width: 92 }),
      choice("replicated", "Replicated", { width: 128 }),
    ],
  });
  const count = () => { byId("associated-count").textContent = `${table.getDataCount("active")} of ${rows.length} latents shown`; };
  table.on("dataFiltered", () => requestAnimationFrame(count));
  await new Promise((resolve) => table.on("tableBuilt", resolve));
  const roles = { header: "presentation", tableholder: "rowgroup", table: "presentation" };
  for (const [part, role] of Object.entries(roles)) grid.querySelector(`.tabulator-${part}`).setAttribute("role", role);
  count();
  keepLayout(table, grid);
  byId("associated-csv").addEventListener("click", () => table.download("csv", "associated.csv", { bom: true }));
  document.documentElement.classList.add("has-grid");
}

function atMost(wanted, value) {
  const limit = Number.parseFloat(String(wanted).replace(",", "."));
  return Number.isNaN(limit) || (value !== null && value <= limit);
}
