/* Plots: figures come finished from Python; here they only take the page's colours and type. Plotly's toolbar stays out:
   it offers to upload the chart. */

function theme() {
  const style = getComputedStyle(document.documentElement);
  const token = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: token("--line"), zerolinecolor: token("--line-2"), linecolor: token("--line-2"), tickcolor: token("--line-2") };
  return {
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: token("--sans"), size: 12, color: token("--ink-2") },
      hoverlabel: { bgcolor: token("--card"), bordercolor: token("--line-2"), font: { family: token("--sans"), color: token("--ink") } },
    },
    axis,
    line: token("--ink-3"),
    heat: [[0, token("--sunk")], [1, token("--heat")]],
  };
}

/* A mark stands for a row of the latent table, and is where that row's values are. */
function placed(trace, latents) {
  const { id, value_a, value_b, value_a_text, value_b_text } = latents.columns;
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;"); // plotly reads some tags in texts
  return {
    ...trace,
    x: trace.customdata.map((row) => value_a[row]),
    y: trace.customdata.map((row) => value_b[row]),
    text: trace.customdata.map((row) => plain(`${id[row]}`) + `<br>A ${value_a_text[row]}<br>B ${value_b_text[row]}`),
  };
}

function draw(figure, holder, latents) {
  const { layout, axis, line, heat } = theme();
  const data = figure.data.map((trace) => {
    if (trace.type === "heatmap") return { ...trace, colorscale: heat };
    return figure.linked ? placed(trace, latents) : trace;
  });
  const merged = { ...figure.layout, ...layout, legend: { ...figure.layout.legend } };
  for (const name of ["xaxis", "yaxis"]) merged[name] = { ...figure.layout[name], ...axis };
  merged.shapes = (figure.layout.shapes ?? []).map((shape) => ({ ...shape, line: { ...shape.line, color: line } }));
  holder.querySelector(":scope > .loading")?.remove();
  return Plotly.react(holder, data, merged, { responsive: true, displayModeBar: false });
}

/* `openers`: what a mark opens, by the kind of figure. */
function makePlots(figures, latents, openers) {
  const holders = new Map(figures.map((figure) => [byId(`plot-${figure.id}`), figure]).filter(([holder]) => holder));
  let active = null;
  let loading = null;
  const drawn = new Set();

  async function show(holder) {
    loading ??= library("lib-plotly");
    if (!(await loading) || drawn.has(holder)) return;
    const figure = holders.get(holder);
    drawn.add(holder);
    await draw(figure, holder, latents);
    const open = openers[figure.linked ? "linked" : figure.opens];
    if (open) {
      holder.on("plotly_click", (event) => {
        const mark = event.points.find((point) => point.data.customdata);
        if (mark) open(mark.customdata);
      });
    }
    if (figure.linked) dim(holder, figure);
  }

  /* Latents that the table's filters leave out fade in the scatter. */
  function dim(holder, figure) {
    if (!active) return;
    figure.data.forEach((trace, index) => {
      if (!trace.customdata) return;
      const points = trace.customdata.map((latent, place) => [latent, place]).filter(([latent]) => active.has(latent)).map(([, place]) => place);
      Plotly.restyle(holder, { selectedpoints: [points.length === trace.customdata.length ? null : points] }, [index]);
    });
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      show(entry.target);
    }
  }, { rootMargin: "600px" });
  holders.forEach((_figure, holder) => watcher.observe(holder));
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const again = () => drawn.forEach(async (holder) => {
    const figure = holders.get(holder);
    await draw(figure, holder, latents);
    if (figure.linked) dim(holder, figure);
  });
  scheme.addEventListener("change", again);
  /* Plotly fits a plot to a new width, but not its legend. */
  let wait = null;
  addEventListener("resize", () => { clearTimeout(wait); wait = setTimeout(again, 200); });
  /* Those out of sight are drawn when there is time, so that they are there to be printed. */
  const rest = () => holders.forEach((_figure, holder) => show(holder));
  if (window.requestIdleCallback) requestIdleCallback(rest, { timeout: 10_000 });
  addEventListener("beforeprint", rest);
  return {
    filter(indices) {
      active = indices;
      drawn.forEach((holder) => { if (holders.get(holder).linked) dim(holder, holders.get(holder)); });
    },
  };
}
