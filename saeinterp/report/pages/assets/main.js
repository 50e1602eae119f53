/* Start: every section is already in the page as HTML; this adds the tables, the pages of latents and the plots. */

/* Paper has no way to open a part: all are open while the page is printed, but for tables behind plots, which are drawn. */
function unfoldToPrint() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("main details:not([open])")].filter((part) => !part.closest("figure, aside"));
    opened.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));
}

/* A link into a closed part opens it. */
function openWhatIsLinked() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("main a[href^='#']");
    const part = link && byId(link.getAttribute("href").slice(1))?.closest("details");
    if (part) part.open = true;
  });
}

async function start() {
  if (typeof DecompressionStream === "undefined") {
    byId("old-browser").hidden = false;
    return;
  }
  const payload = JSON.parse(await inflate("payload"));
  const nonce = document.documentElement.dataset.nonce;
  const page = byId("latent-page") ? makeLatentPage() : null;
  let table = null;
  let explained = null;
  const openDetail = (index, order) => page.open(explained, index, order ?? table?.order() ?? explained.all());
  const grids = payload.latents || payload.associated ? library("lib-tabulator") : false;
  if (payload.latents) {
    explained = explainedLatents(payload.latents, latentPages(payload.latents, nonce, EXPLAINED));
    page.add(explained);
    /* Before the table, which takes a while to load: these buttons are on the page from the start. */
    document.querySelectorAll("[data-latent]").forEach((button) => {
      button.addEventListener("click", () => openDetail(Number(button.dataset.latent)));
    });
    if (await grids) {
      table = await makeTable(payload.latents, openDetail);
      explained.closed = table.focusRow;
    }
  }
  const associated = payload.associated ? await explore(payload.associated, page, nonce, grids) : null;
  page?.follow();
  const plots = makePlots(payload.figures, payload.latents, { linked: openDetail, associated: associated?.open });
  table?.onFilter((indices) => plots.filter(indices));
  const stops = () => reachable(document);
  stops();
  addEventListener("resize", stops);
  document.addEventListener("toggle", stops, true); // a part that opens may scroll
  unfoldToPrint();
  openWhatIsLinked();
  document.documentElement.dataset.ready = "true";
}

start();
